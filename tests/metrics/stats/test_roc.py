"""AUC and true positive rates: against brute force, scipy, closed forms of normal scores, and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as numbers
from scipy import stats

from metrics.stats.intervals import wilson_interval
from metrics.stats.risk import FigureContext
from metrics.stats.roc import auc, roc_figures, threshold_at

MEMBERSHIP = FigureContext(attack="membership", attacker="unaware", feature="denoising loss")
SCORES = numbers.arrays(np.float64, st.integers(2, 30), elements=st.integers(-3, 3).map(float))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(SCORES, SCORES)
def test_auc_counts_the_pairs_in_order_and_half_of_the_ties(members: np.ndarray, others: np.ndarray) -> None:
    wins = [1.0 if m > o else 0.5 if m == o else 0.0 for m in members for o in others]
    result = auc(members, others)
    assert result.value == pytest.approx(np.mean(wins))
    assert stats.mannwhitneyu(members, others).statistic == pytest.approx(result.value * len(members) * len(others))
    assert 0 <= result.low <= result.value + 1e-12 and result.value - 1e-12 <= result.high <= 1
    assert result.low < result.high


@given(SCORES, SCORES)
def test_auc_turns_round_when_the_sides_change_places(members: np.ndarray, others: np.ndarray) -> None:
    there, back = auc(members, others), auc(others, members)
    assert (back.value, back.low, back.high) == pytest.approx((1 - there.value, 1 - there.high, 1 - there.low))


def test_the_interval_is_delongs_on_the_logit_scale_with_students_t() -> None:
    """The variance from its definition: of the structural components of each side (DeLong 1988, eq. 4 to 6)."""
    members, others = rng(1).normal(0.8, 1, 37), rng(2).normal(0, 1, 53)
    wins = (members[:, None] > others[None]).astype(float)
    variance = wins.mean(1).var(ddof=1) / 37 + wins.mean(0).var(ddof=1) / 53
    value = wins.mean()
    half = stats.t.ppf(0.975, 36) * math.sqrt(variance) / (value * (1 - value))
    result, centre = auc(members, others), math.log(value / (1 - value))
    expected = [1 / (1 + math.exp(-(centre + side))) for side in (-half, half)]
    assert (result.low, result.high) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_auc_interval_covers_the_truth_as_often_as_it_says(shift: float) -> None:
    source, truth = rng(3), stats.norm.cdf(shift / math.sqrt(2))
    result = [auc(source.normal(shift, 1, 40), source.normal(0, 1, 60)) for _ in range(400)]
    assert np.mean([one.low <= truth <= one.high for one in result]) > 0.93


def test_the_auc_interval_covers_the_truth_where_people_have_several_pictures_on_both_sides() -> None:
    source, people, covered = rng(4), np.arange(40).astype(np.str_), []
    for _ in range(300):
        own = np.repeat(source.normal(0, 1, 40), 5)
        result = auc(own + source.normal(size=200), own + source.normal(size=200), *[np.repeat(people, 5)] * 2)
        covered.append(result.low <= 0.5 <= result.high)
    assert np.mean(covered) > 0.92


@pytest.mark.parametrize("others", [10, 100])
@pytest.mark.parametrize("shift", [0.7, 3.0])
def test_the_auc_interval_covers_the_truth_with_ten_people_on_a_side(shift: float, others: int) -> None:
    """Five scores a person, who differ as much as their scores do."""
    source, truth, covered = rng(others + round(shift)), stats.norm.cdf(shift / 2), []
    names = [np.repeat(np.arange(n), 5).astype(np.str_) for n in (10, others)]
    for _ in range(400):
        members, strangers = (np.repeat(source.normal(size=n), 5) + source.normal(size=5 * n) for n in (10, others))
        result = auc(members + shift, strangers, *names)
        covered.append(result.low <= truth <= result.high)
    assert np.mean(covered) > 0.93


def test_copies_of_a_persons_scores_add_no_certainty() -> None:
    members, others = rng(5).normal(0.5, 1, 50), rng(6).normal(0, 1, 50)
    names, more = np.arange(50).astype(np.str_), np.repeat(np.arange(50), 9).astype(np.str_)
    once = auc(members, others, names, np.char.add("o", names))
    copied = auc(np.repeat(members, 9), np.repeat(others, 9), more, np.char.add("o", more))
    assert (copied.value, copied.low, copied.high) == pytest.approx((once.value, once.low, once.high))


def test_scores_apart_have_an_interval_by_the_rule_of_three() -> None:
    result = auc(np.arange(100.0) + 1000, np.arange(30.0))
    assert (result.value, result.low, result.high) == (1, pytest.approx(0.05 ** (1 / 30)), 1)


@pytest.mark.parametrize("bad", [np.array([]), np.array([1.0, np.nan]), np.ones((2, 2))])
def test_scores_that_cannot_be_ranked_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="members must be"):
        auc(bad, np.arange(4.0))


def test_one_person_on_a_side_gives_no_auc() -> None:
    with pytest.raises(ValueError, match="two people"):
        auc(np.array([1.0]), np.arange(4.0))


@given(numbers.arrays(np.float64, st.integers(10, 80), elements=st.integers(0, 9).map(float)), st.floats(0.1, 0.9))
def test_false_alarms_never_exceed_what_was_allowed_and_no_lower_threshold_would_do(
    others: np.ndarray, fpr: float
) -> None:
    threshold = threshold_at(others, fpr)
    assert (others > threshold).mean() <= fpr + 1e-12
    lower = others[others < threshold]
    assert not len(lower) or (others > lower.max()).mean() > fpr


@pytest.mark.parametrize(("n", "fpr", "allowed"), [(100, 0.01, 1), (1000, 0.001, 1), (100, 0.29, 29), (250, 0.01, 2)])
def test_a_threshold_lets_through_whole_pictures(n: int, fpr: float, allowed: int) -> None:
    others = rng().permutation(n).astype(float)
    assert (others > threshold_at(others, fpr)).sum() == allowed


@pytest.mark.parametrize(("n", "fpr"), [(99, 0.01), (999, 0.001)])
def test_a_rate_of_false_alarms_that_cannot_be_seen_is_refused(n: int, fpr: float) -> None:
    with pytest.raises(ValueError, match=f"too few: {n} others, at least {n + 1} are needed"):
        threshold_at(np.arange(float(n)), fpr)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1])
def test_a_rate_of_false_alarms_lies_between_none_and_all(fpr: float) -> None:
    with pytest.raises(ValueError, match="fpr must be in"):
        threshold_at(np.arange(50.0), fpr)


def test_a_member_that_ties_with_the_threshold_is_no_hit() -> None:
    others = np.repeat([0.0, 1.0], 100)
    _, line = roc_figures(np.array([1.0] * 30 + [2.0] * 10), others, rng(), fprs=[0.1], **MEMBERSHIP)
    assert line.value == 0.25
    _, line = roc_figures(np.ones(30), others, rng(), fprs=[0.1], **MEMBERSHIP)
    assert line.value == line.control == 0


def test_tpr_of_normal_scores_is_the_closed_form() -> None:
    members, others = rng(7).normal(2, 1, 5000), rng(8).normal(0, 1, 50_000)
    _, result = roc_figures(members, others, rng(), fprs=[0.01], **MEMBERSHIP)
    truth = stats.norm.sf(stats.norm.isf(0.01) - 2)
    assert result.value is not None and result.low is not None and result.high is not None
    assert result.low <= truth <= result.high and result.high - result.low < 0.03
    hits = round(result.value * 5000)
    assert (result.low, result.high) == (wilson_interval(hits, 5000).low, wilson_interval(hits, 5000).high)


def test_a_planted_member_signal_is_found_and_noise_is_chance() -> None:
    others = rng(9).normal(size=1000)
    planted = roc_figures(rng(10).normal(3, 1, 200), others, rng(), **MEMBERSHIP)
    nothing = roc_figures(rng(11).normal(0, 1, 200), others, rng(), **MEMBERSHIP)
    assert [line.measure for line in planted] == ["AUC", "TPR at FPR 0.01", "TPR at FPR 0.001"]
    assert [line.chance for line in planted] == [0.5, 0.01, 0.001]
    for result, chance in zip(planted, nothing, strict=True):
        assert result.low is not None and result.chance is not None and result.low > result.chance
        assert chance.low is not None and chance.high is not None and chance.chance is not None
        assert chance.low <= chance.chance <= chance.high
    assert planted[1].control == 0.01 and planted[1].risk is not None and planted[1].risk > 0.5


def test_curves_of_too_few_others_say_so_instead_of_appearing() -> None:
    area, rare, rarer = roc_figures(np.arange(50.0), np.arange(200.0), rng(), **MEMBERSHIP)
    assert area.value is not None and rare.value is not None and rarer.value is None
    assert rarer.note == "too few: 200 others, at least 1000 are needed to see one false alarm at FPR 0.001"
    assert (area.n, area.subjects, rare.n) == (250, 250, 50)


def test_curves_of_too_few_members_say_so_instead_of_appearing() -> None:
    lines = roc_figures(np.arange(5.0), np.arange(200.0), rng(), fprs=[0.01], **MEMBERSHIP)
    assert [line.value for line in lines] == [None, None]
    assert all("too few: 5 trials of 5 people" in (line.note or "") for line in lines)


def test_people_are_counted_not_pictures() -> None:
    members_of = np.repeat(np.arange(9), 5).astype(np.str_)
    area, rate = roc_figures(np.arange(45.0), np.arange(200.0), rng(), members_of, fprs=[0.01], **MEMBERSHIP)
    assert area.value is None and rate.value is None and rate.subjects == 9
    with pytest.raises(ValueError, match="names"):
        auc(np.arange(50.0), np.arange(200.0), members_of[:3])
