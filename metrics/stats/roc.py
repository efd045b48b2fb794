"""Attacks that score: how well scores tell members from others, at every threshold and at rare false alarms.

Membership, verification and open-set search end here. Higher scores mean "member".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from metrics.stats.intervals import small_sample_factor
from metrics.stats.risk import (
    CONFIDENCE,
    Estimate,
    Figure,
    FigureContext,
    Trials,
    make_figure,
    rule_of_three,
    too_few,
    with_note,
)

FPRS = (0.01, 0.001)

Floats = npt.NDArray[np.floating[Any]]
Names = npt.NDArray[np.str_]


def auc(
    members: Floats, others: Floats, member_subjects: Names | None = None, other_subjects: Names | None = None
) -> Estimate:
    """The chance that a member scores above another, ties half (Mann and Whitney), from scores (N,) and (M,).

    The interval is DeLong's (1988) on the logit scale, with Student's t for the people of the smaller side;
    ``members_of`` and ``others_of`` name whose each score is, and then whole persons vary, who may be on both sides
    (Obuchowski 1997). Where the two do not overlap at all there is no variance, and the smaller side's people are
    counted by the rule of three; where they hardly do, no bound says more than that. Raises ValueError for scores that
    are not finite, or fewer than two people on a side.
    """
    of_members, of_others = (
        _subjects_or_distinct(members, member_subjects, "member"),
        _subjects_or_distinct(others, other_subjects, "other"),
    )
    above = _placements(
        _check_finite(members, "members"), _check_finite(others, "others")
    )  # (N,) share of others below each member
    below = 1 - _placements(others, members)  # (M,) share of members above each other
    value, people = float(above.mean()), min(len(np.unique(of_members)), len(np.unique(of_others)))
    if people < 2:
        raise ValueError("members and others must be of two people each, got one: give more scores")
    names = np.unique(np.concatenate([of_members, of_others]))
    by_person = _deviations(above, of_members, names) + _deviations(below, of_others, names)  # (S,)
    deviation = math.sqrt(float((by_person**2).sum()))
    margin = rule_of_three(people)
    if deviation < 1e-12:
        return Estimate(value, max(0.0, value - margin), min(1.0, value + margin))
    t = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * small_sample_factor(people)
    centre, half = math.log(value / (1 - value)), t * deviation / (value * (1 - value))
    return Estimate(value, min(1 - margin, _logistic(centre - half)), max(margin, _logistic(centre + half)))


def threshold_at(others: Floats, fpr: float) -> float:
    """The lowest score that at most a share of ``fpr`` of the others (M,) lies *above*; what ties with it is no hit.

    Raises ValueError where M is below 1 / fpr: so rare a false alarm cannot be seen in so few.
    """
    if few := _too_few_others(others, fpr):
        raise ValueError(f"others: {few}")
    allowed = min(math.floor(fpr * len(others) + 1e-9), len(others) - 1)
    place = len(others) - 1 - allowed
    return float(np.partition(others, place)[place])


# Figures


def auc_figure(
    members: Floats,
    others: Floats,
    member_subjects: Names | None = None,
    other_subjects: Names | None = None,
    **described: Unpack[FigureContext],
) -> Figure:
    """The AUC as a line of an audit; ``n`` and ``subjects`` count both sides, each of which must suffice."""
    sides = _trials(members, member_subjects, "member"), _trials(others, other_subjects, "other")
    n, subjects = len(members) + len(others), (sides[0] + sides[1]).people
    empty = Figure(measure="AUC", chance=0.5, n=n, subjects=subjects, **described)
    for side, name in zip(sides, ("members", "others"), strict=True):
        if few := too_few(side):
            return with_note(empty, f"{name}: {few}")
    found = auc(members, others, member_subjects, other_subjects)
    return replace(empty, value=found.value, low=found.low, high=found.high)


def tpr_figure(
    members: Floats,
    others: Floats,
    fpr: float,
    rng: np.random.Generator,
    member_subjects: Names | None = None,
    other_subjects: Names | None = None,
    **described: Unpack[FigureContext],
) -> Figure:
    """The true positive rate at a false positive rate; what was really reached on the others is the control."""
    measure = f"TPR at FPR {fpr:g}"
    if few := _too_few_others(others, fpr):
        people = _trials(members, member_subjects, "member").people
        return Figure(measure=measure, chance=fpr, n=len(members), subjects=people, note=few, **described)
    threshold = threshold_at(others, fpr)
    hits, alarms = (
        _trials(members, member_subjects, "member", threshold),
        _trials(others, other_subjects, "other", threshold),
    )
    return make_figure(hits, rng, measure=measure, control=alarms, chance=fpr, **described)


def roc_figures(
    members: Floats,
    others: Floats,
    rng: np.random.Generator,
    member_subjects: Names | None = None,
    other_subjects: Names | None = None,
    fprs: Sequence[float] = FPRS,
    **described: Unpack[FigureContext],
) -> list[Figure]:
    """AUC, then the true positive rate at each of ``fprs``."""
    rates = [tpr_figure(members, others, fpr, rng, member_subjects, other_subjects, **described) for fpr in fprs]
    return [auc_figure(members, others, member_subjects, other_subjects, **described), *rates]


def _placements(scores: Floats, among: Floats) -> npt.NDArray[np.float64]:
    """For each score the share of ``among`` below it, ties half."""
    ordered = np.sort(among)
    below, upto = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return (below + upto) / (2 * len(among))


def _deviations(placed: npt.NDArray[np.float64], of: Names, names: Names) -> npt.NDArray[np.float64]:
    """What each of ``names`` (S,) adds to the deviation of the mean of ``placed``; zero for who is not there."""
    people = len(np.unique(of))
    sums = np.bincount(np.searchsorted(names, of), weights=placed - placed.mean(), minlength=len(names))
    return sums / len(placed) * math.sqrt(people / (people - 1))


def _trials(scores: Floats, of: Names | None, side: str, threshold: float = -math.inf) -> Trials:
    """Hits: the scores above the threshold."""
    return Trials(scores > threshold, _subjects_or_distinct(scores, of, side))


def _subjects_or_distinct(scores: Floats, of: Names | None, side: str) -> Names:
    """Whose each score is; by default each is somebody else's."""
    if of is None:
        return np.array([f"{side} {i}" for i in range(len(scores))], dtype=np.str_)
    if of.shape != scores.shape:
        raise ValueError(f"names must be (N,) as the scores are, got {of.shape} and {scores.shape}")
    return of


def _check_finite(scores: Floats, name: str) -> Floats:
    if scores.ndim != 1 or not len(scores) or not np.isfinite(scores).all():
        odd = int((~np.isfinite(scores)).sum())
        raise ValueError(
            f"{name} must be (N,) finite scores, got {scores.shape} with {odd} not finite: leave those out"
        )
    return scores


def _too_few_others(others: Floats, fpr: float) -> str | None:
    if not 0 < fpr < 1:
        raise ValueError(f"fpr must be in (0, 1), got {fpr:g}: a usual one is 0.01")
    needed = math.ceil(1 / fpr - 1e-9)
    if len(_check_finite(others, "others")) >= needed:
        return None
    return f"too few: {len(others)} others, at least {needed} are needed to see one false alarm at FPR {fpr:g}"


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
