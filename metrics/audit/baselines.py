"""What a release is set beside: simpler methods at the same utility, and the two ends: all kept, and nothing kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metrics.audit.mechanisms import (
    BATCH,
    Blur,
    LocalSampling,
    Method,
    Pixelate,
    RoundTrip,
    Unrelated,
    applied,
    encoded,
)
from metrics.audit.workbench import Evidence

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # two (N, 3, S, S) to (N,), for example LPIPS


@dataclass(frozen=True)
class Baseline:
    """Outputs (N, 3, S, S) of another method, and their median distance from the originals: how much was changed."""

    method: Method
    outputs: torch.Tensor
    distance: float


def baseline(name: str, evidence: Evidence, distance: Distance, rng: np.random.Generator) -> Baseline:
    """The named baseline for what was released; blur and pixelation change as much as the release did.

    Raises ValueError, in one line, where the evidence lacks what it takes.
    """
    method = BASELINES[name](evidence, distance, rng)
    outputs = encoded(applied(method, evidence.originals, rng).nan_to_num(0.0))
    return Baseline(method, outputs, median(evidence.originals, outputs, distance))


def median(originals: torch.Tensor, outputs: torch.Tensor, distance: Distance) -> float:
    parts = [distance(a, b) for a, b in zip(originals.split(BATCH), outputs.split(BATCH), strict=True)]
    return float(torch.cat(parts).median())


def matched(
    ladder: Sequence[Method], originals: torch.Tensor, target: float, distance: Distance, rng: np.random.Generator
) -> Method:
    """Of a ladder of methods, weakest first, the one whose median distance from ``originals`` comes nearest ``target``.

    Looks at few rungs, as distances rise along the ladder. A target beyond its ends takes the end.
    """
    reached: dict[int, float] = {}

    def at(rung: int) -> float:
        if rung not in reached:
            reached[rung] = median(originals, encoded(applied(ladder[rung], originals, rng)), distance)
        return reached[rung]

    low, high = 0, len(ladder) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < target else (low, middle)
    return ladder[min((low, high), key=lambda rung: abs(at(rung) - target))]


def blurs(size: int) -> list[Method]:
    """From next to nothing to a single colour, each a tenth stronger than the one before."""
    return [Blur(0.3 * 1.1**i) for i in range(math.ceil(math.log(size / 0.3) / math.log(1.1)))]


def pixelations(size: int) -> list[Method]:
    return [Pixelate(cells) for cells in range(size - 1, 0, -1)]


def _matched(make: Callable[[int], list[Method]]) -> Callable[[Evidence, Distance, np.random.Generator], Method]:
    def method(evidence: Evidence, distance: Distance, rng: np.random.Generator) -> Method:
        target = median(evidence.originals, evidence.outputs, distance)
        return matched(make(evidence.originals.shape[-1]), evidence.originals, target, distance, rng)

    return method


def _global(evidence: Evidence, *_: object) -> Method:
    if not isinstance(evidence.method, LocalSampling):
        raise ValueError("global: the release was not made by a diffusion model: leave it out")
    return LocalSampling(evidence.method.boomerang, 1.0)


def _unrelated(evidence: Evidence, *_: object) -> Method:
    if evidence.outsiders is None:
        raise ValueError("unrelated: no pictures of other people: give some (audit.outsiders)")
    return Unrelated(evidence.outsiders[0])


BASELINES: Mapping[str, Callable[[Evidence, Distance, np.random.Generator], Method]] = {
    "round-trip": lambda *_: RoundTrip(),
    "blur": _matched(blurs),
    "pixelation": _matched(pixelations),
    "global": _global,
    "unrelated": _unrelated,
}
