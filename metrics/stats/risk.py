"""Figures of an audit: the success rate of an attack, and its risk above a control.

Knows nothing of images: an attack delivers ``Trials``, and trials of several shards merge by ``+``. The risk above a
control follows anonymeter (Giomi et al. 2023).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TypedDict, Unpack

import numpy as np

from metrics.stats.intervals import Estimate, Trials, rate_interval, rule_of_three

MIN_TRIALS = 20  # for a figure
MIN_PEOPLE = 10  # likewise; see docs/decisions/007-few-people.md


@dataclass(frozen=True)
class Figure:
    """One line of an audit. ``value`` is None where the sample is too small, and ``note`` says so.

    ``chance``: the rate of blind guessing; ``control``: of the same attack where there is nothing to find; ``risk``:
    ``(value - control) / (1 - control)``. Intervals are 95 %. ``n`` trials of ``subjects`` persons.
    """

    attack: str  # linkage, reidentification, parrot, averaging, inversion, membership, attributes, groups, leaks
    attacker: str  # the threat model, one of ``metrics.attacks.ATTACKERS``
    measure: str  # rank-1, rank-5, TPIR at FPIR 0.01, AUC, ...
    feature: str  # what images are compared by: pixels, or a model with its digest
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
    round_trip: float | None = None  # and on originals that were only encoded and decoded
    gallery: int | None = None  # candidates that the attacker chooses from
    outputs: int = 1  # of one original that the attacker sees
    subgroup: str | None = None  # "gender = 1"; None: everybody
    baseline: str | None = None  # the mechanism behind the attacked images, where it is not the release's
    note: str | None = None


class FigureContext(TypedDict, total=False):
    """The descriptive fields of a ``Figure``."""

    attack: str
    attacker: str
    feature: str
    gallery: int | None
    outputs: int
    subgroup: str | None


def risk_above_control(attack: Trials, control: Trials, rng: np.random.Generator) -> Estimate | None:
    """Return ``(a - c) / (1 - c)``: of what the control leaves open, the share that the attack finds.

    Both uncertainties count by their partial derivatives, 1 / (1 - c) and (1 - a) / (1 - c)^2, as in anonymeter (Giomi
    et al. 2023); each side of the interval takes the halves of the two intervals that point there, so that rates near 0
    or 1 keep their lopsided intervals. The rates count as independent, which is conservative where they come from the
    same people. A control above the attack is taken to equal it: the value is 0 and the upper bound stays above it.
    Bounds lie in [0, 1]. None where the control always hits. Raises ValueError without a trial.
    """
    of_attack, of_control = rate_interval(attack, rng), rate_interval(control, rng)
    a, c = of_attack.value, of_control.value
    if c == 1:
        return None
    level = min(a, c)
    by_attack, by_control = 1 / (1 - level), (1 - a) / (1 - level) ** 2
    down = math.hypot(by_attack * max(0.0, a - of_attack.low), by_control * max(0.0, of_control.high - c))
    up = math.hypot(by_attack * max(0.0, of_attack.high - a), by_control * max(0.0, c - of_control.low))
    value = (a - level) / (1 - level)
    return Estimate(value, max(0.0, value - down), min(1.0, value + up))


def make_figure(
    trials: Trials,
    rng: np.random.Generator,
    *,
    measure: str,
    control: Trials | None = None,
    chance: float | None = None,
    **context: Unpack[FigureContext],
) -> Figure:
    """Return one line of an audit from the trials of an attack and, where there are any, of its control.

    Fewer than ``MIN_TRIALS`` or ``MIN_PEOPLE`` give a note instead of a value; so does the risk above a control that
    always hits. A count of zero is noted with the bound that it allows.
    """
    figure = Figure(measure=measure, chance=chance, n=len(trials), subjects=trials.people, **context)
    if few := too_few(trials):
        return replace(figure, note=few)
    figure = replace(figure, **asdict(rate_interval(trials, rng)))
    if not trials.hits.any():
        bound = rule_of_three(trials.people)
        figure = with_note(figure, f"no hit with {trials.people} people: at most {bound:.2%} (rule of three)")
    if control is None:
        return figure
    if few := too_few(control):
        return with_note(figure, f"control: {few}")
    base = rate_interval(control, rng)
    figure = replace(figure, control=base.value, control_low=base.low, control_high=base.high)
    risk = risk_above_control(trials, control, rng)
    if risk is None:
        return with_note(figure, "the control always hits: there is no risk to measure above it")
    return replace(figure, risk=risk.value, risk_low=risk.low, risk_high=risk.high)


def not_run(note: str, baseline: str | None = None, **context: Unpack[FigureContext]) -> Figure:
    """Return the line of an attack that could not be run, with the reason."""
    return Figure(measure="not run", n=0, subjects=0, baseline=baseline, note=note, **context)


def too_few(trials: Trials) -> str | None:
    """Return why no figure may rest on these trials; None where they suffice."""
    if len(trials) >= MIN_TRIALS and trials.people >= MIN_PEOPLE:
        return None
    needed = f"at least {MIN_TRIALS} trials of {MIN_PEOPLE} people are needed"
    return f"too few: {len(trials)} trials of {trials.people} people, {needed}"


def without_values(figure: Figure) -> Figure:
    """Return the same line without a number."""
    empty = Figure(figure.attack, figure.attacker, figure.measure, figure.feature, figure.n, figure.subjects)
    return replace(
        empty, gallery=figure.gallery, outputs=figure.outputs, subgroup=figure.subgroup, baseline=figure.baseline
    )


def with_note(figure: Figure, note: str) -> Figure:
    """Return the same line with a further note."""
    return replace(figure, note=f"{figure.note}; {note}" if figure.note else note)
