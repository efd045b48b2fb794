from __future__ import annotations

import numpy as np
import pytest

from metrics.stats.intervals import Names
from metrics.utility.utility import measure_utility, predict_by_transfer
from tests.support.embeddings import Floats, directions, includes, names

RNG = np.random.default_rng
TEACHERS = ("originals", "outputs", "control")


def planted(rng: np.random.Generator, count: int, strength: float = 0.5) -> tuple[Floats, Names]:
    """Embeddings of two groups, three fifths and two, that a plane tells apart more or less; and their labels."""
    labels = np.where(np.arange(count) % 5 < 3, "a", "b")
    return directions(rng, count, 16) + np.where(labels == "a", strength, -strength)[:, None] * np.eye(16)[0], labels


def test_a_reader_of_a_few_rows_is_solved_by_hand() -> None:
    """Each of four people has an a at -1 and a b at 1, so that every reader draws its line in the middle.

    Outputs moved by ten teach a line at 10, and all originals are read as a; outputs turned around teach all wrong.
    """
    originals, labels, subjects = np.tile([[-1.0], [1.0]], (4, 1)), np.tile(["a", "b"], 4), names(4, 2)
    moved = predict_by_transfer(originals, originals + 10, labels, subjects, RNG(0))
    assert (moved.originals == labels).all() and (moved.outputs == "a").all() and moved.chance == 0.5
    turned = predict_by_transfer(originals, -originals, labels, subjects, RNG(0))
    assert turned.trials("originals").rate == 1 and turned.trials("outputs").rate == 0


def test_outputs_that_are_their_originals_teach_the_same() -> None:
    originals, labels = planted(RNG(1), 200)
    result = predict_by_transfer(originals, originals, labels, names(200), RNG(2))
    assert (result.outputs == result.originals).all() and result.trials("outputs").rate > 0.9
    measured = measure_utility(result, RNG(3))
    assert measured.outputs == measured.originals and measured.chance == 0.6 and measured.note is None
    assert (
        measured.control is not None and measured.outputs is not None and measured.control.high < measured.outputs.low
    )


def test_outputs_without_a_signal_teach_chance() -> None:
    rng = RNG(4)
    originals, labels = planted(rng, 600)
    labels = np.where(np.arange(600) % 2 == 0, "a", "b")
    result = predict_by_transfer(originals, directions(rng, 600, 16), labels, names(600), rng)
    assert includes(result.trials("outputs"), 0.5) and includes(result.trials("control"), 0.5)
    measured = measure_utility(result, RNG(5))
    assert measured.outputs is not None and measured.outputs.low <= measured.chance <= measured.outputs.high


def test_labels_that_are_lost_on_the_way_teach_chance_though_originals_teach_well() -> None:
    rng = RNG(6)
    originals, labels = planted(rng, 400, 2)
    result = predict_by_transfer(originals, originals[rng.permutation(400)], labels, names(400), rng)
    assert result.trials("originals").rate == 1 and result.trials("outputs").rate < 0.75


def test_nobody_teaches_and_is_judged() -> None:
    """Each person has a direction and a label of his own making: who is not held out is read perfectly."""
    rng = RNG(7)
    centres, coin = directions(rng, 80, 64), rng.integers(0, 2, 80)
    photos = np.repeat(centres, 5, axis=0) + 0.01 * directions(rng, 400, 64)
    result = predict_by_transfer(photos, photos, np.where(coin, "a", "b").repeat(5), names(80, 5), rng)
    assert 0.2 < result.trials("outputs").rate < 0.8


def test_several_pictures_of_a_person_widen_the_interval() -> None:
    originals, labels = planted(RNG(8), 100, 0.3)
    result = predict_by_transfer(originals, originals, labels, names(100), RNG(9))
    twice = measure_utility(result + result, RNG(10))
    once = measure_utility(result, RNG(10))
    assert (twice.n, twice.subjects, once.n) == (200, 100, 100)
    assert once.outputs is not None and twice.outputs is not None and twice.outputs.value == once.outputs.value
    width = once.outputs.high - once.outputs.low
    assert twice.outputs.high - twice.outputs.low == pytest.approx(width, rel=0.15), "200 people: 0.7 of it"


def test_outputs_that_were_not_detected_teach_nothing() -> None:
    originals, labels = planted(RNG(11), 200, 2)
    half = np.where(np.arange(200)[:, None] % 2 == 0, np.nan, originals)
    assert predict_by_transfer(originals, half, labels, names(200), RNG(12)).trials("outputs").rate == 1
    nothing = predict_by_transfer(originals, np.full_like(originals, np.nan), labels, names(200), RNG(12))
    assert (nothing.outputs == "a").all() and nothing.trials("outputs").rate == nothing.chance


def test_too_few_people_say_so() -> None:
    originals, labels = planted(RNG(13), 27)
    measured = measure_utility(predict_by_transfer(originals, originals, labels, names(9, 3), RNG(14)), RNG(15))
    assert measured.note == "too few: 27 trials of 9 people, at least 20 trials of 10 people are needed"
    assert measured.originals is measured.outputs is measured.control is None


def test_what_cannot_teach_is_refused() -> None:
    rows, labels = planted(RNG(16), 20)
    for call, says in (
        (lambda: predict_by_transfer(rows, rows[:5], labels, names(20), RNG(0)), "pair them row by row"),
        (lambda: predict_by_transfer(rows, rows, labels[:5], names(20), RNG(0)), "one length, got 20, 5 and 20"),
        (
            lambda: predict_by_transfer(rows, rows, labels, names(1, 20), RNG(0)),
            "got 1 and 5: give pictures of more people",
        ),
        (lambda: predict_by_transfer(rows, rows, labels, names(20), RNG(0), folds=1), "got 20 and 1"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
