"""What a count of an attacker's successes says: its rate and the risk above a control, as a line of an audit.

Nothing here knows pictures. An attack hands over ``Trials`` (hit or miss, and whose); trials of several shards merge by
``+``. Giomi et al. (2023, anonymeter) for the risk above a control.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

import numpy as np

from metrics.stats.intervals import (
    CONFIDENCE,
    Interval,
    Trials,
    as_subjects,
    cluster_bootstrap,
    rate_interval,
    rule_of_three,
    wilson_interval,
)

__all__ = [
    "CONFIDENCE",
    "Estimate",
    "Figure",
    "FigureContext",
    "Interval",
    "Trials",
    "as_subjects",
    "cluster_bootstrap",
    "make_figure",
    "rate_interval",
    "risk_above_control",
    "rule_of_three",
    "too_few",
    "wilson_interval",
    "with_note",
    "without_values",
]

MIN_TRIALS = 20  # trials below which no figure is given
MIN_PEOPLE = 10  # and people; see docs/decisions/007-few-people.md


@dataclass(frozen=True)
class Figure:
    """One line of an audit. ``value`` is none where the sample is too small, and ``note`` says so.

    ``chance`` is what blind guessing gives; ``control`` what the same attack gives where there is nothing to find;
    ``risk`` is ``(value - control) / (1 - control)``. Intervals are 95 %. ``n`` trials of ``subjects`` persons.
    """

    attack: str  # linkage, reidentification, parrot, averaging, inversion, membership, attributes, leaks
    attacker: str  # the threat model, one of ``metrics.attacks.ATTACKERS``
    measure: str  # rank-1, rank-5, TPIR at FPIR 0.01, AUC, ...
    feature: str  # what pictures were compared by: pixels, or a model with its digest
    n: int
    subjects: int
    value: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    control: float | None = None
    control_low: float | None = None
    control_high: float | None = None
    risk: float | None = None
    risk_low: float | None = None
    risk_high: float | None = None
    unmodified: float | None = None  # the same measure on the originals themselves
    round_trip: float | None = None  # and on originals that were merely encoded and decoded
    gallery: int | None = None  # candidates that the attacker chooses from
    outputs: int = 1  # of one original that the attacker sees
    subgroup: str | None = None  # "gender = 1"; none: everybody
    baseline: str | None = None  # what made the pictures that were attacked, where it was not the release
    note: str | None = None


class FigureContext(TypedDict, total=False):
    """What a figure says about itself beside its numbers; see ``Figure``."""

    attack: str
    attacker: str
    feature: str
    gallery: int | None
    outputs: int
    subgroup: str | None


@dataclass(frozen=True)
class Estimate:
    """A value in [0, 1] and its interval."""

    value: float
    low: float
    high: float


# Risk above a control


def risk_above_control(attack: Trials, control: Trials, rng: np.random.Generator) -> Estimate | None:
    """``(a - c) / (1 - c)``: the part of what the control leaves open that the attack finds. Source: Giomi et al. 2023.

    Both uncertainties count, each by its partial derivative, 1 / (1 - c) and (1 - a) / (1 - c)^2, as in anonymeter;
    but a side of the interval takes the halves of both rates' intervals that point there, so that rates near 0 or 1
    keep their lopsided intervals. The two are taken as independent, which is too wide rather than too narrow where they
    were tried on the same people. A control above the attack shows no negative risk: it is taken to equal the attack,
    so the value is 0 and the upper bound stays above it. Bounds are kept in [0, 1]. None where the control always hits:
    then nothing is left to find, and nothing can be said. Raises ValueError without a trial.
    """
    of_attack, of_control = rate_interval(attack, rng), rate_interval(control, rng)
    a, c = attack.rate, control.rate
    if c == 1:
        return None
    level = min(a, c)
    by_attack, by_control = 1 / (1 - level), (1 - a) / (1 - level) ** 2
    down = math.hypot(by_attack * max(0.0, a - of_attack.low), by_control * max(0.0, of_control.high - c))
    up = math.hypot(by_attack * max(0.0, of_attack.high - a), by_control * max(0.0, c - of_control.low))
    value = (a - level) / (1 - level)
    return Estimate(value, max(0.0, value - down), min(1.0, value + up))


# Figures


def make_figure(
    trials: Trials,
    rng: np.random.Generator,
    *,
    measure: str,
    control: Trials | None = None,
    chance: float | None = None,
    **described: Unpack[FigureContext],
) -> Figure:
    """One line of an audit from an attack's trials and, where there are any, its control's.

    What rests on fewer than ``FEWEST`` trials or ``FEWEST_PEOPLE`` has no value and a note instead; so has the risk
    above a control that always hits. A count of zero is noted with the bound that it allows.
    """
    empty = Figure(measure=measure, chance=chance, n=len(trials), subjects=trials.people, **described)
    if few := too_few(trials):
        return replace(empty, note=few)
    found = rate_interval(trials, rng)
    shown = replace(empty, value=trials.rate, low=found.low, high=found.high)
    if not trials.hits.any():
        bound = rule_of_three(trials.people)
        shown = with_note(shown, f"no hit with {trials.people} people: at most {bound:.2%} (rule of three)")
    if control is None:
        return shown
    if few := too_few(control):
        return with_note(shown, f"control: {few}")
    base = rate_interval(control, rng)
    shown = replace(shown, control=control.rate, control_low=base.low, control_high=base.high)
    above = risk_above_control(trials, control, rng)
    if above is None:
        return with_note(shown, "the control always hits: there is no risk to measure above it")
    return replace(shown, risk=above.value, risk_low=above.low, risk_high=above.high)


def too_few(trials: Trials) -> str | None:
    """Says why no figure may rest on these trials; None where they suffice."""
    if len(trials) >= MIN_TRIALS and trials.people >= MIN_PEOPLE:
        return None
    needed = f"at least {MIN_TRIALS} trials of {MIN_PEOPLE} people are needed"
    return f"too few: {len(trials)} trials of {trials.people} people, {needed}"


def without_values(line: Figure) -> Figure:
    """The same line without a number."""
    empty = Figure(line.attack, line.attacker, line.measure, line.feature, line.n, line.subjects)
    return replace(empty, gallery=line.gallery, outputs=line.outputs, subgroup=line.subgroup, baseline=line.baseline)


def with_note(line: Figure, note: str) -> Figure:
    return replace(line, note=f"{line.note}; {note}" if line.note else note)
