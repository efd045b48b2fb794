"""Averaging: several outputs of one original add up what they have in common (after ReDiffuse, arXiv 2405.20771)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self, Unpack

import numpy as np

from metrics.attacks import linkage
from metrics.attacks.linkage import RANKS, Ranking, is_detected
from metrics.stats.intervals import Floats
from metrics.stats.risk import Figure, FigureContext

OUTPUT_COUNTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class AveragedRankings:
    """The ranking of the average of k outputs, by k."""

    rankings: Mapping[int, Ranking]

    def __add__(self, other: Self) -> Self:
        if self.rankings.keys() != other.rankings.keys():
            raise ValueError(f"k must be equal to merge, got {sorted(self.rankings)} and {sorted(other.rankings)}")
        return type(self)({k: ranking + other.rankings[k] for k, ranking in self.rankings.items()})


def average(embeddings: Floats, k: int) -> Floats:
    """Return the normalised mean of the first ``k`` of K outputs: (N, K, D) to (N, D).

    Outputs that were not detected (NaN) are left out; a row without a detected one stays NaN. Raises ValueError.
    """
    if embeddings.ndim != 3 or not 1 <= k <= embeddings.shape[1]:
        raise ValueError(f"embeddings must be (N, K, D) and k in 1..K, got {embeddings.shape} and {k}")
    first = embeddings[:, :k]
    seen = is_detected(first.reshape(-1, first.shape[-1])).reshape(first.shape[:2])  # (N, k)
    total = np.where(seen[..., None], first, 0).sum(axis=1)
    norm = np.linalg.norm(total, axis=-1, keepdims=True)
    return np.asarray(np.divide(total, norm, out=np.full_like(total, np.nan), where=norm > 0))


def attack_averages(
    embeddings: Floats, attack: Callable[[Floats], Ranking], counts: Sequence[int] = OUTPUT_COUNTS
) -> AveragedRankings:
    """Run ``attack``, such as linkage with a fixed gallery, on averages of k outputs, for each of ``counts`` up to K.

    ``embeddings`` (N, K, D) of unit norm, rows of NaN where nothing was detected.
    """
    if embeddings.ndim != 3:
        raise ValueError(f"embeddings must be (N, K, D), got {embeddings.shape}")
    return AveragedRankings({k: attack(average(embeddings, k)) for k in counts if k <= embeddings.shape[1]})


def figures(
    averaged: AveragedRankings, rng: np.random.Generator, ranks: Sequence[int] = RANKS, **context: Unpack[FigureContext]
) -> list[Figure]:
    """Return the figures of ``linkage.figures`` for each k."""
    lines: list[Figure] = []
    for k, ranking in averaged.rankings.items():
        context["outputs"] = k
        lines += linkage.figures(ranking, rng, ranks, **context)
    return lines
