from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg

from metrics.utility.fidelity import FidelityDistance, frechet_distance, kernel_distance, measure_distances
from tests.support.embeddings import Floats, directions, names, unit

RNG = np.random.default_rng


def by_square_root(a: Floats, b: Floats) -> float:
    """The formula as it is usually computed."""
    s_a, s_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(s_a @ s_b)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s_a + s_b - 2 * root.real))


def by_pairs(a: Floats, b: Floats, scale: float) -> float:
    """The estimator, pair by pair."""

    def mean(x: Floats, y: Floats, skip: bool) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (skip and i == j)]
        return float(np.mean([(float(x[i] @ y[j]) / scale + 1) ** 3 for i, j in pairs]))

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def rotation(rng: np.random.Generator, size: int) -> Floats:
    turn: Floats = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return turn


def measured(originals: Floats, outputs: Floats, seed: int = 0) -> tuple[FidelityDistance, FidelityDistance]:
    first, second = measure_distances(originals, outputs, RNG(seed))
    return first, second


# Fréchet


def test_gaussians_of_known_means_and_variances_are_as_far_apart_as_the_formula_says() -> None:
    rng, deviations, shift = RNG(0), np.array([[1, 2, 0.5, 1], [2, 1, 0.5, 3]]), np.array([1, 0, -1, 0.5])
    a, b = rng.standard_normal((2, 100_000, 4)) * deviations[:, None]
    truth = (shift**2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()  # 2.25 + 6
    assert frechet_distance(a, b + shift) == pytest.approx(truth, abs=0.1)


@pytest.mark.parametrize("rows", (10, 200))  # fewer than the 32 dimensions, and more
def test_a_shift_is_as_far_as_its_square(rows: int) -> None:
    a = RNG(1).standard_normal((rows, 32))
    assert frechet_distance(a, a + 0.25) == pytest.approx(32 * 0.25**2, abs=1e-9)


@pytest.mark.parametrize("rows", (10, 200))
def test_a_set_is_nowhere_from_itself_and_either_side_may_come_first(rows: int) -> None:
    a, b = RNG(2).standard_normal((2, rows, 32))
    assert 0 <= frechet_distance(a, a) < 1e-9
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-9)


def test_a_scaled_set_is_known_where_covariances_are_singular_too() -> None:
    """S_b = 4 S_a: the trace of S_a + S_b - 2 (S_a S_b)^(1/2) is that of S_a."""
    a = RNG(3).standard_normal((10, 64))
    a = a - a.mean(0)
    assert frechet_distance(a, 2 * a) == pytest.approx(float((a**2).sum() / 9), rel=1e-9)


def test_the_square_root_of_a_matrix_agrees() -> None:
    rng = RNG(4)
    a, b = rng.standard_normal((100, 12)) @ rotation(rng, 12), rng.gamma(2, size=(80, 12))
    assert frechet_distance(a, b) == pytest.approx(by_square_root(a, b), rel=1e-8)


# Kernel


def test_the_kernel_distance_is_that_of_all_pairs() -> None:
    a, b = RNG(5).standard_normal((12, 6)), RNG(6).standard_normal((9, 6)) + 0.3
    assert kernel_distance(a, b, scale=6) == pytest.approx(by_pairs(a, b, 6), rel=1e-9)


def test_two_pictures_a_side_are_solved_by_hand() -> None:
    """Within a side the pairs are orthogonal, (0 + 1)^3; across sides half are equal, 2^3, and half orthogonal, 1."""
    a = np.eye(2)
    assert kernel_distance(a, a) == pytest.approx(1 + 1 - 2 * (8 + 1) / 2)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average() -> None:
    rng = RNG(7)
    drawn = np.array([kernel_distance(*directions(rng, 2, 20, 8)) for _ in range(400)])
    assert abs(drawn.mean()) < 4 * drawn.std() / 20 and (drawn < 0).any()


def test_the_kernel_distance_sees_what_means_do_not_tell() -> None:
    rng = RNG(8)
    flat = rng.standard_normal((300, 16)) * np.linspace(2, 0.1, 16)
    a, b = directions(rng, 300, 16), unit(flat)
    assert kernel_distance(a, b) > 5 * abs(kernel_distance(a[::2], a[1::2]))
    assert kernel_distance(a, b) > 100 * kernel_distance(a, b, scale=16), (
        "a scale of D flattens the kernel for rows of unit norm"
    )


def test_pairs_of_one_person_are_left_out() -> None:
    rng = RNG(21)
    a, of = directions(rng, 30, 8), names(30)
    assert kernel_distance(a, a, of, of) == pytest.approx(0, abs=1e-12), "each picture beside itself says nothing"
    several = kernel_distance(a.repeat(3, axis=0), a.repeat(2, axis=0), names(30, 3), names(30, 2))
    assert several == pytest.approx(0, abs=1e-12)


def test_turning_both_sides_changes_nothing() -> None:
    rng = RNG(9)
    a, b, turn = directions(rng, 40, 16), unit(directions(rng, 50, 16) + 0.1), rotation(rng, 16)
    for measure in (frechet_distance, kernel_distance):
        assert measure(a @ turn, b @ turn) == pytest.approx(measure(a, b), abs=1e-9)


# Beside their floor


def test_outputs_that_are_their_originals_are_exactly_at_the_floor() -> None:
    originals = directions(RNG(10), 100, 16)
    for result in measured(originals, originals):
        assert result.excess == 0 and result.floor_low <= result.value <= result.floor_high
        assert (result.size, result.dimension, result.n_originals, result.n_outputs) == (50, 16, 100, 100)


def test_fresh_pictures_of_one_distribution_are_at_the_floor_as_well() -> None:
    originals, outputs = directions(RNG(11), 2, 200, 16)
    for result in measured(originals, outputs):
        assert result.low <= result.floor <= result.high


def test_a_frechet_floor_grows_in_small_samples_and_a_kernel_floor_stays_at_zero() -> None:
    originals = directions(RNG(12), 400, 16)
    (few, few_pairs), (many, many_pairs) = (measured(rows, rows) for rows in (originals[:50], originals))
    assert few.floor > 4 * many.floor > 0
    assert few_pairs.floor_low < 0 < few_pairs.floor_high and many_pairs.floor_low < 0 < many_pairs.floor_high


def test_the_interval_holds_what_other_people_give() -> None:
    """Sides are independent here; the 95 % interval may miss the mean of 60 samples about three times."""
    rng = RNG(13)
    result = [measured(directions(rng, 60, 6), unit(directions(rng, 60, 6) + 0.3), seed) for seed in range(60)]
    for lines in zip(*result, strict=True):
        truth = np.mean([line.value for line in lines])
        assert sum(line.low <= truth <= line.high for line in lines) >= 52


def test_outputs_of_little_variety_are_told_by_the_kernel_where_frechet_is_below_its_floor() -> None:
    pictures = RNG(14).standard_normal((100, 128))
    by_frechet, by_kernel = measured(unit(pictures + 1), unit(0.6 * pictures + 1))
    assert by_frechet.excess < 0 and "singular" in by_frechet.note and "below the floor" in by_frechet.note
    assert by_kernel.low > by_kernel.floor_high


def test_above_the_dimension_the_note_speaks_of_the_bias_alone() -> None:
    originals = directions(RNG(15), 60, 4)
    by_frechet, by_kernel = measured(originals, originals)
    assert "biased upwards" in by_frechet.note and "singular" not in by_frechet.note
    assert by_kernel.note.startswith("not biased")


def test_photos_of_one_person_count_as_one_person() -> None:
    """Five photos each, all but the same; outputs are of one distribution with them, but no two are alike."""
    rng = RNG(16)
    originals, outputs = directions(rng, 60, 8).repeat(5, axis=0), directions(rng, 300, 8)
    single, together = (measure_distances(originals, outputs, RNG(0), of)[1] for of in (None, names(60, 5)))
    assert together.size == single.size == 150
    assert together.low < 0 < together.high and single.low > 0, "twins are alike, which is no distance"
    assert together.high - together.low > 1.3 * (single.high - single.low)


def test_rows_that_are_not_finite_are_left_out_and_counted() -> None:
    originals, outputs = directions(RNG(17), 2, 80, 8)
    outputs[:10], originals[0] = np.nan, np.inf
    for result in measured(originals, outputs):
        assert (result.n_originals, result.left_out_originals) == (79, 1)
        assert (result.n_outputs, result.left_out_outputs) == (70, 10)
        assert np.isfinite([result.value, result.low, result.high, result.floor]).all()


def test_sides_may_differ_in_number() -> None:
    originals, outputs = directions(RNG(18), 80, 8), directions(RNG(19), 200, 8)
    result, _ = measured(originals, outputs)
    assert (result.n_originals, result.n_outputs) == (80, 200) and result.size <= 40


def test_what_cannot_be_compared_is_refused() -> None:
    rows = directions(RNG(20), 40, 8)
    missing = np.where(np.arange(40)[:, None] < 30, np.nan, rows)
    for call, says in (
        (lambda: frechet_distance(rows, rows[:, :4]), r"got \(40, 8\) and \(40, 4\): embed"),
        (lambda: kernel_distance(rows, rows[:1]), "two finite rows or more"),
        (lambda: frechet_distance(rows, missing), "finite"),
        (lambda: kernel_distance(rows, rows, names(1, 40), names(1, 40)), "two people or more, got one"),
        (lambda: measure_distances(rows, rows[:, :4], RNG(0)), "both alike"),
        (
            lambda: measure_distances(rows, missing, RNG(0)),
            "outputs must be .* 20 people or more.* 30 of them not finite",
        ),
        (lambda: measure_distances(rows, rows, RNG(0), names(10, 4)), "originals must be .* 40 names of 10 people"),
        (
            lambda: measure_distances(rows, rows, RNG(0), names(40), names(39)),
            r"outputs must .* got \(40, 8\).* 39 names",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            call()
