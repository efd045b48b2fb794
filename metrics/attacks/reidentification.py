"""Re-identification: with other photos of the same people, who is on this output?

Closed set, open set and verification, in the terms of ISO/IEC 19795 and NIST's FRVT 1:N. Thresholds are set on
unmodified images of the data at hand, never taken from a library. A probe without a detected face is not identified,
and is counted as such (``seen``): it is not protected, the recogniser just has nothing to say about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, Unpack

import numpy as np

from metrics.attacks.linkage import (
    NOT_DETECTED,
    Ranking,
    draw_other_people,
    is_detected,
    ranks_with_control,
    row_blocks,
)
from metrics.stats.intervals import Bools, Floats, Names, Numbers, Trials
from metrics.stats.risk import Figure, FigureContext, make_figure
from metrics.stats.roc import threshold_at

FPIRS = (0.1, 0.01)
FMRS = (1e-2, 1e-3)
MAX_IMPOSTOR_PAIRS = 2_000_000  # of more pairs, as many are drawn


@dataclass(frozen=True)
class Faces:
    """Embeddings (N, D) of unit norm, NaN where no face was detected, and their people, ``identities`` (N,)."""

    embeddings: Floats
    identities: Names

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or self.identities.shape != self.embeddings.shape[:1]:
            shapes = f"{self.embeddings.shape} and {self.identities.shape}"
            raise ValueError(f"embeddings must be (N, D) and identities (N,), got {shapes}")

    def __getitem__(self, rows: Any) -> Faces:
        return Faces(self.embeddings[rows], self.identities[rows])

    def __len__(self) -> int:
        return len(self.identities)

    @property
    def seen(self) -> Bools:
        return is_detected(self.embeddings)


@dataclass(frozen=True)
class Decisions:
    """Decisions on N probes at F thresholds."""

    at: tuple[float, ...]  # (F,) shares of impostors that the thresholds accept
    hits: Bools  # (N, F): the right person was accepted
    control: Bools  # (N, F): a wrong one was
    seen: Bools  # (N,)
    subjects: Names  # (N,)
    candidates: Numbers  # (N,) persons that each probe was searched among, 1 in a verification
    impostors: int  # comparisons behind the thresholds; fewer than 1 / at allow none, and nobody is accepted

    def __add__(self, other: Self) -> Self:
        if self.at != other.at:
            raise ValueError(f"at must be equal to merge, got {self.at} and {other.at}")
        columns = ("hits", "control", "seen", "subjects", "candidates")
        merged = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in columns}
        return type(self)(self.at, impostors=min(self.impostors, other.impostors), **merged)

    def __len__(self) -> int:
        return len(self.subjects)

    def trials(self, at: float) -> Trials:
        return Trials(self.hits[:, self.at.index(at)], self.subjects)

    def control_trials(self, at: float) -> Trials:
        return Trials(self.control[:, self.at.index(at)], self.subjects)

    @property
    def unseen(self) -> Trials:
        return Trials(~self.seen, self.subjects)


def enrol(faces: Faces, photos: int, rng: np.random.Generator | None = None) -> Faces:
    """Return ``photos`` of each person, drawn by ``rng`` or else the first; detected faces before others.

    Of a person with fewer, all are taken. Raises ValueError.
    """
    if photos < 1:
        raise ValueError(f"photos must be at least 1 a person, got {photos}")
    luck = np.arange(len(faces)) if rng is None else rng.permutation(len(faces))
    order = np.lexsort((luck, ~faces.seen, faces.identities))
    people, first = np.unique(faces.identities[order], return_index=True)
    number = np.arange(len(order)) - first[np.searchsorted(people, faces.identities[order])]
    return faces[order[number < photos]]


def person_scores(probes: Floats, gallery: Faces, people: Names) -> Floats:
    """Return the best cosine similarity of probes (N, D) over each person's photos: (N, P), -inf where not detected.

    ``people`` (P,) are sorted and include the gallery's.
    """
    scores = np.full((len(probes), len(people)), -np.inf)
    seen, usable = np.flatnonzero(is_detected(probes)), gallery[gallery.seen]
    if len(usable):
        usable = usable[np.argsort(usable.identities, kind="stable")]
        present, starts = np.unique(usable.identities, return_index=True)
        similarity = probes[seen] @ usable.embeddings.T  # (N, M)
        columns = np.searchsorted(people, present)
        scores[np.ix_(seen, columns)] = np.maximum.reduceat(similarity, starts, axis=1)
    return scores


def closed_set(probes: Faces, gallery: Faces, rng: np.random.Generator) -> Ranking:
    """Rank the people of the gallery for each probe; a probe without a face is given up (its rank is beyond the last).

    The control looks for a wrong person, as if the gallery's names had been permuted. Raises ValueError.
    """
    people, truth = _check_gallery(probes, gallery)
    wrong = _draw_wrong(truth, len(people), rng)
    luck, seen = np.stack([generator.random(len(probes)) for generator in rng.spawn(2)]), probes.seen

    def scores(rows: slice) -> Floats:
        return person_scores(probes.embeddings[rows], gallery, people)

    right, control = ranks_with_control(scores, len(gallery), truth, wrong, luck)
    right[~seen] = control[~seen] = len(people) + 1
    return Ranking(right, control, np.full(len(probes), len(people)), seen, probes.identities)


def _check_gallery(probes: Faces, gallery: Faces) -> tuple[Names, Numbers]:
    """Return the gallery's people, sorted, and the position of each probe's among them. Raises ValueError."""
    people = np.unique(gallery.identities)
    unknown = np.setdiff1d(probes.identities, people)
    if len(unknown):
        raise ValueError(f"gallery lacks {len(unknown)} of the probes' people: leave their probes out or add photos")
    if len(people) < 2:
        raise ValueError(f"gallery must hold two people or more, got {len(people)}")
    return people, np.searchsorted(people, probes.identities)


def _draw_wrong(truth: Numbers, people: int, rng: np.random.Generator) -> Numbers:
    return np.asarray((truth + rng.integers(1, people, len(truth))) % people)


def set_thresholds(impostors: Floats, at: Sequence[float]) -> Floats:
    """Return the scores (F,) above which a share ``at`` of impostors (N,) lies; infinite where N is below 1 / at.

    Raises ValueError without an impostor.
    """
    if not len(impostors):
        raise ValueError("impostors are empty: a threshold needs unmodified pictures of two people or more")
    return np.array([threshold_at(impostors, rate) if is_measurable(len(impostors), rate) else np.inf for rate in at])


def is_measurable(impostors: int, rate: float) -> bool:
    """Return whether this many comparisons can show one false alarm at this rate."""
    return impostors * rate >= 1 - 1e-9


def open_set(
    probes: Faces, unmodified: Faces, gallery: Faces, rng: np.random.Generator, at: Sequence[float] = FPIRS
) -> Decisions:
    """Decide at fixed FPIRs (for TPIR): the right person comes first and above the threshold.

    Half of the people, drawn by ``rng``, are enrolled; ``unmodified`` images of the other half are the non-mated
    searches that set the threshold. Then the halves change places, so that each probe is searched once. The control
    counts how often the first above the threshold is a wrong person named beforehand. Raises ValueError.
    """
    people, _ = _check_gallery(probes, gallery)
    if len(people) < 4:
        raise ValueError(f"gallery must hold four people or more for an open set, got {len(people)}")
    drawn = rng.permutation(people)
    halves = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    first, second = (_open_half(probes, unmodified, gallery, np.sort(half), rng, tuple(at)) for half in halves)
    return first + second


def _open_half(
    probes: Faces, unmodified: Faces, gallery: Faces, people: Names, rng: np.random.Generator, at: tuple[float, ...]
) -> Decisions:
    enrolled = gallery[np.isin(gallery.identities, people)]
    mated = probes[np.isin(probes.identities, people)]
    nonmated = unmodified[~np.isin(unmodified.identities, people) & unmodified.seen]
    impostors = _best_match(nonmated, enrolled, people)[0]
    score, best = _best_match(mated, enrolled, people)
    truth = np.searchsorted(people, mated.identities)
    wrong = _draw_wrong(truth, len(people), rng)
    above = score[:, None] > set_thresholds(impostors, at)  # (N, F)
    hits, control = above & (best == truth)[:, None], above & (best == wrong)[:, None]
    candidates = np.full(len(mated), len(people))
    return Decisions(at, hits, control, mated.seen, mated.identities, candidates, len(impostors))


def _best_match(probes: Faces, gallery: Faces, people: Names) -> tuple[Floats, Numbers]:
    """Return the best score (N,) and the position of its person (N,), block by block."""
    score, best = np.empty(len(probes)), np.empty(len(probes), np.int64)
    for rows in row_blocks(len(probes), len(gallery)):
        scores = person_scores(probes.embeddings[rows], gallery, people)
        score[rows], best[rows] = scores.max(axis=1), scores.argmax(axis=1)
    return score, best


def verification(
    probes: Faces, unmodified: Faces, gallery: Faces, rng: np.random.Generator, at: Sequence[float] = FMRS
) -> Decisions:
    """Decide at fixed FMRs (for TMR), over all pairs of a probe and a gallery photo of the same person.

    Impostor pairs are an ``unmodified`` image and a gallery photo of another person. The control gives each pair a
    photo of another person instead. Raises ValueError.
    """
    _check_gallery(probes, gallery)
    impostors = _impostor_scores(unmodified, gallery, rng)
    limits = set_thresholds(impostors, at)
    probe, photo = _genuine_pairs(probes.identities, gallery.identities)
    other = draw_other_people(gallery.identities, rng, photo)
    hits, control = (_pair_scores(probes, probe, gallery, photos)[:, None] > limits for photos in (photo, other))
    subjects, candidates = probes.identities[probe], np.ones(len(probe), np.int64)
    return Decisions(tuple(at), hits, control, probes.seen[probe], subjects, candidates, len(impostors))


def _genuine_pairs(left: Names, right: Names) -> tuple[Numbers, Numbers]:
    """Return all pairs of rows of the same person."""
    order = np.argsort(right, kind="stable")
    start, stop = (np.searchsorted(right[order], left, side) for side in ("left", "right"))
    counts = stop - start
    rows = np.repeat(np.arange(len(left)), counts)
    step = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, order[start[rows] + step]


def _pair_scores(left: Faces, i: Numbers, right: Faces, j: Numbers) -> Floats:
    """Return cosine similarities (K,) of pairs of rows, -inf where a face is missing, block by block."""
    scores = np.empty(len(i))
    for rows in row_blocks(len(i), left.embeddings.shape[1]):
        scores[rows] = np.einsum("nd,nd->n", left.embeddings[i[rows]], right.embeddings[j[rows]])
    return np.where(np.isnan(scores), -np.inf, scores)


def _impostor_scores(unmodified: Faces, gallery: Faces, rng: np.random.Generator) -> Floats:
    """Return similarities of pairs of different people, all of them or at most ``MAX_IMPOSTOR_PAIRS``."""
    left, right = unmodified[unmodified.seen], gallery[gallery.seen]
    total = len(left) * len(right)
    drawn = np.arange(total) if total <= MAX_IMPOSTOR_PAIRS else rng.integers(0, total, MAX_IMPOSTOR_PAIRS)
    i, j = np.divmod(drawn, max(1, len(right)))
    different = left.identities[i] != right.identities[j]
    return _pair_scores(left, i[different], right, j[different])


def figures(decisions: Decisions, rng: np.random.Generator, **context: Unpack[FigureContext]) -> list[Figure]:
    """Return TPIR or TMR at each rate with its control, and the share of probes (or of their pairs) without a face.

    Chance is the share that the thresholds accept, times the chance that it is the right person. For a closed set, see
    ``linkage.figures``.
    """
    persons = np.unique(decisions.candidates)
    is_search = bool((persons > 1).any())
    if is_search and len(persons) == 1:
        context["gallery"] = int(persons[0])
    name, chance = ("TPIR at FPIR", 1 / decisions.candidates.mean()) if is_search else ("TMR at FMR", 1.0)
    lines = []
    for at in decisions.at:
        trials, measure = decisions.trials(at), f"{name} {at:g}"
        if is_measurable(decisions.impostors, at):
            control = decisions.control_trials(at)
            lines.append(make_figure(trials, rng, measure=measure, control=control, chance=at * chance, **context))
        else:
            note = f"too few: thresholds rest on {decisions.impostors} impostor comparisons, {1 / at:g} are needed"
            lines.append(Figure(measure=measure, n=len(trials), subjects=trials.people, note=note, **context))
    return [*lines, make_figure(decisions.unseen, rng, measure=NOT_DETECTED, **context)]
