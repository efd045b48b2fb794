"""The matched filter, against densities of scipy, closed forms, and the outputs of an exact reverse process."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from anonymizer.boomerang import Boomerang
from anonymizer.noise import KeyedNoise
from metrics.attacks.linkage import ranks
from metrics.attacks.matched_filter import Components, between_shares, fit_components, matched_filter
from metrics.stats.intervals import wilson_interval
from tests.support.ideal_gaussian import IdealGaussian

SPREAD = 0.25  # of the ideal model's pixels


def components(width: int = 6, kept: int = 3) -> Components:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(width, width)))[0][:, :kept]
    return Components(rng.normal(size=width), axes, np.array([4.0, 2.0, 0.5]))


def drawn(level: float, count: int, sampler: str, steps: int | None) -> tuple[Any, Any, float]:
    """Originals (N, 192) of the ideal model, their outputs, and abar."""
    model = IdealGaussian(spread=SPREAD, mean=0.0)
    boomerang = Boomerang(model, sampler, steps)
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(0, SPREAD, (count, 3, 8, 8))).float()
    y = boomerang.sample(x, level, KeyedNoise([rng.bytes(16) for _ in range(count)]))
    return x.flatten(1).double().numpy(), y.flatten(1).double().numpy(), float(boomerang.abar[boomerang.t_boom(level)])


def isotropic(width: int = 192) -> Components:
    return Components(np.zeros(width), np.eye(width), np.full(width, SPREAD**2))


@pytest.mark.parametrize(("sampler", "steps"), [("ddpm", None), ("ddim", 100), ("dpm++", 100)])
def test_outputs_of_an_exact_reverse_process_are_as_the_filter_takes_them_to_be(sampler: str, steps: int) -> None:
    x, y, abar = drawn(0.3, 400, sampler, steps)
    snr = abar / (1 - abar) * SPREAD**2
    rho = snr / (1 + snr)
    kept = rho if sampler == "ddpm" else math.sqrt(rho)
    slope = (x * y).sum() / (x * x).sum()
    assert slope == pytest.approx(kept, abs=0.02)
    assert (y - kept * x).var() == pytest.approx(SPREAD**2 * (1 - kept**2), rel=0.03)


@pytest.mark.parametrize(("sampler", "steps", "level"), [("ddpm", None, 0.25), ("ddim", 50, 0.5)])
def test_of_two_candidates_it_chooses_the_right_one_as_often_as_can_be(sampler: str, steps: int, level: float) -> None:
    """The better of x and x' by likelihood is right with Phi(|x - x'| kept / (2 sd)): closed form, pair by pair."""
    count = 500
    x, y, abar = drawn(level, count, sampler, steps)
    other = np.random.default_rng(2).normal(0, SPREAD, x.shape)
    matched = matched_filter(isotropic(), abar, sampler == "ddim")
    hits = sum(np.diff(matched.scores(y[[i]], np.stack([other[i], x[i]]))[0])[0] > 0 for i in range(count))
    rho = abar * SPREAD**2 / (1 - abar + abar * SPREAD**2)
    kept = math.sqrt(rho) if sampler == "ddim" else rho
    distances = np.linalg.norm(x - other, axis=1)
    best = norm.cdf(kept * distances / (2 * SPREAD * math.sqrt(1 - kept**2))).mean()
    interval = wilson_interval(hits, count, 0.999)
    assert 0.6 < best < 0.95 and interval.low <= best <= interval.high


@pytest.mark.parametrize("is_deterministic", [False, True])
@pytest.mark.parametrize(("share", "photos"), [(None, 1), (0.7, 1), (0.7, 5)])
def test_scores_are_ratios_of_normal_densities(is_deterministic: bool, share: float | None, photos: int) -> None:
    """The reference writes the joint covariance of output and candidate in full, and conditions by scipy."""
    of, abar, rng = components(), 0.3, np.random.default_rng(3)
    between = None if share is None else np.array([share, 0.5, 0.9])
    matched = matched_filter(of, abar, is_deterministic, between, photos)
    y, x = rng.normal(size=(4, 6)), rng.normal(size=(3, 6))
    shares = np.ones(3) if between is None else between
    rho = abar * of.variances / (1 - abar + abar * of.variances)
    kept = np.sqrt(rho) if is_deterministic else rho
    of_candidate = of.variances * (shares + (1 - shares) / photos)
    shared = np.diag(kept * shares * of.variances)
    joint = np.block([[np.diag(of.variances), shared], [shared, np.diag(of_candidate)]])
    for i, j in np.ndindex(4, 3):
        seen, held = of.axes.T @ (y[i] - of.mean), of.axes.T @ (x[j] - of.mean)
        both = multivariate_normal(np.zeros(6), joint).logpdf(np.concatenate([seen, held]))
        either = multivariate_normal(np.zeros(3), joint[:3, :3]).logpdf(seen)
        either += multivariate_normal(np.zeros(3), joint[3:, 3:]).logpdf(held)
        assert matched.scores(y, x)[i, j] == pytest.approx(both - either, rel=1e-6, abs=1e-8)


def test_the_evidence_for_a_member_is_the_mean_ratio_over_all_outputs() -> None:
    matched, rng = matched_filter(components(), 0.3), np.random.default_rng(4)
    y, x = rng.normal(size=(20, 6)), rng.normal(size=(7, 6))
    assert matched.evidence(y, x) == pytest.approx(np.log(np.exp(matched.scores(y, x)).mean(0)))


def test_outputs_of_others_have_a_ratio_of_one_on_average() -> None:
    """E[p(y | x) / p(y)] = 1 over y ~ p(y), whatever x is."""
    of, rng = components(), np.random.default_rng(5)
    y = of.mean + (rng.normal(size=(200_000, 3)) * np.sqrt(of.variances)) @ of.axes.T
    x = of.mean + 0.5 * rng.normal(size=(3, 6))
    assert np.exp(matched_filter(of, 0.2).scores(y, x)).mean(0) == pytest.approx(np.ones(3), abs=0.03)


def test_fewer_pictures_than_pixels_link_nearly_as_the_truth_does_and_better_than_plain_products() -> None:
    """Variances fall as 1 / i^2 over 400 directions, of which 150 pictures show a part."""
    rng, width, n, abar = np.random.default_rng(6), 400, 400, 0.6
    variances = 20.0 / np.arange(1, width + 1) ** 2
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]

    def pictures(count: int) -> Any:
        return (rng.normal(size=(count, width)) * np.sqrt(variances)) @ basis.T

    public, x = pictures(150), pictures(n)
    rho = abar * variances / (1 - abar + abar * variances)
    y = ((x @ basis) * rho + rng.normal(size=x.shape) * np.sqrt(variances * (1 - rho**2))) @ basis.T
    exact = matched_filter(Components(np.zeros(width), basis, variances), abar)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (y, x)]
    rates = [
        (ranks(scores, np.arange(n), np.zeros(n)) == 1).mean()
        for scores in (
            exact.scores(y, x),
            matched_filter(fit_components(public), abar).scores(y, x),
            unit[0] @ unit[1].T,
        )
    ]
    assert rates[0] > 0.05 and rates[1] > 0.8 * rates[0] and rates[1] > rates[2]


def test_components_are_those_of_the_covariance_where_pictures_are_many() -> None:
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(300, 5)) * [5, 4, 3, 2, 1] + 7
    fitted = fit_components(rows)
    assert fitted.variances == pytest.approx(np.linalg.eigvalsh(np.cov(rows.T))[::-1])
    assert fitted.axes.T @ fitted.axes == pytest.approx(np.eye(5), abs=1e-9)


def test_of_few_pictures_half_as_many_components_are_kept() -> None:
    rows = np.random.default_rng(8).normal(size=(20, 50)).astype(np.float32)
    fitted, (_, values, axes) = fit_components(rows), np.linalg.svd(rows - rows.mean(0))
    assert fitted.axes.shape == (50, 10) and fitted.variances == pytest.approx(values[:10] ** 2 / 19, rel=1e-4)
    assert np.abs((fitted.axes * axes[:10].T).sum(0)) == pytest.approx(np.ones(10), abs=1e-3)


def test_pictures_that_do_not_differ_or_are_too_few_are_refused() -> None:
    for rows, says in [
        (np.ones((9, 5)), "do not differ"),
        (np.eye(3), "four or more"),
        (np.full((9, 5), np.nan), "four"),
    ]:
        with pytest.raises(ValueError, match=says):
            fit_components(rows)


def test_shares_between_people_are_found() -> None:
    rng, people = np.random.default_rng(9), 400
    faces = rng.normal(size=(people, 1, 4)) * np.sqrt([9.0, 1.0, 0.0, 4.0])
    photos = (faces + rng.normal(size=(people, 3, 4)) * np.sqrt([1.0, 1.0, 2.0, 0.0])).reshape(-1, 4)
    shares = between_shares(Components(np.zeros(4), np.eye(4), np.ones(4)), photos, np.repeat(np.arange(people), 3))
    assert shares is not None and shares == pytest.approx([0.9, 0.5, 0.0, 1.0], abs=0.07)


def test_photos_of_too_few_people_say_nothing_of_the_variance_within_one() -> None:
    of = Components(np.zeros(2), np.eye(2), np.ones(2))
    names = np.array([str(i // 2) for i in range(18)] + [f"single {i}" for i in range(30)])
    assert between_shares(of, np.random.default_rng(0).normal(size=(48, 2)), names) is None


def test_more_photos_of_a_person_find_more_of_them() -> None:
    """And all photos there are no more than the original itself."""
    rng, people, abar, share = np.random.default_rng(10), 300, 0.9, 0.5
    within = SPREAD * math.sqrt(1 - share)
    faces = rng.normal(0, SPREAD * math.sqrt(share), (people, 60))
    original = faces + rng.normal(0, within, faces.shape)
    rho = abar * SPREAD**2 / (1 - abar + abar * SPREAD**2)
    y = rho * original + rng.normal(0, SPREAD * math.sqrt(1 - rho**2), faces.shape)
    rates = [
        (
            matched_filter(isotropic(60), abar, False, between, photos).scores(y, candidates).argmax(1) == range(people)
        ).mean()
        for between, photos, candidates in [
            (np.full(60, share), 1, faces + rng.normal(0, within, faces.shape)),
            (np.full(60, share), 20, faces + rng.normal(0, within / math.sqrt(20), faces.shape)),
            (None, 1, original),
        ]
    ]
    assert 0.02 < rates[0] < rates[1] < rates[2]


def test_an_output_with_nan_is_a_blind_guess() -> None:
    y = np.vstack([np.full(6, np.nan), np.zeros(6)])
    similarity = matched_filter(components(), 0.3).similarity(y, np.zeros((3, 6)))
    assert similarity.seen.tolist() == [False, True] and np.isnan(similarity.blocks(slice(0, 1))).all()


def test_without_a_signal_all_candidates_are_alike() -> None:
    scores = matched_filter(components(), 0.0).scores(np.ones((2, 6)), np.eye(6))
    assert scores == pytest.approx(np.zeros((2, 6)), abs=1e-12)


def test_a_level_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="abar must be in"):
        matched_filter(components(), 1.0)
