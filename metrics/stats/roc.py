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


def auc_figure(
    members: Floats,
    others: Floats,
    member_subjects: Names | None = None,
    other_subjects: Names | None = None,
    **context: Unpack[FigureContext],
) -> Figure:
    """Return the AUC as a line of an audit; ``n`` and ``subjects`` count both sides, each of which must suffice."""
    sides = {
        "members": _trials_above(-math.inf, members, member_subjects, "member"),
        "others": _trials_above(-math.inf, others, other_subjects, "other"),
    }
    both = sides["members"] + sides["others"]
    figure = Figure(measure="AUC", chance=0.5, n=len(both), subjects=both.people, **context)
    for name, side in sides.items():
        if few := too_few(side):
            return with_note(figure, f"{name}: {few}")
    return replace(figure, **asdict(auc(members, others, member_subjects, other_subjects)))


def tpr_figure(
    members: Floats,
    others: Floats,
    fpr: float,
    rng: np.random.Generator,
    member_subjects: Names | None = None,
    other_subjects: Names | None = None,
    **context: Unpack[FigureContext],
) -> Figure:
    """Return the true positive rate at a false positive rate; the rate reached on the others is the control."""
    measure, few = f"TPR at FPR {fpr:g}", _too_few_others(others, fpr)
    threshold = math.inf if few else threshold_at(others, fpr)
    hits = _trials_above(threshold, members, member_subjects, "member")
    if few:
        return Figure(measure=measure, chance=fpr, n=len(hits), subjects=hits.people, note=few, **context)
    alarms = _trials_above(threshold, others, other_subjects, "other")
    return make_figure(hits, rng, measure=measure, control=alarms, chance=fpr, **context)


def roc_figures(
    members: Floats,
    others: Floats,
    rng: np.random.Generator,
    member_subjects: Names | None = None,
    other_subjects: Names | None = None,
    fprs: Sequence[float] = FPRS,
    **context: Unpack[FigureContext],
) -> list[Figure]:
    """Return the AUC, then the true positive rate at each of ``fprs``."""
    subjects = member_subjects, other_subjects
    rates = [tpr_figure(members, others, fpr, rng, *subjects, **context) for fpr in fprs]
    return [auc_figure(members, others, *subjects, **context), *rates]


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


def _trials_above(threshold: float, scores: Floats, subjects: Names | None, side: str) -> Trials:
    return Trials(scores > threshold, _subjects_or_distinct(scores, subjects, side))


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
