"""Re-identification: with other photos of the same people, whose picture is this output?

Closed set, open set and verification, in the terms of ISO/IEC 19795 and NIST's FRVT 1:N. Each threshold is set on
unmodified pictures of the data at hand, never taken from a library. A probe on which no face is detected is not
identified, and is counted as such (``seen``): it is not protected, this recogniser has nothing to say about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, Unpack

import numpy as np

from metrics.attacks.linkage import (
    NOT_DETECTED,
    Bools,
    Floats,
    Names,
    Numbers,
    Ranking,
    draw_other_people,
    is_detected,
    ranks,
    row_blocks,
)
from metrics.stats.risk import Figure, FigureContext, Trials, make_figure
from metrics.stats.roc import threshold_at

FPIRS = (0.1, 0.01)
FMRS = (1e-2, 1e-3)
MAX_IMPOSTOR_PAIRS = 2_000_000  # pairs; of more, as many are drawn


@dataclass(frozen=True)
class Faces:
    """Embeddings (N, D) of unit norm, NaN where no face was detected, and whose they are, ``identities`` (N,)."""

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
    """Decisions at thresholds that let through a share ``at`` (F,) of impostors.

    ``hits`` (N, F): the right person was accepted; ``control`` (N, F): a wrong one was; ``seen`` (N,); ``subjects``
    (N,); ``candidates`` (N,) how many persons each probe was searched among, 1 in a verification; ``impostors`` the
    comparisons that the thresholds rest on (with fewer than 1 / at there is none, and nobody is accepted).
    """

    at: tuple[float, ...]
    hits: Bools
    control: Bools
    seen: Bools
    subjects: Names
    candidates: Numbers
    impostors: int

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
    """``photos`` of each person, drawn by ``rng`` or else the first; those with a detected face before the others.

    Of a person with fewer, all are taken. Raises ValueError.
    """
    if photos < 1:
        raise ValueError(f"photos must be at least 1 a person, got {photos}")
    luck = np.arange(len(faces)) if rng is None else rng.permutation(len(faces))
    order = np.lexsort((luck, ~faces.seen, faces.identities))
    people, first = np.unique(faces.identities[order], return_index=True)
    place = np.arange(len(order)) - first[np.searchsorted(people, faces.identities[order])]
    return faces[order[place < photos]]


def person_scores(probes: Floats, gallery: Faces, people: Names) -> Floats:
    """Probes (N, D) to (N, P): the best cosine similarity over each person's photos; -inf where a face is missing.

    ``people`` (P,) are sorted and hold all of the gallery's.
    """
    found = np.full((len(probes), len(people)), -np.inf)
    seen, usable = np.flatnonzero(is_detected(probes)), gallery[gallery.seen]
    if len(usable):
        usable = usable[np.argsort(usable.identities, kind="stable")]
        present, starts = np.unique(usable.identities, return_index=True)
        each = probes[seen] @ usable.embeddings.T  # (N, M)
        found[np.ix_(seen, np.searchsorted(people, present))] = np.maximum.reduceat(each, starts, axis=1)
    return found


def closed_set(probes: Faces, gallery: Faces, rng: np.random.Generator) -> Ranking:
    """At which place the right person comes; a probe without a face is given up (its rank is beyond the last).

    The control looks for a wrong person, as if the gallery's names had been dealt out anew. Raises ValueError.
    """
    people, truth = _check_gallery(probes, gallery)
    wrong = (truth + rng.integers(1, len(people), len(probes))) % len(people)
    luck, seen = rng.spawn(2), probes.seen
    found, control = np.empty(len(probes), np.int64), np.empty(len(probes), np.int64)
    for rows in row_blocks(len(probes), len(gallery)):
        scores = person_scores(probes.embeddings[rows], gallery, people)
        found[rows], control[rows] = ranks(scores, truth[rows], luck[0]), ranks(scores, wrong[rows], luck[1])
    found[~seen] = control[~seen] = len(people) + 1
    return Ranking(found, control, np.full(len(probes), len(people)), seen, probes.identities)


def _check_gallery(probes: Faces, gallery: Faces) -> tuple[Names, Numbers]:
    """The gallery's people, sorted, and each probe's among them."""
    people = np.unique(gallery.identities)
    unknown = np.setdiff1d(probes.identities, people)
    if len(unknown):
        raise ValueError(f"gallery lacks {len(unknown)} of the probes' people: leave their probes out or add photos")
    if len(people) < 2:
        raise ValueError(f"gallery must hold two people or more, got {len(people)}")
    return people, np.searchsorted(people, probes.identities)


def set_thresholds(impostors: Floats, at: Sequence[float]) -> Floats:
    """The scores (F,) above which a share ``at`` of impostors (N,) lies; infinite where N is below 1 / at.

    Raises ValueError without an impostor.
    """
    if not len(impostors):
        raise ValueError("impostors are empty: a threshold needs unmodified pictures of two people or more")
    return np.array([threshold_at(impostors, rate) if is_measurable(len(impostors), rate) else np.inf for rate in at])


def is_measurable(impostors: int, rate: float) -> bool:
    """Whether so many comparisons can show one false alarm at this rate."""
    return impostors * rate >= 1 - 1e-9


def open_set(
    probes: Faces, unmodified: Faces, gallery: Faces, rng: np.random.Generator, at: Sequence[float] = FPIRS
) -> Decisions:
    """TPIR at fixed FPIRs: the right person comes first *and* above the threshold.

    Half of the people, drawn by ``rng``, are enrolled; ``unmodified`` pictures of the other half are the non-mated
    searches that set the threshold. Then the halves change places, so that each probe is tried once. The control asks
    how often the first above the threshold is a wrong person who was named beforehand. Raises ValueError.
    """
    people, _ = _check_gallery(probes, gallery)
    if len(people) < 4:
        raise ValueError(f"gallery must hold four people or more for an open set, got {len(people)}")
    drawn = rng.permutation(people)
    first, second = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
    one, other = (_open_half(probes, unmodified, gallery, half, rng, tuple(at)) for half in (first, second))
    return one + other


def _open_half(
    probes: Faces, unmodified: Faces, gallery: Faces, half: Names, rng: np.random.Generator, at: tuple[float, ...]
) -> Decisions:
    people = np.sort(half)
    enrolled = gallery[np.isin(gallery.identities, people)]
    mated = probes[np.isin(probes.identities, people)]
    strange = unmodified[~np.isin(unmodified.identities, people) & unmodified.seen]
    nonmated = _best_match(strange, enrolled, people)[0]
    score, best = _best_match(mated, enrolled, people)
    truth = np.searchsorted(people, mated.identities)
    wrong = (truth + rng.integers(1, len(people), len(mated))) % len(people)
    limits = set_thresholds(nonmated, at)
    above = score[:, None] > limits  # (N, F)
    right, named = (best == truth)[:, None], (best == wrong)[:, None]
    candidates = np.full(len(mated), len(people))
    return Decisions(at, above & right, above & named, mated.seen, mated.identities, candidates, len(nonmated))


def _best_match(probes: Faces, gallery: Faces, people: Names) -> tuple[Floats, Numbers]:
    """The best score (N,) and whose it is (N,), block by block."""
    score, best = np.empty(len(probes)), np.empty(len(probes), np.int64)
    for rows in row_blocks(len(probes), len(gallery)):
        scores = person_scores(probes.embeddings[rows], gallery, people)
        score[rows], best[rows] = scores.max(axis=1), scores.argmax(axis=1)
    return score, best


def verification(
    probes: Faces, unmodified: Faces, gallery: Faces, rng: np.random.Generator, at: Sequence[float] = FMRS
) -> Decisions:
    """TMR at fixed FMRs, over all pairs of a probe and a gallery photo of the same person.

    Impostor pairs are an ``unmodified`` picture and a gallery photo of another person. The control gives each pair a
    photo of another person instead. Raises ValueError.
    """
    _check_gallery(probes, gallery)
    impostors = _impostor_scores(unmodified, gallery, rng)
    limits = set_thresholds(impostors, at)
    probe, photo = _genuine_pairs(probes.identities, gallery.identities)
    other = draw_other_people(gallery.identities, rng, photo)

    def accepted(photos: Numbers) -> Bools:
        found: Bools = _pair_scores(probes, probe, gallery, photos)[:, None] > limits
        return found

    subjects, ones = probes.identities[probe], np.ones(len(probe), np.int64)
    return Decisions(tuple(at), accepted(photo), accepted(other), probes.seen[probe], subjects, ones, len(impostors))


def _genuine_pairs(left: Names, right: Names) -> tuple[Numbers, Numbers]:
    """All pairs of rows of the same person."""
    order = np.argsort(right, kind="stable")
    start, stop = (np.searchsorted(right[order], left, side) for side in ("left", "right"))
    which = np.repeat(np.arange(len(left)), stop - start)
    step = np.arange(len(which)) - np.repeat(np.cumsum(stop - start) - (stop - start), stop - start)
    return which, order[start[which] + step]


def _pair_scores(left: Faces, i: Numbers, right: Faces, j: Numbers) -> Floats:
    """Cosine similarities (K,) of pairs of rows, -inf where a face is missing; block by block."""
    found = np.empty(len(i))
    for rows in row_blocks(len(i), left.embeddings.shape[1]):
        found[rows] = np.einsum("nd,nd->n", left.embeddings[i[rows]], right.embeddings[j[rows]])
    return np.where(np.isnan(found), -np.inf, found)


def _impostor_scores(unmodified: Faces, gallery: Faces, rng: np.random.Generator) -> Floats:
    """Similarities of pairs of different people, all of them or as many as memory allows."""
    left, right = unmodified[unmodified.seen], gallery[gallery.seen]
    total = len(left) * len(right)
    drawn = np.arange(total) if total <= MAX_IMPOSTOR_PAIRS else rng.integers(0, total, MAX_IMPOSTOR_PAIRS)
    i, j = np.divmod(drawn, max(1, len(right)))
    different = left.identities[i] != right.identities[j]
    return _pair_scores(left, i[different], right, j[different])


def figures(accepted: Decisions, rng: np.random.Generator, **described: Unpack[FigureContext]) -> list[Figure]:
    """TPIR or TMR at each rate beside its control, and the share of probes (or of their pairs) without a face.

    Of a closed set, see ``linkage.figures``. Chance is what the
    thresholds let through, times the chance that it is the right person.
    """
    persons = np.unique(accepted.candidates)
    searched = bool((accepted.candidates > 1).any())
    if searched and len(persons) == 1:
        described["gallery"] = int(persons[0])
    name, chance = ("TPIR at FPIR", 1 / accepted.candidates.mean()) if searched else ("TMR at FMR", 1.0)
    lines = []
    for at in accepted.at:
        trials, measure = accepted.trials(at), f"{name} {at:g}"
        if is_measurable(accepted.impostors, at):
            control = accepted.control_trials(at)
            lines.append(make_figure(trials, rng, measure=measure, control=control, chance=at * chance, **described))
        else:
            note = f"too few: thresholds rest on {accepted.impostors} impostor comparisons, {1 / at:g} are needed"
            lines.append(Figure(measure=measure, n=len(trials), subjects=trials.people, note=note, **described))
    return [*lines, make_figure(accepted.unseen, rng, measure=NOT_DETECTED, **described)]
