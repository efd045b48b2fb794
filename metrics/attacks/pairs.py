"""The attacker's own training pairs: the public method, run on people outside the release."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from anonymizer.backbones.protocol import Backbone
from anonymizer.boomerang import Boomerang
from anonymizer.noise import KeyedNoise

INVENT = ("sde-dpm++", 25)  # the sampler and its steps that invent people at level 1
HELD_OUT = 0.25  # share of an attacker's pairs that he does not train on, so that he can choose


@dataclass(frozen=True)
class Pairs:
    """``originals`` and ``outputs``, (n, 3, S, S) float32 in [-1, 1]; row i of one was made of row i of the other."""

    originals: torch.Tensor
    outputs: torch.Tensor

    def __post_init__(self) -> None:
        shape = self.originals.shape
        if shape != self.outputs.shape or len(shape) != 4 or shape[1] != 3:
            given = f"{tuple(shape)} and {tuple(self.outputs.shape)}"
            raise ValueError(f"originals and outputs must be two equal (n, 3, S, S), got {given}: pair them row by row")

    def __len__(self) -> int:
        return len(self.originals)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Pairs:
        index = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.originals.device)
        return Pairs(self.originals[index], self.outputs[index])


def make_pairs(
    boomerang: Boomerang,
    level: float,
    n: int,
    rng: np.random.Generator,
    pictures: torch.Tensor | None = None,
    *,
    condition: object = None,
    batch: int = 32,
    progress: Callable[[int], None] | None = None,
) -> Pairs:
    """``n`` pairs (original, output), made with the method, model and level of the release but with other noise.

    The originals are the first ``n`` of ``pictures`` (N, 3, S, S) in [-1, 1], people who are not in the release; with
    none given they are invented by the model itself at level 1, and no further data are needed. ``progress`` hears how
    many pairs are done. Pairs in which the model returned NaN are left out, so there may be fewer. Raises ValueError.
    """
    if n < 1 or (pictures is not None and n > len(pictures)):
        most = "" if pictures is None else f"..{len(pictures)}"
        raise ValueError(f"n must be in 1{most}, got {n}: each picture makes one pair, give more or ask for fewer")
    parts = []
    for start in range(0, n, batch):
        count = min(batch, n - start)
        if pictures is None:
            originals = invent(boomerang.backbone, count, rng)
        else:
            originals = pictures[start : start + count].to(boomerang.backbone.device, torch.float32)
        parts.append((originals, boomerang.sample(originals, level, _noise(count, rng), condition)))
        if progress is not None:
            progress(count)
    pairs = Pairs(*(torch.cat(part).float().clone() for part in zip(*parts, strict=True)))
    finite = (pairs.originals.isfinite() & pairs.outputs.isfinite()).flatten(1).all(1)  # (n,)
    return pairs[finite.cpu().numpy()]


def invent(backbone: Backbone, count: int, rng: np.random.Generator) -> torch.Tensor:
    """``count`` people who do not exist, (count, 3, S, S) float32 in [-1, 1]: samples of the model at level 1."""
    sampler, steps = INVENT
    blank = torch.zeros(count, 3, backbone.size, backbone.size, device=backbone.device)  # nothing is left of it
    return Boomerang(backbone, sampler, steps).sample(blank, 1.0, _noise(count, rng))


def hold_out(people: Sequence[object], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which pairs to keep for validation, (n,): all of about a quarter of the people, so that nobody is on both sides.

    ``people`` (n,) says whose each pair is. Raises ValueError for fewer than four people.
    """
    _, person = np.unique(np.array([str(name) for name in people]), return_inverse=True)  # (n,)
    count = int(person.max(initial=-1)) + 1
    if count < 4:
        raise ValueError(f"people must be four or more, got {count}: train the attacker on pairs of more people")
    held = rng.permutation(count) < round(HELD_OUT * count)
    return np.asarray(held[person])


def _noise(count: int, rng: np.random.Generator) -> KeyedNoise:
    """Noise under fresh keys: the attacker does not know the custodian's."""
    return KeyedNoise([rng.bytes(16) for _ in range(count)])
