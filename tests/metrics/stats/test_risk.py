"""Risk above a control, and figures: against closed forms and simulations."""

from __future__ import annotations

import numpy as np
import pytest

from metrics.stats.intervals import (
    Trials,
    as_subjects,
    rule_of_three,
    wilson_interval,
)
from metrics.stats.risk import Figure, FigureContext, make_figure, risk_above_control
from tests.support.trials import trials

LINKAGE = FigureContext(attack="linkage", attacker="unaware", feature="pixels")


def rng(seed: int | list[int] = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("people", [10, 15])
def test_risk_covers_the_truth_with_few_people(people: int) -> None:
    source, covered, rounds, truth = rng(people), 0, 200, (0.3 - 0.1) / 0.9
    subjects = as_subjects(np.repeat(np.arange(people), 5))

    def simulate(rate: float) -> Trials:
        own = source.beta(rate, 1 - rate, people)
        return Trials(source.random(people * 5) < np.repeat(own, 5), subjects)

    for _ in range(rounds):
        result = risk_above_control(simulate(0.3), simulate(0.1), source)
        assert result is not None
        covered += result.low <= truth <= result.high
    assert covered / rounds > 0.93


def test_risk_is_the_part_that_the_control_leaves() -> None:
    """Half against a quarter, solved by hand; the error as anonymeter propagates it, with Wilson's halves."""
    result = risk_above_control(trials(50, 100), trials(25, 100), rng())
    assert result is not None and result.value == pytest.approx((0.5 - 0.25) / 0.75)
    a, c = wilson_interval(50, 100), wilson_interval(25, 100)
    down = np.hypot((0.5 - a.low) / 0.75, (c.high - 0.25) * 0.5 / 0.75**2)
    up = np.hypot((a.high - 0.5) / 0.75, (0.25 - c.low) * 0.5 / 0.75**2)
    assert (result.low, result.high) == pytest.approx((result.value - down, result.value + up))


def test_without_a_control_hit_the_risk_is_the_rate() -> None:
    result = risk_above_control(trials(30, 100), trials(0, 10_000), rng())
    assert result is not None and (result.value, result.low, result.high) == pytest.approx(
        (0.3, 0.2189, 0.3958), abs=1e-3
    )


def test_an_attack_that_always_hits_has_risk_one() -> None:
    result = risk_above_control(trials(100, 100), trials(10, 100), rng())
    assert result is not None and result.value == result.high == 1 and 0.9 < result.low < 1


def test_a_control_above_the_attack_gives_no_negative_risk_and_no_certainty() -> None:
    result = risk_above_control(trials(2, 100), trials(20, 100), rng())
    assert result is not None and result.value == result.low == 0 and 0.03 < result.high < 0.15


def test_a_control_that_always_hits_leaves_nothing_to_measure() -> None:
    assert risk_above_control(trials(100, 100), trials(100, 100), rng()) is None


@pytest.mark.parametrize(("a", "c"), [(0.06, 0.02), (0.5, 0.3), (0.9, 0.6)])
def test_risk_covers_the_truth_as_often_as_it_says(a: float, c: float) -> None:
    source, covered, rounds, truth = rng(2), 0, 400, (a - c) / (1 - c)
    for _ in range(rounds):
        result = risk_above_control(trials(source.binomial(150, a), 150), trials(source.binomial(150, c), 150), source)
        assert result is not None
        covered += result.low <= truth <= result.high
    assert covered / rounds > 0.93


def test_chance_on_both_sides_shows_no_risk() -> None:
    """Attack and control alike: the lower bound is above 0 in no more than the 2.5 % that a 95 % interval allows."""
    source = rng(3)
    pairs = [(trials(source.binomial(200, 0.1), 200), trials(source.binomial(200, 0.1), 200)) for _ in range(300)]
    above = [result.low > 0 for attack, control in pairs if (result := risk_above_control(attack, control, source))]
    assert np.mean(above) < 0.04


def test_a_figure_holds_rate_control_chance_and_risk() -> None:
    attack, control = trials(60, 100), trials(10, 100)
    line = make_figure(attack, rng(), measure="rank-1", control=control, chance=0.01, gallery=100, **LINKAGE)
    rate, base, above = wilson_interval(60, 100), wilson_interval(10, 100), risk_above_control(attack, control, rng())
    assert above is not None
    assert line == Figure(
        "linkage", "unaware", "rank-1", "pixels", 100, 100, 0.6, rate.low, rate.high, 0.01,
        0.1, base.low, base.high, above.value, above.low, above.high, gallery=100,
    )  # fmt: skip


@pytest.mark.parametrize(("n", "each"), [(19, 1), (90, 10), (0, 1)])
def test_a_figure_of_too_few_says_so_instead_of_appearing(n: int, each: int) -> None:
    few = trials(n // 2, n, each)
    line = make_figure(few, rng(), measure="rank-1", control=trials(5, 100), chance=0.1, **LINKAGE)
    assert line.value is line.low is line.high is line.control is line.risk is None
    assert line.note == f"too few: {n} trials of {n // each} people, at least 20 trials of 10 people are needed"
    assert (line.n, line.subjects, line.chance) == (n, n // each, 0.1)


def test_a_control_of_too_few_leaves_the_rate_without_a_risk() -> None:
    line = make_figure(trials(50, 100), rng(), measure="rank-1", control=trials(1, 5), **LINKAGE)
    assert line.value == 0.5 and line.control is line.risk is None
    assert line.note == "control: too few: 5 trials of 5 people, at least 20 trials of 10 people are needed"


def test_a_count_of_zero_is_noted_with_what_it_allows() -> None:
    line = make_figure(trials(0, 300, each=3), rng(), measure="rank-1", **LINKAGE)
    assert line.value == line.low == 0 and line.high == pytest.approx(rule_of_three(100))
    assert line.note == "no hit with 100 people: at most 2.95% (rule of three)"


def test_a_control_that_always_hits_is_noted() -> None:
    line = make_figure(trials(50, 50), rng(), measure="rank-1", control=trials(50, 50), **LINKAGE)
    assert line.value == line.control == 1 and line.risk is None
    assert line.note is not None and "the control always hits" in line.note
