"""Source linkage: which candidate original is behind each output?

This and every other attack that orders candidates gives a ``Ranking``. Its control asks for a wrong candidate, one of
another person: whatever makes that one come first is no leak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self, Unpack

import numpy as np

from metrics.stats.assignment import assign_by_blocks
from metrics.stats.intervals import Bools, Floats, Names, Numbers, Trials, concatenate
from metrics.stats.risk import Figure, FigureContext, make_figure

RANKS = (1, 5)
NOT_DETECTED = "not detected"
ASSIGNED = "assigned"  # measure: right in a one-to-one assignment of outputs to candidates
BLOCK = 2**22  # similarities held at once; bounds memory


@dataclass(frozen=True)
class Ranking:
    """The rank of the right candidate, for each of N probes.

    ``ranks`` and ``control`` (N,) are 1-based, out of ``candidates`` (N,); a rank above that is a probe that was given
    up. ``seen`` (N,) is false where the probe could not be compared at all (no face detected); ``subjects`` (N,) names
    its person.
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
        """Return as hits the probes whose right candidate is among the first ``k``."""
        return Trials(self.ranks <= k, self.subjects)

    def control_within(self, k: int) -> Trials:
        return Trials(self.control <= k, self.subjects)

    def chance(self, k: int) -> float:
        """Return the hit rate of ``k`` blind guesses."""
        return float(np.minimum(1, k / self.candidates).mean())

    @property
    def unseen(self) -> Trials:
        return Trials(~self.seen, self.subjects)


@dataclass(frozen=True)
class RankDistribution:
    """The ``share`` (P,) of probes whose right candidate is within ``rank`` (P,), with control and chance."""

    rank: Numbers
    share: Floats
    control: Floats
    chance: Floats


def rank_distribution(ranking: Ranking) -> RankDistribution:
    """Return the cumulative match characteristic at ranks 1, 2, 5, 10, 20, 50, ... and at the last one."""
    last = int(ranking.candidates.max())
    steps = [digit * 10**power for power in range(len(str(last))) for digit in (1, 2, 5)]
    at = [step for step in steps if step < last] + [last]
    return RankDistribution(
        np.array(at),
        np.array([ranking.within(k).rate for k in at]),
        np.array([ranking.control_within(k).rate for k in at]),
        np.array([ranking.chance(k) for k in at]),
    )


def ranks(similarity: Floats, truth: Numbers, luck: Floats) -> Numbers:
    """Return the rank (N,), 1-based, of the column ``truth`` (N,) in each row of ``similarity`` (N, M).

    Ties are broken by ``luck`` (N,), uniform in [0, 1). A similarity of -inf or NaN is the lowest there is, so a row
    of NaN is a blind guess. Raises ValueError.
    """
    if similarity.ndim != 2 or truth.shape != similarity.shape[:1]:
        raise ValueError(f"similarity must be (N, M) and truth (N,), got {similarity.shape} and {truth.shape}")
    if truth.size and (truth.min() < 0 or truth.max() >= similarity.shape[1]):
        raise ValueError(f"truth must name one of {similarity.shape[1]} candidates, got {truth.min()} to {truth.max()}")
    lowest = np.where(np.isnan(similarity), -np.inf, similarity)
    right = np.take_along_axis(lowest, truth[:, None], axis=1)
    better, equal = (lowest > right).sum(1), (lowest == right).sum(1)  # equal counts the right one itself
    return np.asarray(1 + better + np.floor(luck * equal).astype(np.int64))


def ranks_with_control(
    similarity: Callable[[slice], Floats], width: int, truth: Numbers, wrong: Numbers, luck: Floats
) -> tuple[Numbers, Numbers]:
    """Return the ranks (N,) of ``truth`` and of ``wrong``, block by block; ``luck`` is (2, N).

    ``similarity(rows)`` gives a block (n, M) that is computed from n x ``width`` values.
    """
    right, control = np.empty(len(truth), np.int64), np.empty(len(truth), np.int64)
    for rows in row_blocks(len(truth), width):
        block = similarity(rows)
        right[rows], control[rows] = ranks(block, truth[rows], luck[0, rows]), ranks(block, wrong[rows], luck[1, rows])
    return right, control


def is_detected(embeddings: Floats) -> Bools:
    """Return which rows (N, D) hold an embedding: those without NaN."""
    return np.asarray(~np.isnan(embeddings).any(axis=1))


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield slices of the rows, so that a block of a (rows, columns) matrix stays small."""
    step = max(1, BLOCK // max(1, columns))
    return (slice(start, start + step) for start in range(0, rows, step))


def draw_other_people(subjects: Names, rng: np.random.Generator, rows: Numbers | None = None) -> Numbers:
    """Return for each of ``rows`` (default: all) a row of another person, drawn uniformly. Raises ValueError."""
    _, person, sizes = np.unique(subjects, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise ValueError("a control needs rows of two persons or more: give subjects that differ")
    people = person if rows is None else person[rows]
    order = np.argsort(person, kind="stable")
    after = np.cumsum(sizes)[people]  # the end of each person's rows in that order
    away = (rng.random(len(people)) * (len(person) - sizes[people])).astype(np.int64)
    return np.asarray(order[(after + away) % len(person)])


def number_within_person(subjects: Names, rng: np.random.Generator) -> Numbers:
    """Number each person's rows from 0 in random order: (N,)."""
    _, person, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    numbers = np.empty(len(subjects), np.int64)
    order = np.lexsort((rng.random(len(subjects)), person))
    numbers[order] = np.arange(len(subjects)) - np.repeat(np.cumsum(counts) - counts, counts)
    return numbers


def draw_across_people(subjects: Names, count: int, rng: np.random.Generator) -> Numbers:
    """Return at most ``count`` rows of as many people as possible: everybody's first, then their second."""
    return np.sort(np.lexsort((rng.random(len(subjects)), number_within_person(subjects, rng)))[:count])


@dataclass(frozen=True)
class Similarity:
    """How alike N outputs and ``candidates`` are: ``blocks(rows)`` (n, M); ``seen`` (N,), see ``Ranking``."""

    blocks: Callable[[slice], Floats]
    candidates: int
    seen: Bools


def cosine_similarity(outputs: Floats, gallery: Floats) -> Similarity:
    """Compare by cosine ``outputs`` (N, D) and ``gallery`` (M, D), embeddings of unit norm.

    A row with NaN was not detected: such an output is a blind guess, such an original comes last. Raises ValueError.
    """
    if outputs.ndim != 2 or gallery.ndim != 2 or outputs.shape[1] != gallery.shape[1]:
        raise ValueError(f"outputs must be (N, D) and gallery (M, D), got {outputs.shape} and {gallery.shape}")
    hidden = ~is_detected(gallery)
    candidates = np.where(hidden[:, None], 0, gallery).T  # (D, M)

    def blocks(rows: slice) -> Floats:
        return np.where(hidden, -np.inf, outputs[rows] @ candidates)

    return Similarity(blocks, len(gallery), is_detected(outputs))


def link(outputs: Floats, gallery: Floats, truth: Numbers, subjects: Names, rng: np.random.Generator) -> Ranking:
    """Rank the originals by cosine similarity to each output: see ``cosine_similarity`` and ``rank``."""
    return rank(cosine_similarity(outputs, gallery), truth, subjects, rng)


def link_by_value(
    outputs: Floats, originals: Floats, truth: Numbers, subjects: Names, rng: np.random.Generator
) -> Ranking:
    """Rank the originals by how near their number is to an output's: file size, time, position, exact score.

    ``outputs`` (N,) and ``originals`` (M,), NaN where there is none. Raises ValueError.
    """
    if outputs.ndim != 1 or originals.ndim != 1:
        raise ValueError(f"outputs must be (N,) and originals (M,), got {outputs.shape} and {originals.shape}")

    def blocks(rows: slice) -> Floats:
        return -np.abs(outputs[rows, None] - originals)

    return rank(Similarity(blocks, len(originals), ~np.isnan(outputs)), truth, subjects, rng)


def link_by_similarity(similarity: Floats, truth: Numbers, subjects: Names, rng: np.random.Generator) -> Ranking:
    """Rank as ``link`` does by any similarity (N, M), such as minus LPIPS; a row of NaN was not detected."""
    return rank(similarity_matrix(similarity), truth, subjects, rng)


def similarity_matrix(values: Floats) -> Similarity:
    """Return the similarities of a matrix (N, M); a row of NaN was not detected."""
    return Similarity(lambda rows: values[rows], values.shape[1], np.asarray(~np.isnan(values).all(axis=1)))


def among_equals(similarity: Similarity, labels: Names) -> Similarity:
    """Compare output i only with originals of its own label; ``labels`` (N,) are of both, row by row."""

    def blocks(rows: slice) -> Floats:
        return np.where(labels[rows, None] == labels, similarity.blocks(rows), -np.inf)

    return replace(similarity, blocks=blocks)


def rank(similarity: Similarity, truth: Numbers, subjects: Names, rng: np.random.Generator) -> Ranking:
    """Rank the candidates of each output, block by block.

    ``truth`` (N,) is the candidate behind each output, ``subjects`` (N,) its person. Raises ValueError.
    """
    seen, candidates = similarity.seen, similarity.candidates
    if not len(truth) == len(subjects) == len(seen):
        raise ValueError(
            f"truth and subjects must be one an output, got {len(truth)} and {len(subjects)} for {len(seen)}"
        )
    wrong, luck = truth[draw_other_people(subjects, rng)], rng.random((2, len(truth)))
    right, control = ranks_with_control(similarity.blocks, candidates, truth, wrong, luck)
    return Ranking(right, control, np.full(len(truth), candidates), seen, subjects)


def assigned_figure(
    similarity: Similarity, truth: Numbers, subjects: Names, rng: np.random.Generator, **context: Unpack[FigureContext]
) -> Figure:
    """Return how often an attacker is right who gives each candidate to one output at most, all outputs together.

    ``truth`` and ``subjects`` as for ``rank``; no candidate is behind two outputs. The control asks for a wrong one.
    The interval counts the people as independent, as that of rank-1 does, though one decision forces another.
    """
    chosen = assign_by_blocks(similarity.blocks, len(truth), similarity.candidates, rng)
    wrong = truth[draw_other_people(subjects, rng)]
    hits, control = Trials(chosen == truth, subjects), Trials(chosen == wrong, subjects)
    context["gallery"] = similarity.candidates
    chance = 1 / similarity.candidates
    return make_figure(hits, rng, measure=ASSIGNED, control=control, chance=chance, **context)


def figures(
    ranking: Ranking, rng: np.random.Generator, at: Sequence[int] = RANKS, **context: Unpack[FigureContext]
) -> list[Figure]:
    """Return rank-1, rank-5, ... with control and chance, and the share of probes that could not be compared."""
    if len(sizes := np.unique(ranking.candidates)) == 1:
        context["gallery"] = int(sizes[0])
    lines = []
    for k in at:
        control, chance = ranking.control_within(k), ranking.chance(k)
        lines.append(
            make_figure(ranking.within(k), rng, measure=f"rank-{k}", control=control, chance=chance, **context)
        )
    return [*lines, make_figure(ranking.unseen, rng, measure=NOT_DETECTED, **context)]
