"""Rates and intervals: against scipy, closed forms, and simulations of how often an interval covers the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from metrics.stats.intervals import (
    Trials,
    as_subjects,
    cluster_bootstrap,
    rate_interval,
    rule_of_three,
    small_sample_factor,
    wilson_interval,
)
from tests.support.trials import trials


def rng(seed: int | list[int] = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case: tuple[int, int]) -> None:
    hits, n = case
    reference = stats.binomtest(hits, n).proportion_ci(method="wilson")
    result = wilson_interval(hits, n)
    assert (result.low, result.high) == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert result.low <= hits / n <= result.high and result.low < result.high


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_counts_that_cannot_be_are_refused(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"got {hits} of {n}"):
        wilson_interval(hits, n)


@pytest.mark.parametrize("n", [1, 20, 300, 100_000])
def test_the_rule_of_three_is_the_exact_one_sided_bound(n: int) -> None:
    exact = stats.binomtest(0, n, alternative="less").proportion_ci(0.95, method="exact")
    assert rule_of_three(n) == pytest.approx(exact.high, abs=1e-12)
    assert rule_of_three(n) <= 3 / n


def test_the_rule_of_three_needs_a_trial() -> None:
    with pytest.raises(ValueError, match="got 0"):
        rule_of_three(0)


def test_trials_of_shards_merge() -> None:
    whole = trials(7, 40)
    first, second = (Trials(whole.hits[part], whole.subjects[part]) for part in (slice(0, 13), slice(13, 40)))
    assert rate_interval(first + second, rng()) == rate_interval(whole, rng())
    assert (first + second).people == 40


def test_one_trial_a_person_is_wilsons() -> None:
    assert rate_interval(trials(7, 40), rng()) == wilson_interval(7, 40)


def test_several_trials_a_person_widen_the_interval() -> None:
    """Ten trials a person that always agree count as one: 60 persons of whom 15 are hit."""
    result, one_each = rate_interval(trials(150, 600, each=10), rng()), wilson_interval(15, 60)
    assert (result.low, result.high) == pytest.approx((one_each.low, one_each.high), abs=0.02)


def test_one_person_who_is_always_hit_is_one_of_thirty_not_ten_of_three_hundred() -> None:
    result, one = rate_interval(trials(10, 300, each=10), rng()), wilson_interval(1, 30)
    assert result.low <= one.low + 0.001 and result.high == pytest.approx(one.high, abs=0.02)
    assert result.high > 2 * wilson_interval(10, 300).high


def test_without_variance_between_people_the_interval_is_not_a_point() -> None:
    halves = Trials(np.arange(80) % 2 == 0, as_subjects(np.arange(80) // 2))
    assert cluster_bootstrap(halves, rng()) == wilson_interval(40, 80)


@pytest.mark.parametrize("each", [1, 5])
def test_all_or_nothing_counts_people_by_the_rule_of_three(each: int) -> None:
    people = 30
    none, every = (cluster_bootstrap(trials(h, people * each, each), rng()) for h in (0, people * each))
    assert (none.low, none.high) == (0, pytest.approx(1 - 0.05 ** (1 / people)))
    assert (every.low, every.high) == (pytest.approx(0.05 ** (1 / people)), 1)


def test_one_person_says_nothing_of_others() -> None:
    result = cluster_bootstrap(trials(3, 10, each=10), rng())
    assert (result.low, result.high) == (0, 1)


def test_no_trial_gives_no_interval() -> None:
    with pytest.raises(ValueError, match="trials"):
        cluster_bootstrap(trials(0, 0), rng())


def test_the_bootstrap_depends_on_its_generator_alone() -> None:
    some = trials(33, 200, each=4)
    np.random.seed(1)
    first = cluster_bootstrap(some, rng(5))
    np.random.seed(2)
    assert cluster_bootstrap(some, rng(5)) == first


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=40))
def test_intervals_hold_the_rate_and_are_never_points(rows: list[tuple[bool, int]]) -> None:
    hits, subjects = zip(*rows, strict=True)
    some = Trials(np.array(hits), as_subjects(subjects))
    result = rate_interval(some, rng())
    assert 0 <= result.low <= some.rate + 1e-12 and some.rate - 1e-12 <= result.high <= 1
    assert result.low < result.high


@pytest.mark.parametrize("rate", [0.04, 0.3])
def test_the_bootstrap_covers_the_truth_as_often_as_it_says(rate: float) -> None:
    """40 persons of 5 trials whose own rates vary (beta with a sum of 2)."""
    source, covered, rounds = rng(1), 0, 300
    subjects = as_subjects(np.repeat(np.arange(40), 5))
    for _ in range(rounds):
        own = source.beta(2 * rate, 2 * (1 - rate), 40)
        some = Trials(source.random(200) < np.repeat(own, 5), subjects)
        result = cluster_bootstrap(some, source, replicates=300)
        covered += result.low <= rate <= result.high
    assert covered / rounds > 0.93


@pytest.mark.parametrize("each", [2, 10])
@pytest.mark.parametrize(("people", "rate"), [(10, 0.1), (10, 0.3), (10, 0.7), (15, 0.1), (30, 0.03)])
def test_the_bootstrap_covers_the_truth_with_few_people_who_differ_strongly(
    people: int, rate: float, each: int
) -> None:
    """Rates of their own by a beta with a sum of 1; 0.93 less what 400 rounds may miss by luck, and the upper side."""
    source, covered, above, rounds = rng([people, each, round(100 * rate)]), 0, 0, 400
    subjects = as_subjects(np.repeat(np.arange(people), each))
    for _ in range(rounds):
        own = source.beta(rate, 1 - rate, people)
        some = Trials(source.random(people * each) < np.repeat(own, each), subjects)
        result = cluster_bootstrap(some, source, replicates=200)
        covered += result.low <= rate <= result.high
        above += rate > result.high
    assert covered / rounds > 0.93 - 0.01 and above / rounds < 0.06


@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 3))
def test_a_hit_more_never_promises_less_than_none(people: int, each: int, hits: int) -> None:
    """The first hits must not lower the upper bound below the rule of three, nor the first misses raise the lower."""
    hits = min(hits, people * each)
    none, few = (cluster_bootstrap(trials(h, people * each, each), rng(), 200) for h in (0, hits))
    every, most = (
        cluster_bootstrap(trials(h, people * each, each), rng(), 200) for h in (people * each, people * each - hits)
    )
    assert few.high >= none.high and most.low <= every.low


@pytest.mark.parametrize(("people", "t"), [(2, 12.7062), (10, 2.2622), (31, 2.0423)])
def test_few_people_widen_by_students_t(people: int, t: float) -> None:
    assert small_sample_factor(people) == pytest.approx(t / 1.959964, abs=1e-4)
    with pytest.raises(ValueError, match="got 1"):
        small_sample_factor(1)
