"""ROC analysis of attacks that score: AUC, and true positive rates at rare false alarms.

Membership, verification and open-set search end here. Higher scores mean "member".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Unpack

import numpy as np
from scipy.special import expit, logit

from metrics.stats.intervals import Estimate, Floats, Names, Trials, normal_quantile, rule_of_three, small_sample_factor
from metrics.stats.risk import Figure, FigureContext, make_figure, too_few, with_note

FPRS = (0.01, 0.001)


def auc(
    members: Floats, others: Floats, member_subjects: Names | None = None, other_subjects: Names | None = None
) -> Estimate:
    """Return the probability that a member scores above another, ties half, from scores (N,) and (M,).

    The interval is DeLong's (1988) on the logit scale, with Student's t for the people of the smaller side. With
    ``member_subjects`` and ``other_subjects`` whole persons vary, and may be on both sides (Obuchowski 1997). Sides
    that do not overlap have no variance: the people of the smaller one are counted by the rule of three, which limits
    all bounds. Raises ValueError for scores that are not finite, or fewer than two people on a side.
    """
    above = _placements(_check_finite(members, "members"), _check_finite(others, "others"))  # (N,) share below each
    below = 1 - _placements(others, members)  # (M,) share of members above each
    of_members = _subjects_or_distinct(members, member_subjects, "member")
    of_others = _subjects_or_distinct(others, other_subjects, "other")
    value, people = float(above.mean()), min(len(np.unique(of_members)), len(np.unique(of_others)))
    if people < 2:
        raise ValueError("members and others must be of two people each, got one: give more scores")
    names = np.unique(np.concatenate([of_members, of_others]))
    by_person = _deviations(above, of_members, names) + _deviations(below, of_others, names)  # (S,)
    deviation = math.sqrt(float((by_person**2).sum()))
    margin = rule_of_three(people)
    if deviation < 1e-12:
        return Estimate(value, max(0.0, value - margin), min(1.0, value + margin))
    half = normal_quantile() * small_sample_factor(people) * deviation / (value * (1 - value))
    low, high = expit(logit(value) - half), expit(logit(value) + half)
    return Estimate(value, min(1 - margin, float(low)), max(margin, float(high)))


def threshold_at(others: Floats, fpr: float) -> float:
    """Return the lowest score that at most a share of ``fpr`` of the others (M,) lies above; a tie is no hit.

    Raises ValueError where M is below 1 / fpr: so rare a false alarm cannot be seen in so few.
    """
    if few := _too_few_others(others, fpr):
        raise ValueError(f"others: {few}")
    allowed = min(math.floor(fpr * len(others) + 1e-9), len(others) - 1)
    rank = len(others) - 1 - allowed
    return float(np.partition(others, rank)[rank])


def roc_figures(
    members: Floats,
    others: Floats,
    rng: np.random.Generator,
    member_subjects: Names | None = None,
    other_subjects: Names | None = None,
    fprs: Sequence[float] = FPRS,
    **context: Unpack[FigureContext],
) -> list[Figure]:
    """Return the AUC, then the true positive rate at each of ``fprs``.

    ``n`` and ``subjects`` of the AUC count both sides, each of which must suffice. The control of a rate is the false
    positive rate that its threshold reaches on the others.
    """
    of_members = _subjects_or_distinct(members, member_subjects, "member")
    of_others = _subjects_or_distinct(others, other_subjects, "other")

    def above(threshold: float) -> tuple[Trials, Trials]:
        return Trials(members > threshold, of_members), Trials(others > threshold, of_others)

    sides = above(-math.inf)
    n, people = len(members) + len(others), (sides[0] + sides[1]).people
    area = Figure(measure="AUC", chance=0.5, n=n, subjects=people, **context)
    few = [f"{name}: {why}" for name, side in zip(("members", "others"), sides, strict=True) if (why := too_few(side))]
    area = with_note(area, few[0]) if few else replace(area, **asdict(auc(members, others, of_members, of_others)))
    lines = [area]
    for fpr in fprs:
        measure = f"TPR at FPR {fpr:g}"
        if note := _too_few_others(others, fpr):
            n, people = len(members), sides[0].people
            lines.append(Figure(measure=measure, chance=fpr, n=n, subjects=people, note=note, **context))
        else:
            hits, alarms = above(threshold_at(others, fpr))
            lines.append(make_figure(hits, rng, measure=measure, control=alarms, chance=fpr, **context))
    return lines


def _placements(scores: Floats, among: Floats) -> Floats:
    """Return for each score the share of ``among`` below it, ties half."""
    ordered = np.sort(among)
    below, upto = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    return np.asarray((below + upto) / (2 * len(among)))


def _deviations(placements: Floats, subjects: Names, names: Names) -> Floats:
    """Return each person's part (S,) in the deviation of the mean placement; 0 for persons of the other side."""
    people = len(np.unique(subjects))
    weights = placements - placements.mean()
    sums = np.bincount(np.searchsorted(names, subjects), weights=weights, minlength=len(names))
    return np.asarray(sums / len(placements) * math.sqrt(people / (people - 1)))


def _subjects_or_distinct(scores: Floats, subjects: Names | None, side: str) -> Names:
    """Return the person behind each score; without subjects, each score is another person's."""
    if subjects is None:
        return np.array([f"{side} {i}" for i in range(len(scores))], dtype=np.str_)
    if subjects.shape != scores.shape:
        raise ValueError(f"names must be (N,) as the scores are, got {subjects.shape} and {scores.shape}")
    return subjects


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
