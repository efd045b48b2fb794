"""Ceilings against closed forms, frames solved by hand, and attackers who see the noised originals themselves."""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from anonymizer.backbones import Denoised
from anonymizer.boomerang import Boomerang
from anonymizer.noise import KeyedNoise
from anonymizer.records import CeilingRate, Ceilings
from metrics.attacks.linkage import link
from metrics.stats.ceilings import Candidates, bound_membership, compute_ceilings, place, tpr_at
from metrics.stats.roc import threshold_at
from tests.support.ideal_gaussian import IdealGaussian

Floats = npt.NDArray[np.floating[Any]]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def abar_of(snr: float) -> float:
    return snr / (1 + snr)


def people(count: int, each: int = 1) -> npt.NDArray[np.str_]:
    return np.array([f"person {i:04d}" for i in range(count) for _ in range(each)])


def ceilings_of(points: Floats, snr: float = 1.0, **more: Any) -> Ceilings:
    return compute_ceilings(place(points, people(len(points))), abar_of(snr), rng(1), **more)


def agrees(rate: CeilingRate, value: float, slack: float = 0.02) -> bool:
    """Whether the interval holds the value, but for one in twenty runs whose interval ends near it."""
    return rate.low - slack <= value <= rate.high + slack


@pytest.mark.parametrize("mu", [0.1, 1.0, 3.0])
def test_the_right_one_of_two_candidates_is_named_at_phi_of_half_their_distance(mu: float) -> None:
    result = ceilings_of(np.array([[0.0, 0, 0, 5], [0, mu, 0, 5]]))
    assert agrees(result.linkage_rank1, float(stats.norm.cdf(mu / 2)), 0.01)
    assert result.linkage_rank5.value == 1 and result.linkage_rank1.gallery == 2


@pytest.mark.parametrize(("norm", "count"), [(2.0, 20), (3.0, 100)])
def test_candidates_at_right_angles_have_their_known_integral(norm: float, count: int) -> None:
    """The right score is N(norm^2, norm^2) above count - 1 independent N(0, norm^2)."""
    expected, _ = integrate.quad(lambda u: stats.norm.pdf(u) * stats.norm.cdf(u + norm) ** (count - 1), -9, 9)
    assert agrees(ceilings_of(np.eye(count) * norm).linkage_rank1, expected)
    scaled = ceilings_of(np.eye(count), norm**2)
    assert agrees(scaled.linkage_rank1, expected)


def test_without_signal_candidates_are_guessed() -> None:
    result = ceilings_of(rng(2).normal(size=(50, 4)), 1e-9)
    assert agrees(result.linkage_rank1, 1 / 50) and agrees(result.linkage_rank5, 5 / 50)
    assert agrees(result.linkage_assigned, 1 / 50)
    assert result.membership_tpr_at_1.worst == pytest.approx(0.01, rel=0.01)


def test_coordinates_of_the_span_keep_distances() -> None:
    rows = rng(3).normal(size=(20, 300)).astype(np.float32) + 7
    points = place(rows, people(20)).points
    assert points.shape == (20, 20)
    for i, j in [(0, 1), (3, 19)]:
        assert np.linalg.norm(points[i] - points[j]) == pytest.approx(np.linalg.norm(rows[i] - rows[j]), rel=1e-5)


def test_an_attacker_on_outputs_that_keep_all_reaches_the_ceiling_and_does_not_pass_it() -> None:
    """A model that returns what it is given: outputs are the noised originals, and cosines rank as the likelihood."""

    class Identity(IdealGaussian):
        def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
            return Denoised(z0=zt, eps=torch.zeros_like(zt))

        def decode(self, z0: torch.Tensor) -> torch.Tensor:
            return z0 / 10  # so that nothing is cut off

    boomerang = Boomerang(Identity(), "ddim", 1)
    x = torch.from_numpy(np.sign(rng(4).normal(size=(200, 3, 8, 8))).astype(np.float32)) * 0.8  # of one length
    rates = []
    for draw in range(5):
        outputs = boomerang.sample(x, 0.5, KeyedNoise([rng(i).bytes(16) for i in range(200)], number=draw))
        ranking = link(outputs.flatten(1).numpy(), x.flatten(1).numpy(), np.arange(200), people(200), rng())
        rates.append(ranking.within(1).rate)
    abar = float(boomerang.abar[boomerang.t_boom(0.5)])
    ceiling = compute_ceilings(place(x.numpy(), people(200)), abar, rng(6)).linkage_rank1
    assert 0.2 < ceiling.value < 0.95
    assert agrees(ceiling, float(np.mean(rates)), 0.03)


def test_more_noise_never_helps() -> None:
    points = rng(7).normal(size=(60, 30))
    results = [ceilings_of(points, snr) for snr in (1.0, 0.5, 0.2, 0.05, 0.01)]
    for name in ("linkage_rank1", "linkage_rank5", "linkage_assigned"):
        values = [getattr(result, name).value for result in results]
        assert all(b <= a + 0.02 for a, b in pairwise(values)) and values[0] > 2 * values[-1]
    nearest = [result.membership_tpr_at_1.nearest for result in results]
    assert nearest == sorted(nearest, reverse=True)


@given(st.integers(3, 12), st.integers(1, 20), st.floats(0.01, 4), st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_order_does_not_matter_and_rates_are_rates(count: int, dims: int, snr: float, seed: int) -> None:
    points, order = rng(seed).normal(size=(count, dims)), rng(seed).permutation(count)
    first, second = (
        compute_ceilings(place(p, people(count)), abar_of(snr), rng(seed)) for p in (points, points[order])
    )
    assert asdict(first.membership_tpr_at_1) == pytest.approx(asdict(second.membership_tpr_at_1))
    assert agrees(first.linkage_rank1, second.linkage_rank1.value, 0.05)
    for rate in (first.linkage_rank1, first.linkage_rank5, first.linkage_assigned):
        assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert first.linkage_rank1.value <= min(first.linkage_rank5.value, first.linkage_assigned.value) + 0.05


def test_several_outputs_are_one_with_as_many_times_the_signal() -> None:
    points = rng(8).normal(size=(40, 10))
    several, strong = ceilings_of(points, 0.1, outputs=4), ceilings_of(points, 0.4)
    assert several.linkage_rank1 == strong.linkage_rank1 and several.outputs == 4
    assert several.membership_tpr_at_1.median == pytest.approx(strong.membership_tpr_at_1.median)


def test_a_sample_of_a_release_bounds_the_release() -> None:
    """Of more candidates fewer are named: the sample's rate is no lower, on average over samples."""
    points = rng(9).normal(size=(400, 20)) * 0.7
    whole = ceilings_of(points)
    everyone = place(points, people(400))
    samples = [
        compute_ceilings(everyone.take(rng(i).choice(400, 50, replace=False)), 0.5, rng(i)).linkage_rank1
        for i in range(5)
    ]
    assert np.mean([sample.value for sample in samples]) > whole.linkage_rank1.value + 0.05
    assert samples[0].high - samples[0].low > 0.2  # people of the sample are trials, not draws of their noise
    assert whole.linkage_rank1.high - whole.linkage_rank1.low < 0.04


@pytest.mark.parametrize("k", [2, 5, 10])
def test_no_member_of_a_group_is_named_more_often_than_by_guessing(k: int) -> None:
    points = rng(10).normal(size=(40, 30)) * 100
    groups = np.arange(40).reshape(-1, k)
    result = ceilings_of(points, 1.0, k=k, groups=list(groups))
    assert result.linkage_rank1.value == pytest.approx(1 / k) and result.linkage_assigned.value == pytest.approx(1 / k)
    assert result.linkage_rank5.value == pytest.approx(min(1, 5 / k))
    assert result.linkage_rank1.high <= 1 / k + 1e-9
    assert result.knows_others is not None and result.knows_others.value == 1  # at this level the mean tells all


def test_who_knows_all_other_members_tells_the_last_one_from_an_outsider_by_its_share_of_the_mean() -> None:
    """One group of k and one original outside: two candidates, mu / k apart."""
    points, k, snr = np.zeros((5, 5)), 4, 9.0
    points[0, 0], points[4, 1] = 1.0, 1.0
    result = ceilings_of(points, snr, k=k, groups=[np.arange(4)])
    apart = [np.linalg.norm(points[i] - points[4]) * math.sqrt(snr) / k for i in range(4)]
    expected = float(np.mean(stats.norm.cdf(np.array(apart) / 2)))
    assert result.knows_others is not None and agrees(result.knows_others, expected, 0.01)
    assert result.knows_others.gallery == 2


def test_membership_of_three_pictures_solved_by_hand() -> None:
    """A triangle of sides 3, 4, 5 at snr 1, where mu is the distance: nearest others are 3, 3 and 4 away."""
    triangle = np.array([[0.0, 0], [3, 0], [0, 4]])
    result = ceilings_of(triangle).membership_tpr_at_1
    assert [result.nearest, result.median, result.worst] == pytest.approx(tpr_at(0.01, np.array([3.0, 4, 5])))
    half = ceilings_of(triangle, k=3, groups=[np.arange(3)]).membership_tpr_at_01
    assert half.worst == pytest.approx(float(tpr_at(0.001, 5 / 3)))


def test_photos_of_one_person_are_no_pair() -> None:
    points = np.array([[0.0], [0.5], [10], [10.25]])
    nearest = bound_membership(Candidates(points, np.array(["a", "a", "b", "b"])), 0.01, 0.01)
    pairs = [math.hypot(10.25, 9.75), math.hypot(10, 10.25)]  # each photo against the farthest, squares add up
    assert nearest.nearest == pytest.approx(float(tpr_at(0.01, 0.1 * np.mean(pairs))))
    copies = Candidates(np.array([[0.0], [0.0], [3.0]]), people(3))
    assert bound_membership(copies, 1.0, 0.01).nearest == pytest.approx(float(tpr_at(0.01, 3.0)))
    with pytest.raises(ValueError, match="two different pictures of which the same is published"):
        bound_membership(Candidates(np.zeros((3, 1)), people(3)), 1.0, 0.01)


def test_the_likelihood_ratio_reaches_the_tpr_and_nothing_passes_it() -> None:
    abar, originals = 0.3, rng(11).normal(size=(2, 48)) * 0.3
    noised = math.sqrt(abar) * originals[:, None] + math.sqrt(1 - abar) * rng(12).normal(size=(2, 50_000, 48))
    scores = noised @ (originals[1] - originals[0])  # (2, 50000)
    bound = bound_membership(place(originals, people(2)), abar / (1 - abar), 0.01).nearest
    assert (scores[1] > threshold_at(scores[0], 0.01)).mean() == pytest.approx(bound, abs=0.02)


def test_several_photos_of_a_person_lead_to_the_person() -> None:
    """Without signal each photo is as probable, and the person with most photos is guessed."""
    points, names = rng(14).normal(size=(10, 4)), np.array([*"aaaaaaabbc"])
    result = compute_ceilings(place(points, names), abar_of(1e-9), rng())
    assert result.linkage_rank1.value == pytest.approx(0.7)
    apart = np.repeat(np.eye(2) * 9, 5, axis=0)  # five copies each: which photo it is cannot be told, who it is can
    result = compute_ceilings(place(apart, people(2, 5)), abar_of(1.0), rng())
    assert result.linkage_rank1.value > 0.999


def test_what_is_published_beside_an_output_leaves_fewer_candidates() -> None:
    """Of 40 candidates at right angles 4 have the label of an output: as of 4 candidates."""
    labels = np.arange(40) % 10
    points = np.eye(40) * 2.0
    whole = compute_ceilings(place(points, people(40), published=labels), abar_of(1.0), rng())
    four = ceilings_of(np.eye(4) * 2.0)
    assert agrees(whole.linkage_rank1, four.linkage_rank1.value) and agrees(
        whole.linkage_assigned, four.linkage_assigned.value
    )
    assert whole.membership_tpr_at_1.worst == pytest.approx(four.membership_tpr_at_1.worst)
    unique = compute_ceilings(place(points[:6], people(6), published=np.array([0, 0, 1, 2, 3, 4])), 1e-9, rng())
    assert agrees(unique.linkage_rank1, 5 / 6)  # four are named by what is published, and one of the other two


def test_who_knows_all_other_members_knows_what_is_published_of_the_last_one() -> None:
    points, labels = rng(15).normal(size=(20, 3)), np.repeat([0, 1], 10)
    groups = list(np.arange(20).reshape(-1, 5))
    result = compute_ceilings(place(points, people(20), published=labels), 1e-9, rng(), k=5, groups=groups)
    assert result.knows_others is not None and result.knows_others.gallery == 6
    assert agrees(result.knows_others, 1 / 6)


def test_who_knows_all_other_members_names_the_last_person_by_any_of_their_photos() -> None:
    """Of five people with four equal photos each, in groups of five: which photo it is cannot be told."""
    points, names = np.repeat(np.eye(5) * 50, 4, axis=0), people(5, 4)
    groups = [np.arange(photo, 20, 4) for photo in range(4)]
    result = compute_ceilings(place(points, names), abar_of(1.0), rng(), k=5, groups=groups)
    assert result.knows_others is not None and result.knows_others.value == 1


@pytest.mark.parametrize("bad", [np.ones((1, 4)), np.array([[1.0], [np.nan]])])
def test_pictures_that_cannot_be_told_apart_are_refused(bad: Floats) -> None:
    with pytest.raises(ValueError, match="candidates must be finite rows of two people"):
        place(bad, people(len(bad)))


def test_settings_that_mean_nothing_are_refused() -> None:
    points = rng(13).normal(size=(6, 2))
    with pytest.raises(ValueError, match="abar must be in"):
        compute_ceilings(place(points, people(6)), 1.0, rng())
    for settings_ in ({"k": 3}, {"k": 3, "groups": [np.arange(2)]}, {"outputs": 0}):
        with pytest.raises(ValueError, match="k and outputs must be 1 or more"):
            ceilings_of(points, **settings_)
