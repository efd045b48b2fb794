"""The attacker's own training pairs: the public method, run on people outside the release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

HELD_OUT = 0.25  # share of an attacker's pairs that he does not train on, so that he can choose


@dataclass(frozen=True)
class Pairs:
    """``originals`` and ``outputs``, (n, 3, S, S) float32 in [-1, 1]; row i of one was made of row i of the other.

    ``people`` (n,) says whose each is; unless told, each is somebody else's.
    """

    originals: torch.Tensor
    outputs: torch.Tensor
    people: npt.NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        shape = self.originals.shape
        if shape != self.outputs.shape or len(shape) != 4 or shape[1] != 3:
            given = f"{tuple(shape)} and {tuple(self.outputs.shape)}"
            raise ValueError(f"originals and outputs must be two equal (n, 3, S, S), got {given}: pair them row by row")

    def __len__(self) -> int:
        return len(self.originals)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Pairs:
        index = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.originals.device)
        return Pairs(self.originals[index], self.outputs[index], None if self.people is None else self.people[rows])


def finite_pairs(pairs: Pairs) -> Pairs:
    """Without those in which the model returned NaN."""
    finite = (pairs.originals.isfinite() & pairs.outputs.isfinite()).flatten(1).all(1)  # (n,)
    return pairs[finite.cpu().numpy()]


def hold_out(people: Sequence[object] | npt.NDArray[np.str_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Which pairs to keep for validation, (n,): all of about a quarter of the people, so that nobody is on both sides.

    ``people`` (n,) says whose each pair is. Raises ValueError for fewer than four people.
    """
    _, person = np.unique(np.array([str(name) for name in people]), return_inverse=True)  # (n,)
    count = int(person.max(initial=-1)) + 1
    if count < 4:
        raise ValueError(f"people must be four or more, got {count}: train the attacker on pairs of more people")
    held = rng.permutation(count) < round(HELD_OUT * count)
    return np.asarray(held[person])
