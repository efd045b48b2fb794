"""What the noise guarantees: against quadrature, scipy, the likelihood-ratio attack, and frames solved by hand."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from metrics.audit.gaussian_bound import (
    QUANTILES,
    Certificate,
    advantage,
    compute_certificate,
    describe_advantages,
    information_bound,
    mu,
    renyi,
)
from metrics.stats.roc import threshold_at


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def bits_by_quadrature(points: np.ndarray, snr: float) -> float:
    """I(X; sqrt(snr) X + N) in bits for X uniform on ``points`` (N,): the entropy of the mixture, less the noise's."""
    at = np.linspace(-40, 40, 160_001)
    density = stats.norm.pdf(at[:, None], math.sqrt(snr) * points[None]).mean(1)
    return float(integrate.trapezoid(special.entr(density), at) - 0.5 * math.log(2 * math.pi * math.e)) / math.log(2)


def test_mu_of_the_paper_sheet() -> None:
    """Two unrelated Stable Diffusion latents, 181 apart, at t = 800 of its schedule (scaled linear)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert mu(181.0, float(np.cumprod(1 - betas)[799])) == pytest.approx(36, abs=1)


def test_k_outputs_multiply_mu_by_the_root_of_k() -> None:
    assert mu(2.0, 0.5) == pytest.approx(2) and mu(2.0, 0.5, 16) == pytest.approx(8)
    np.testing.assert_allclose(mu(np.array([0.0, 3.0]), 0.8), [0, 6])


@pytest.mark.parametrize("abar", [1.0, 1.5, -0.1])
def test_a_level_without_noise_is_refused(abar: float) -> None:
    with pytest.raises(ValueError, match="abar must be in"):
        mu(1.0, abar)


def test_no_output_is_no_case() -> None:
    with pytest.raises(ValueError, match="k must be positive, got 0"):
        mu(1.0, 0.5, 0)


@pytest.mark.parametrize("m", [0.0, 0.1, 1.0, 3.0, 12.0])
def test_advantage_is_the_total_variation_of_two_gaussians(m: float) -> None:
    at = np.linspace(-12, 24, 72_001)
    gap = np.abs(stats.norm.pdf(at) - stats.norm.pdf(at, m))
    assert advantage(m) == pytest.approx(integrate.trapezoid(gap, at) / 2, abs=1e-6)
    assert advantage(m) == pytest.approx(2 * stats.norm.cdf(m / 2) - 1)


def test_the_best_possible_attacker_reaches_the_advantage_and_none_passes_it() -> None:
    """Noised pictures of two originals, told apart by the likelihood ratio: TPR - FPR at the best threshold."""
    abar, originals = 0.3, rng(1).normal(size=(2, 48)) * 0.3
    noised = math.sqrt(abar) * originals[:, None] + math.sqrt(1 - abar) * rng(2).normal(size=(2, 20_000, 48))
    scores = noised @ (originals[1] - originals[0])  # (2, 20000)
    bound = advantage(mu(float(np.linalg.norm(originals[1] - originals[0])), abar))
    assert stats.ks_2samp(scores[0], scores[1]).statistic == pytest.approx(bound, abs=0.015)
    assert (scores[1] > threshold_at(scores[0], 0.1)).mean() - 0.1 <= bound + 0.01


@pytest.mark.parametrize(("m", "alpha"), [(0.5, 0.5), (1.0, 2.0), (0.7, 8.0)])
def test_renyi_is_its_integral(m: float, alpha: float) -> None:
    def integrand(x: float) -> float:
        return math.exp(alpha * stats.norm.logpdf(x, m) + (1 - alpha) * stats.norm.logpdf(x))

    total, _ = integrate.quad(integrand, -30, 30, limit=200)
    assert renyi(m, alpha) == pytest.approx(math.log(total) / (alpha - 1), rel=1e-6)


def test_renyi_of_order_one_is_kullbacks_divergence() -> None:
    at = np.linspace(-15, 15, 60_001)
    kullback = integrate.trapezoid(special.rel_entr(stats.norm.pdf(at, 1.3), stats.norm.pdf(at)), at)
    assert renyi(1.3, 1) == pytest.approx(kullback, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.inf])
def test_orders_without_a_divergence_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        renyi(1.0, alpha)


@pytest.mark.parametrize("snr", [0.01, 0.3, 2.0, 50.0])
def test_information_bounds_the_exact_information(snr: float) -> None:
    """Six points on a line; the exact value by quadrature, and the simpler bounds above."""
    points = rng(3).normal(size=6)
    abar, exact = snr / (1 + snr), bits_by_quadrature(points, snr)
    result = information_bound(points[:, None], abar)
    pairwise = np.mean([renyi(mu(abs(a - b), abar), 1) for a in points for b in points]) / math.log(2)
    assert exact <= result + 1e-6 and result <= math.log2(6) and result <= pairwise / 2 + 1e-9


def test_information_is_exact_to_first_order_in_the_signal() -> None:
    points = rng(4).normal(size=8)
    assert information_bound(points[:, None], 1e-4) == pytest.approx(bits_by_quadrature(points, 1e-4), rel=1e-2)


def test_information_of_far_pictures_is_all_there_is() -> None:
    assert information_bound(np.eye(16) * 1e4, 0.9) == math.log2(16) == 4


def test_k_outputs_are_one_output_with_k_times_the_signal() -> None:
    rows = rng(5).normal(size=(10, 3))
    assert information_bound(rows, 0.1, 5) == pytest.approx(
        information_bound(rows, 5 / 14)
    )  # 5 * .1 / .9 = (5/14) / (9/14)


def test_a_certificate_of_three_pictures_solved_by_hand() -> None:
    """A triangle of sides 3, 4, 5 at abar = .5, where mu is the distance: the neighbours are 3, 3 and 4 away."""
    latents = torch.zeros(3, 1, 2, 2)
    latents[1, 0, 0, 0], latents[2, 0, 1, 1] = 3, 4
    result = compute_certificate(latents, 0.5, rng())
    assert result.pair_distances == result.pair_mu == pytest.approx(np.quantile([3, 4, 5], QUANTILES))
    assert result.nearest_distances == pytest.approx(np.quantile([3, 3, 4], QUANTILES))
    assert result.advantage_nearest == pytest.approx(advantage(3)) and result.renyi_nearest == pytest.approx(9)
    assert result.advantage_median == pytest.approx(advantage(4)) and result.renyi_median == pytest.approx(16)
    assert result.advantage_farthest == pytest.approx(advantage(5)) and result.renyi_farthest == pytest.approx(25)
    assert result.n == 3 and result.k == 1 and result.most_bits == pytest.approx(math.log2(3))
    assert result.information_bits == pytest.approx(information_bound(latents, 0.5))


def test_copies_of_a_picture_are_no_neighbours() -> None:
    rows = rng(6).normal(size=(5, 12)) + 100
    result = compute_certificate(np.concatenate([rows, rows[:2] + 1e-9]), 0.5, rng())  # copies but for rounding
    assert result.pair_distances[0] > 1 and result.nearest_distances[0] == pytest.approx(result.pair_distances[0])


def test_distances_are_those_of_numpy() -> None:
    rows = rng(7).normal(size=(20, 300))
    gaps = [np.linalg.norm(rows[i] - rows[j]) for i in range(20) for j in range(i)]
    assert compute_certificate(rows, 0.5, rng()).pair_distances == pytest.approx(np.quantile(gaps, QUANTILES))


def test_of_many_pictures_a_sample_is_taken_that_the_generator_alone_decides() -> None:
    rows = torch.from_numpy(rng(8).normal(size=(50, 6))).half()
    first, again, other = (compute_certificate(rows, 0.2, rng(seed), max_images=20) for seed in (1, 1, 2))
    assert first == again != other and first.n == 20 and first.most_bits == math.log2(20)


@pytest.mark.parametrize("bad", [np.ones((1, 4)), np.array([[1.0], [np.nan]]), np.ones((3, 4))])
def test_pictures_that_have_no_distance_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="latents must"):
        compute_certificate(bad, 0.5, rng())


def scaled(scale: float, k: int = 1) -> Certificate:
    return compute_certificate(rng(9).normal(size=(30, 64)) * scale, 0.5, rng(), k=k)


def test_at_useful_levels_the_sentence_says_that_nothing_is_guaranteed() -> None:
    result = scaled(1.0)
    assert result.advantage_nearest > 0.99 and result.information_bits == pytest.approx(math.log2(30))
    assert result.sentence.startswith("No formal guarantee: ") and "measured risk" in result.sentence


def test_with_much_noise_the_sentence_states_the_bound() -> None:
    result = scaled(0.01)
    assert result.sentence.startswith("A formal guarantee: whatever an attacker does with one output")
    assert result.information_bits < 0.1


def test_more_outputs_undo_a_guarantee() -> None:
    assert scaled(0.01, k=1000).sentence.startswith("No formal guarantee")
    assert "1000 outputs of one original" in scaled(0.01, k=1000).sentence


def test_a_guarantee_for_some_pairs_only_is_not_sold_as_one() -> None:
    assert describe_advantages(0.1, 0.3, 0.9, 1).startswith("No formal guarantee for all originals")


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.integers(1, 99))
def test_sentences_round_bounds_up_and_speak_of_no_epsilon(advantages: list[float], k: int) -> None:
    nearest, median, farthest = sorted(advantages)
    text = describe_advantages(nearest, median, farthest, k)
    stated = sorted(float(number) for number in re.findall(r"\b[01]\.\d\d\b", text))
    meant = (
        [nearest, median] if nearest > 0.5 else [nearest, median, farthest] if farthest > 0.5 else [median, farthest]
    )
    assert all(0 <= value + 1e-9 - bound < 0.0101 for value, bound in zip(stated, meant, strict=True))
    assert "epsilon" not in text.lower() and "anonym" not in text.lower()


def test_a_certificate_is_plain_data() -> None:
    assert json.loads(json.dumps(asdict(scaled(0.1))))["n"] == 30
