"""Source linkage: with the originals as candidates, which one is behind each output?

The result of this and of every other attack that orders candidates is a ``Ranking``. Its control asks the same question
about a wrong candidate, one that belongs to another person: whatever makes that one come out first is no leak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, Unpack

import numpy as np
import numpy.typing as npt

from metrics.stats.intervals import concatenate
from metrics.stats.risk import Figure, FigureContext, Trials, make_figure

RANKS = (1, 5)
NOT_DETECTED = "not detected"
BLOCK = 2**22  # similarities held at once; bounds memory

Floats = npt.NDArray[np.floating[Any]]
Numbers = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
Names = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Ranking:
    """At which place the right candidate came, for each of N probes.

    ``ranks`` and ``control`` (N,) are 1-based; ``candidates`` (N,) says out of how many; ``seen`` (N,) is false where
    the probe could not be compared at all (no face was detected); ``subjects`` (N,) whose each probe is. A rank above
    ``candidates`` is a probe that was given up.
    """

    ranks: Numbers
    control: Numbers
    candidates: Numbers
    seen: Bools
    subjects: Names

    def __post_init__(self) -> None:
        shapes = {getattr(self, field.name).shape for field in fields(self)}
        if len(shapes) != 1 or self.ranks.ndim != 1:
            raise ValueError(f"all columns of a ranking must be (N,), got {sorted(shapes)}")

    def __add__(self, other: Self) -> Self:
        return concatenate(self, other)

    def __len__(self) -> int:
        return len(self.ranks)

    def within(self, k: int) -> Trials:
        """Hits: the right candidate is among the first ``k``."""
        return Trials(self.ranks <= k, self.subjects)

    def control_within(self, k: int) -> Trials:
        return Trials(self.control <= k, self.subjects)

    def chance(self, k: int) -> float:
        """What blind guessing hits with ``k`` guesses."""
        return float(np.minimum(1, k / self.candidates).mean())

    @property
    def unseen(self) -> Trials:
        return Trials(~self.seen, self.subjects)


@dataclass(frozen=True)
class RankDistribution:
    """How the ranks spread: ``share`` (P,) of probes whose right candidate is within ``rank`` (P,), beside chance."""

    rank: Numbers
    share: Floats
    control: Floats
    chance: Floats


def rank_distribution(ranking: Ranking) -> RankDistribution:
    """The cumulative match characteristic at ranks 1, 2, 5, 10, 20, 50, ... and at the last one."""
    last = int(ranking.candidates.max())
    steps = [digit * 10**power for power in range(len(str(last))) for digit in (1, 2, 5)]
    at = [step for step in steps if step < last] + [last]
    return RankDistribution(
        np.array(at),
        np.array([ranking.within(k).rate for k in at]),
        np.array([ranking.control_within(k).rate for k in at]),
        np.array([ranking.chance(k) for k in at]),
    )


def ranks(similarity: Floats, truth: Numbers, rng: np.random.Generator) -> Numbers:
    """Where the right candidate comes: similarity (N, M) and its column ``truth`` (N,) to ranks (N,), 1-based.

    Ties are broken at random. A similarity of -inf or NaN is the lowest there is, so a row that is all NaN is a blind
    guess. Raises ValueError.
    """
    return _ranks(similarity, truth, rng.random(len(truth)))


def _ranks(similarity: Floats, truth: Numbers, luck: Floats) -> Numbers:
    if similarity.ndim != 2 or truth.shape != similarity.shape[:1]:
        raise ValueError(f"similarity must be (N, M) and truth (N,), got {similarity.shape} and {truth.shape}")
    if truth.size and (truth.min() < 0 or truth.max() >= similarity.shape[1]):
        raise ValueError(f"truth must name one of {similarity.shape[1]} candidates, got {truth.min()} to {truth.max()}")
    lowest = np.where(np.isnan(similarity), -np.inf, similarity)
    right = np.take_along_axis(lowest, truth[:, None], axis=1)
    better, equal = (lowest > right).sum(1), (lowest == right).sum(1)  # equal counts the right one itself
    found: Numbers = 1 + better + np.floor(luck * equal).astype(np.int64)
    return found


def is_detected(embeddings: Floats) -> Bools:
    """Rows (N, D) that hold an embedding: no NaN in them."""
    found: Bools = np.asarray(~np.isnan(embeddings).any(axis=1))
    return found


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices of the rows, so that a block of the (rows, columns) matrix stays small."""
    step = max(1, BLOCK // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def draw_other_people(subjects: Names, rng: np.random.Generator, rows: Numbers | None = None) -> Numbers:
    """For each of the ``rows`` (all, unless told) a row of another person, drawn uniformly. Raises ValueError."""
    _, person, sizes = np.unique(subjects, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise ValueError("a control needs rows of two persons or more: give subjects that differ")
    whose = person if rows is None else person[rows]
    order = np.argsort(person, kind="stable")
    after = np.cumsum(sizes)[whose]  # where, in that order, the rows of a person end
    away = (rng.random(len(whose)) * (len(person) - sizes[whose])).astype(np.int64)
    drawn: Numbers = order[(after + away) % len(person)]
    return drawn


def number_within_person(subjects: Names, rng: np.random.Generator) -> Numbers:
    """Which of its person's rows each row is, from 0, in an order drawn by chance: (N,)."""
    _, person, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    found = np.empty(len(subjects), np.int64)
    order = np.lexsort((rng.random(len(subjects)), person))
    found[order] = np.arange(len(subjects)) - np.repeat(np.cumsum(counts) - counts, counts)
    return found


def draw_across_people(subjects: Names, count: int, rng: np.random.Generator) -> Numbers:
    """At most ``most`` rows of as many people as there are: everybody's first, then their second."""
    return np.sort(np.lexsort((rng.random(len(subjects)), number_within_person(subjects, rng)))[:count])


def link(outputs: Floats, gallery: Floats, truth: Numbers, subjects: Names, rng: np.random.Generator) -> Ranking:
    """Rank the originals by cosine similarity to each output, block by block.

    ``outputs`` (N, D) and ``gallery`` (M, D) are unit-norm embeddings; a row with NaN was not detected: such an output
    is a blind guess, such an original comes last. ``truth`` (N,) is the row of the gallery behind each output,
    ``subjects`` (N,) its person. Raises ValueError.
    """
    if outputs.ndim != 2 or gallery.ndim != 2 or outputs.shape[1] != gallery.shape[1]:
        raise ValueError(f"outputs must be (N, D) and gallery (M, D), got {outputs.shape} and {gallery.shape}")
    hidden = ~is_detected(gallery)
    candidates = np.where(hidden[:, None], 0, gallery).T  # (D, M)

    def similarity(rows: slice) -> Floats:
        found: Floats = outputs[rows] @ candidates
        found[:, hidden] = -np.inf
        return found

    return _link(similarity, len(gallery), truth, subjects, is_detected(outputs), rng)


def link_by_value(
    outputs: Floats, originals: Floats, truth: Numbers, subjects: Names, rng: np.random.Generator
) -> Ranking:
    """Rank the originals by how near their one number is to an output's: file size, time, position, exact score.

    ``outputs`` (N,) and ``originals`` (M,), NaN where there is none. Raises ValueError.
    """
    if outputs.ndim != 1 or originals.ndim != 1:
        raise ValueError(f"outputs must be (N,) and originals (M,), got {outputs.shape} and {originals.shape}")

    def similarity(rows: slice) -> Floats:
        found: Floats = -np.abs(outputs[rows, None] - originals)
        return found

    return _link(similarity, len(originals), truth, subjects, ~np.isnan(outputs), rng)


def link_by_similarity(similarity: Floats, truth: Numbers, subjects: Names, rng: np.random.Generator) -> Ranking:
    """As ``link``, from any similarity (N, M), for example minus LPIPS; a row of NaN was not detected."""
    seen: Bools = np.asarray(~np.isnan(similarity).all(axis=1))
    return _link(lambda rows: similarity[rows], similarity.shape[1], truth, subjects, seen, rng)


def _link(
    similarity: Callable[[slice], Floats],
    candidates: int,
    truth: Numbers,
    subjects: Names,
    seen: Bools,
    rng: np.random.Generator,
) -> Ranking:
    """``similarity(rows)`` gives a block (n, M)."""
    if not len(truth) == len(subjects) == len(seen):
        raise ValueError(
            f"truth and subjects must be one an output, got {len(truth)} and {len(subjects)} for {len(seen)}"
        )
    wrong, luck = truth[draw_other_people(subjects, rng)], rng.random((2, len(truth)))
    found, control = np.empty(len(truth), np.int64), np.empty(len(truth), np.int64)
    for rows in row_blocks(len(truth), candidates):
        block = similarity(rows)
        found[rows] = _ranks(block, truth[rows], luck[0, rows])
        control[rows] = _ranks(block, wrong[rows], luck[1, rows])
    return Ranking(found, control, np.full(len(truth), candidates), seen, subjects)


def figures(
    ranking: Ranking, rng: np.random.Generator, at: Sequence[int] = RANKS, **described: Unpack[FigureContext]
) -> list[Figure]:
    """Rank-1, rank-5, ... beside control and chance, and the share of probes that could not be compared."""
    if len(sizes := np.unique(ranking.candidates)) == 1:
        described["gallery"] = int(sizes[0])
    lines = [
        make_figure(
            ranking.within(k),
            rng,
            measure=f"rank-{k}",
            control=ranking.control_within(k),
            chance=ranking.chance(k),
            **described,
        )
        for k in at
    ]
    return [*lines, make_figure(ranking.unseen, rng, measure=NOT_DETECTED, **described)]
