from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from metrics.attacks import averaging as module
from metrics.attacks.averaging import attack_averages, average
from metrics.attacks.linkage import link
from tests.support.embeddings import directions, includes, names


def test_the_mean_of_two_solved_by_hand() -> None:
    outputs = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(average(outputs, 1), [[1, 0]])
    np.testing.assert_allclose(average(outputs, 2), [[0.5**0.5, 0.5**0.5]])


def test_undetected_outputs_are_left_out() -> None:
    outputs = np.array([[[np.nan, np.nan], [0.0, 1.0]], [[np.nan, np.nan], [np.nan, 1.0]]])
    np.testing.assert_array_equal(average(outputs, 2), [[0, 1], [np.nan, np.nan]])
    assert np.isnan(average(outputs, 1)).all()


def test_outputs_that_cancel_say_nothing() -> None:
    assert np.isnan(average(np.array([[[1.0, 0.0], [-1.0, 0.0]]]), 2)).all()


def test_more_outputs_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"k in 1\.\.K"):
        average(np.zeros((1, 2, 3)), 3)


def test_a_gaussian_channel_gives_the_hit_rate_of_its_closed_form() -> None:
    """Candidates are the axes e_1..e_M, outputs e_i + N(0, s^2 I): the mean of k hits if its i-th coordinate, N(1,
    s^2 / k), is above M - 1 of N(0, s^2 / k); so P = E[Phi(z + sqrt(k) / s)^(M - 1)]."""
    rng, M, s = np.random.default_rng(0), 20, 1.5
    truth = np.arange(1500) % M
    outputs = np.eye(M)[truth][:, None] + s * rng.standard_normal((1500, 16, M))
    attack = partial(link, gallery=np.eye(M), truth=truth, subjects=names(M)[truth], rng=rng)
    result = attack_averages(outputs, attack)
    assert list(result.rankings) == [1, 2, 4, 8, 16]
    for k, ranking in result.rankings.items():

        def density(z: float, shift: float = k**0.5 / s) -> float:
            return float(norm.pdf(z) * norm.cdf(z + shift) ** (M - 1))

        assert includes(ranking.within(1), quad(density, -8, 8)[0])
    rates = [ranking.within(1).rate for ranking in result.rankings.values()]
    assert rates == sorted(rates)


def test_halves_merge_and_figures_say_how_many_outputs() -> None:
    rng = np.random.default_rng(1)
    outputs, photos = directions(rng, 60, 2, 16), directions(rng, 60, 16)
    halves = [
        attack_averages(outputs[h], lambda x, h=h: link(x, photos, np.arange(60)[h], names(60)[h], rng))
        for h in (slice(0, 30), slice(30, 60))
    ]
    merged = halves[0] + halves[1]
    assert {k: len(ranking) for k, ranking in merged.rankings.items()} == {1: 60, 2: 60}
    lines = module.figures(merged, rng, attack="averaging", attacker="sees k outputs", feature="pixels")
    assert [line.outputs for line in lines if line.measure == "rank-1"] == [1, 2]
