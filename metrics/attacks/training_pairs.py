"""The attacker's own training pairs: the public method, run on people outside the release."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from metrics.stats.intervals import Bools, Names, as_subjects

HELD_OUT = 0.25  # share of an attacker's pairs that validate the choice of a model


@dataclass(frozen=True)
class Pairs:
    """``originals`` and ``outputs``, (n, 3, S, S) float32 in [-1, 1]; row i of outputs was made of row i of originals.

    ``people`` (n,) names the person of each; None: each is another person's.
    """

    originals: torch.Tensor
    outputs: torch.Tensor
    people: Names | None = None

    def __post_init__(self) -> None:
        shape = self.originals.shape
        if shape != self.outputs.shape or len(shape) != 4 or shape[1] != 3:
            given = f"{tuple(shape)} and {tuple(self.outputs.shape)}"
            raise ValueError(f"originals and outputs must be two equal (n, 3, S, S), got {given}: pair them row by row")

    def __len__(self) -> int:
        return len(self.originals)

    def __getitem__(self, rows: slice | npt.NDArray[np.int64] | Bools) -> Pairs:
        index = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.originals.device)
        return Pairs(self.originals[index], self.outputs[index], None if self.people is None else self.people[rows])


def finite_pairs(pairs: Pairs) -> Pairs:
    """Return the pairs in which the model returned no NaN."""
    finite = (pairs.originals.isfinite() & pairs.outputs.isfinite()).flatten(1).all(1)  # (n,)
    return pairs[finite.cpu().numpy()]


def hold_out(people: Sequence[object] | Names, rng: np.random.Generator) -> Bools:
    """Choose the pairs for validation, (n,): all of about a quarter of the people, so that nobody is on both sides.

    ``people`` (n,) names the person of each pair. Raises ValueError for fewer than four people.
    """
    _, person = np.unique(as_subjects(list(people)), return_inverse=True)  # (n,)
    count = int(person.max(initial=-1)) + 1
    if count < 4:
        raise ValueError(f"people must be four or more, got {count}: train the attacker on pairs of more people")
    held_out = rng.permutation(count) < round(HELD_OUT * count)
    return np.asarray(held_out[person])
