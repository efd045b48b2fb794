"""What published scores give away: whoever holds the originals scores outputs against all of them, and compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from metrics.stats.intervals import Floats, Numbers

MAX_RECORDS = 100  # outputs, and candidates; all pairs of them are scored
DISTANCES = ("lpips",)  # scores that are smaller where pictures are more alike


@dataclass(frozen=True)
class PublishedColumn:
    """What one column publishes of each of N outputs: ``values`` (N,) of a ``score``, NaN where there is none.

    ``rounded`` makes of a score what would be published of it, as a number; none where a score is published as it is.
    """

    score: str
    values: Floats
    rounding: Callable[[float], float] | None = None

    def as_published(self, values: Floats) -> Floats:
        """Of scores of any shape what would be published."""
        if self.rounding is None:
            return values
        return np.array([self.rounding(value) for value in values.ravel().tolist()]).reshape(values.shape)


class PairwiseScorer(Protocol):
    def score_pairwise(self, originals: torch.Tensor, outputs: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The score of each of N outputs against each of M originals: (N, M) by the name of the score."""


@dataclass(frozen=True)
class PublishedScores:
    """Of some records, ``rows`` (n,): each column of the manifest that publishes a score.

    ``scores`` holds for each column what is published of each output, (n,), NaN where nothing is, and what the attacker
    gets of each output against each original of these records, (n, n), put into the same bins where bins are published.
    ``likeness`` (n, n) is what he gets as it is, greater where pictures are more alike: he has it without being told.
    """

    rows: Numbers
    scores: Mapping[str, tuple[Floats, Floats]]
    similarity: Mapping[str, Floats]


def recompute_scores(
    columns: Mapping[str, PublishedColumn],
    originals: torch.Tensor,
    outputs: torch.Tensor,
    scorer: PairwiseScorer,
    rng: np.random.Generator,
) -> PublishedScores:
    """Scores of at most ``MOST`` records, drawn by chance. Row i of all is one record, pictures are (N, 3, S, S).

    What scored the release worked on pictures before they were encoded, the attacker has them after it.
    """
    rows = np.sort(rng.choice(len(outputs), min(MAX_RECORDS, len(outputs)), replace=False))
    where = torch.from_numpy(rows)
    across = scorer.score_pairwise(originals[where], outputs[where])
    found = {name: values.double().cpu().numpy() for name, values in across.items()}
    return PublishedScores(
        rows,
        {name: (column.values[rows], column.as_published(found[column.score])) for name, column in columns.items()},
        {name: (-1 if column.score in DISTANCES else 1) * found[column.score] for name, column in columns.items()},
    )
