"""Published scores as a leak: an attacker who holds the originals scores outputs against all of them and compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from metrics.stats.intervals import Floats, Numbers

MAX_RECORDS = 100  # all pairs of them are scored
DISTANCES = ("lpips",)  # scores that are smaller where images are more alike


@dataclass(frozen=True)
class PublishedColumn:
    """A column of the manifest that publishes a score."""

    score: str
    values: Floats  # (N,), NaN where there is none
    rounding: Callable[[float], float] | None = None  # of a score to the published number; None: exact

    def as_published(self, values: Floats) -> Floats:
        """Round scores of any shape as in publication."""
        if self.rounding is None:
            return values
        return np.array([self.rounding(value) for value in values.ravel().tolist()]).reshape(values.shape)


class PairwiseScorer(Protocol):
    def score_pairwise(self, originals: torch.Tensor, outputs: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the scores (N, M) of N outputs against M originals, by the name of the score."""


@dataclass(frozen=True)
class PublishedScores:
    """The columns of the manifest that publish a score, of the records ``rows`` (n,).

    ``scores``: the published score of each output (n,), NaN where there is none, and the attacker's of each output
    against each original (n, n), rounded alike. ``similarity`` (n, n): the attacker's without the manifest.
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
    """Score at most ``MAX_RECORDS`` records, drawn at random; row i of all is one record, images are (N, 3, S, S).

    The release was scored before images were encoded; the attacker has them decoded.
    """
    rows = np.sort(rng.choice(len(outputs), min(MAX_RECORDS, len(outputs)), replace=False))
    index = torch.from_numpy(rows)
    pairwise = scorer.score_pairwise(originals[index], outputs[index])
    recomputed = {name: values.double().cpu().numpy() for name, values in pairwise.items()}
    scores, similarity = {}, {}
    for name, column in columns.items():
        own = recomputed[column.score]
        scores[name] = column.values[rows], column.as_published(own)
        similarity[name] = -own if column.score in DISTANCES else own
    return PublishedScores(rows, scores, similarity)
