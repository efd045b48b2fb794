"""Baselines of an audit: simpler mechanisms at the same utility, and the two ends, everything and nothing kept."""

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
    Mechanism,
    Pixelate,
    RoundTrip,
    Unrelated,
    apply,
    reencode,
)
from metrics.audit.workbench import Evidence

DistanceFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # two (N, 3, S, S) to (N,), such as LPIPS


@dataclass(frozen=True)
class Baseline:
    """Outputs (N, 3, S, S) of another mechanism, and their median distance from the originals."""

    mechanism: Mechanism
    outputs: torch.Tensor
    distance: float


def apply_baseline(name: str, evidence: Evidence, distance: DistanceFunction, rng: np.random.Generator) -> Baseline:
    """Apply the named baseline; blur and pixelation change images as much as the release did.

    Raises ValueError, in one line, where the evidence does not suffice.
    """
    mechanism = BASELINES[name](evidence, distance, rng)
    outputs = reencode(apply(mechanism, evidence.originals, rng).nan_to_num(0.0))
    return Baseline(mechanism, outputs, median_distance(evidence.originals, outputs, distance))


def median_distance(originals: torch.Tensor, outputs: torch.Tensor, distance: DistanceFunction) -> float:
    """Return the median distance of outputs from originals, both (N, 3, S, S), in batches."""
    parts = [distance(a, b) for a, b in zip(originals.split(BATCH), outputs.split(BATCH), strict=True)]
    return float(torch.cat(parts).median())


def match_distance(
    ladder: Sequence[Mechanism],
    originals: torch.Tensor,
    target: float,
    distance: DistanceFunction,
    rng: np.random.Generator,
) -> Mechanism:
    """Return the mechanism of a ladder, weakest first, whose median distance from ``originals`` is nearest ``target``.

    Bisects, as distances rise along the ladder. A target beyond its ends takes the end.
    """
    measured: dict[int, float] = {}

    def distance_at(rung: int) -> float:
        if rung not in measured:
            measured[rung] = median_distance(originals, reencode(apply(ladder[rung], originals, rng)), distance)
        return measured[rung]

    low, high = 0, len(ladder) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if distance_at(middle) < target else (low, middle)
    return ladder[min((low, high), key=lambda rung: abs(distance_at(rung) - target))]


def blur_ladder(size: int) -> list[Mechanism]:
    """Return blurs from almost none to a single colour, each a tenth stronger than the one before."""
    return [Blur(0.3 * 1.1**i) for i in range(math.ceil(math.log(size / 0.3) / math.log(1.1)))]


def pixelation_ladder(size: int) -> list[Mechanism]:
    """Return pixelations from one cell less than pixels on a side to a single cell."""
    return [Pixelate(cells) for cells in range(size - 1, 0, -1)]


def _match_release(
    ladder: Callable[[int], list[Mechanism]], evidence: Evidence, distance: DistanceFunction, rng: np.random.Generator
) -> Mechanism:
    target = median_distance(evidence.originals, evidence.outputs, distance)
    return match_distance(ladder(evidence.originals.shape[-1]), evidence.originals, target, distance, rng)


def _global_sampling(evidence: Evidence, *_: object) -> Mechanism:
    if not isinstance(evidence.mechanism, LocalSampling):
        raise ValueError("global: the release was not made by a diffusion model: leave it out")
    return LocalSampling(evidence.mechanism.boomerang, 1.0)


def _unrelated_images(evidence: Evidence, *_: object) -> Mechanism:
    if evidence.outsiders is None:
        raise ValueError("unrelated: no pictures of other people: give some (audit.outsiders)")
    return Unrelated(evidence.outsiders[0])


BASELINES: Mapping[str, Callable[[Evidence, DistanceFunction, np.random.Generator], Mechanism]] = {
    "round-trip": lambda *_: RoundTrip(),
    "blur": lambda *evidence: _match_release(blur_ladder, *evidence),
    "pixelation": lambda *evidence: _match_release(pixelation_ladder, *evidence),
    "global": _global_sampling,
    "unrelated": _unrelated_images,
}
