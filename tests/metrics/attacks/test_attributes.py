from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.attacks import attributes
from metrics.attacks.attributes import group_known_values, group_values, permute_labels, predict_attribute
from metrics.stats.intervals import as_subjects
from tests.support.embeddings import directions, includes, names, unit

RNG = np.random.default_rng
READERS = ("originals", "unaware", "trained")


def planted(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of two groups, three fifths and two, that a plane tells apart; and their labels."""
    labels = np.where(np.arange(count) % 5 < 3, "a", "b")
    return directions(rng, count, 16) + np.where(labels == "a", 2, -2)[:, None] * np.eye(16)[0], labels


def test_a_release_of_originals_is_read_as_they_are() -> None:
    originals, labels = planted(RNG(0), 200)
    result = predict_attribute(originals, originals, labels, names(200), RNG(1))
    assert [result.trials(reader).rate for reader in READERS] == [1, 1, 1]
    assert result.chance == 0.6 and result.trials("trained_control").rate < 0.75


def test_independent_outputs_are_read_by_chance() -> None:
    rng = RNG(2)
    originals, _ = planted(rng, 600)
    labels = np.where(np.arange(600) % 2 == 0, "a", "b")
    outputs = directions(rng, 600, 16)
    result = predict_attribute(originals, outputs, labels, names(600), rng)
    for reader in ("unaware", "trained", "unaware_control", "trained_control"):
        assert includes(result.trials(reader), 0.5)


def test_outputs_that_turn_an_attribute_around_fool_only_the_unaware() -> None:
    originals, labels = planted(RNG(3), 200)
    result = predict_attribute(originals, -originals, labels, names(200), RNG(4))
    assert result.trials("unaware").rate == 0 and result.trials("trained").rate == 1


def test_nobody_is_learnt_from_and_read() -> None:
    """Each person has a direction and a label of his own making: who is not cross-validated reads everything."""
    rng = RNG(5)
    centres, coin = directions(rng, 80, 64), rng.integers(0, 2, 80)
    photos = np.repeat(centres, 5, axis=0) + 0.01 * directions(rng, 400, 64)
    result = predict_attribute(photos, photos, np.where(coin, "a", "b").repeat(5), names(80, 5), rng)
    assert 0.2 < result.trials("trained").rate < 0.8


def test_pictures_without_a_face_are_read_as_the_most_frequent() -> None:
    originals, labels = planted(RNG(6), 100)
    outputs = originals.copy()
    outputs[::2] = np.nan
    result = predict_attribute(originals, outputs, labels, names(100), RNG(7))
    assert (result.unaware[::2] == "a").all() and (result.unaware[1::2] == labels[1::2]).all()
    assert result.seen.tolist() == [False, True] * 50
    nothing = predict_attribute(originals, np.full_like(originals, np.nan), labels, names(100), RNG(7))
    assert nothing.trials("trained").rate == nothing.chance == 0.6


def test_dealing_moves_labels_between_people_and_keeps_their_counts() -> None:
    labels, subjects = np.array(["a", "b", "c", "d"] * 25), names(100)
    dealt = permute_labels(labels, subjects, RNG(8))
    assert Counter(dealt.tolist()) == Counter(labels.tolist()) and (dealt != labels).any()
    several = permute_labels(as_subjects(range(40)).repeat(3), names(40, 3), RNG(9)).reshape(40, 3)
    assert (several == several[:, :1]).all()  # all photos of a person take one and the same person's label


def test_subgroups_and_readers_have_figures() -> None:
    originals, labels = planted(RNG(10), 200)
    result = predict_attribute(originals, originals, labels, names(200), RNG(11))
    lines = attributes.figures(
        result, "trained", "gender", RNG(12), attack="attributes", attacker="trained", feature="planted"
    )
    assert [line.subgroup for line in lines] == [None, "gender = a", "gender = b"]
    assert lines[0].measure == "accuracy of gender" and lines[0].value == 1 and lines[0].chance == 0.6
    assert lines[0].control is not None and lines[1].n == 120


def test_text_and_few_numbers_stay_as_they_are() -> None:
    assert group_values(["f", "m", "f"]).tolist() == ["f", "m", "f"]
    assert group_values([1, 0, 1]).tolist() == ["1", "0", "1"]
    assert group_values([1.0, 0.5]).tolist() == ["1", "0.5"]
    assert group_values([True, False]).tolist() == ["True", "False"]


def test_many_numbers_are_cut_into_quarters() -> None:
    result = group_values(range(20, 60))
    assert Counter(result.tolist()) == {"20 to 29": 10, "30 to 39": 10, "40 to 49": 10, "50 to 59": 10}


@given(st.lists(st.integers(0, 100), min_size=1, max_size=60))
def test_every_number_lies_in_the_group_that_it_is_put_in(values: list[int]) -> None:
    for value, group in zip(values, group_values(values, max_groups=0), strict=True):
        low, high = map(float, group.split(" to "))
        assert low <= value <= high


@pytest.mark.parametrize("values", (["f", None], [1.0, float("nan")], [float(i) for i in range(20)] + [float("nan")]))
def test_a_missing_value_is_an_error(values: list[object]) -> None:
    with pytest.raises(ValueError, match="leave its rows out"):
        group_values(values)


def test_missing_values_are_unknown_and_leave_the_others_bins_alone() -> None:
    ages = [*range(20, 60), None, float("nan")]
    result = group_known_values(ages)
    assert result[:40].tolist() == group_values(range(20, 60)).tolist() and result[40:].tolist() == ["unknown"] * 2
    assert group_known_values(["f", None, "m"]).tolist() == ["f", "unknown", "m"]
    assert group_known_values([None, None]).tolist() == ["unknown"] * 2
    assert group_known_values([1, 0]).tolist() == group_values([1, 0]).tolist()


def test_columns_of_different_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="one length, got 3, 3, 2 and 3"):
        predict_attribute(np.zeros((3, 2)), np.zeros((3, 2)), names(2), names(3), RNG(0))


def test_halves_merge() -> None:
    originals, labels = planted(RNG(13), 100)
    half = predict_attribute(originals, originals, labels, names(100), RNG(14))
    assert len(half + half) == 200 and (half + half).trials("unaware").rate == 1


@pytest.mark.parametrize("values", [("male", "female"), ("a", "bcdefg"), ("yes", "no")])
def test_labels_of_any_length_are_read_whole(values: tuple[str, str]) -> None:
    """Two groups that are plain to see, the more frequent one with the shorter name or the longer."""
    rng = np.random.default_rng(3)
    labels = np.array([values[i % 3 == 0] for i in range(90)])
    rows = unit(np.where(labels == values[0], 1.0, -1.0)[:, None] * np.ones(8) + 0.3 * rng.standard_normal((90, 8)))
    result = attributes.predict_attribute(rows, rows, labels, as_subjects(range(90)), rng)
    assert result.trials("originals").rate == result.trials("trained").rate == 1
    assert set(result.unaware_control) <= set(values)
