"""The worst subgroup, and the best attacker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pytest

from anonymizer.policy.risk_figures import FigureRow, select_strongest
from metrics.stats.intervals import Trials, as_subjects, wilson_interval
from metrics.stats.risk import Figure, FigureContext, make_figure
from metrics.stats.subgroups import split_by_group, subgroup_figures

LINKAGE = FigureContext(attack="linkage", attacker="unaware", feature="pixels")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def trials(hits: int, n: int) -> Trials:
    return Trials(np.arange(n) < hits, as_subjects(range(n)))


def line(hits: int, n: int, feature: str = "pixels", control: Trials | None = None) -> Figure:
    return make_figure(
        trials(hits, n), rng(), measure="rank-1", control=control, attack="linkage", attacker="unaware", feature=feature
    )


def best(lines: Sequence[Figure]) -> FigureRow:
    (result,) = select_strongest([asdict(one) for one in lines], ("linkage",))
    return result


def grouped(**groups: tuple[int, int]) -> tuple[Trials, np.ndarray]:
    """Trials of the named groups, each ``(hits, n)``, and the group of each."""
    result = [trials(*counts) for counts in groups.values()]
    hits = np.concatenate([one.hits for one in result])
    names = np.repeat(list(groups), [len(one) for one in result])
    return Trials(hits, as_subjects(range(len(hits)))), names


def test_groups_must_be_as_many_as_trials() -> None:
    with pytest.raises(ValueError, match="groups"):
        split_by_group(trials(1, 3), np.array(["a", "b"]))


def test_each_subgroup_has_its_rate_and_a_planted_one_is_noted_as_worst() -> None:
    some, names = grouped(old=(30, 60), young=(6, 200), few=(5, 9))
    few, old, young = subgroup_figures(some, names, rng(), column="age", measure="rank-1", **LINKAGE)
    assert [one.subgroup for one in (few, old, young)] == ["age = few", "age = old", "age = young"]
    assert few.value is None and few.note == "too few: 9 trials of 9 people, at least 20 trials of 10 people are needed"
    assert (old.value, old.high) == (0.5, wilson_interval(30, 60).high) and young.note is None
    assert old.note == f"of 2 subgroups the one that could be worst: at most {wilson_interval(30, 60).high:.1%}"


def test_a_subgroup_may_have_its_own_control() -> None:
    some, names = grouped(a=(30, 60), b=(20, 60))
    controls = split_by_group(*grouped(a=(30, 60), b=(0, 60)))
    a, b = subgroup_figures(some, names, rng(), column="g", measure="rank-1", controls=controls, **LINKAGE)
    assert a.risk == 0 and b.risk == pytest.approx(1 / 3)
    assert a.note is None and b.note is not None and f"at most {b.risk_high:.1%}" in b.note


def test_one_subgroup_is_not_called_the_worst() -> None:
    some, names = grouped(a=(30, 60))
    (only,) = subgroup_figures(some, names, rng(), column="g", measure="rank-1", **LINKAGE)
    assert only.note is None


def test_the_best_attacker_is_the_one_with_the_highest_upper_bound() -> None:
    sure, vague = line(50, 500, "pixels"), line(2, 20, "clip")
    assert sure.value == vague.value and best([sure, vague])["feature"] == "clip"


def test_the_best_attacker_is_chosen_by_risk_where_all_have_one() -> None:
    leaky, controlled = line(30, 100, "pixels", trials(2, 100)), line(40, 100, "clip", trials(39, 100))
    assert best([leaky, controlled])["feature"] == "pixels"


def test_figures_without_a_value_never_win() -> None:
    few, none = line(12, 12, "a"), line(0, 100, "c")
    assert best([few, none])["feature"] == "c"
    assert select_strongest([asdict(few)], ("linkage",)) == []


def test_a_control_that_always_hits_leaves_no_headline() -> None:
    blind, seeing = line(50, 50, "a", trials(50, 50)), line(5, 50, "b", trials(1, 50))
    assert best([blind, seeing])["feature"] == "b"


def test_the_upper_bound_of_the_best_holds_after_choosing() -> None:
    """Five attackers at the same true rate, the best of them reported: its upper bound fails in under 2.5 %."""
    source, rounds = np.random.default_rng(4), 150
    result = [best([line(int(source.binomial(80, 0.2)), 80) for _ in range(5)]) for _ in range(rounds)]
    assert np.mean([one["high"] < 0.2 for one in result]) < 0.025
    assert np.mean([one["value"] for one in result]) > 0.22  # choosing the highest overstates the rate
