"""PSNR and SSIM against closed forms and two other ways to compute them, and means with their intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import t as student

from metrics.models.lpips import PerceptualDistance
from metrics.utility import image_quality
from metrics.utility.image_quality import mean_with_interval, psnr, score_images, ssim


def pictures(seed: int, count: int = 2, height: int = 14, width: int = 17) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator) * 2 - 1


def grey(value: float, side: int = 12) -> torch.Tensor:
    return torch.full((1, 3, side, side), value, dtype=torch.float64)


def window() -> Any:
    """The 11 x 11 Gaussian of Wang et al., written out."""
    at = np.arange(-5, 6)
    weights = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    return weights / weights.sum()


def by_loop(a: torch.Tensor, b: torch.Tensor) -> float:
    """SSIM of one pair from its definition, on pixels from 0 to 255."""
    weights, c1, c2 = window(), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    result = []
    for x, y in zip(*((p.double().numpy() + 1) * 127.5 for p in (a, b)), strict=True):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                p, q = (z[top : top + 11, left : left + 11] for z in (x, y))
                mp, mq = (weights * p).sum(), (weights * q).sum()
                vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                cov = (weights * (p - mp) * (q - mq)).sum()
                result.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(result))


def by_filter(a: torch.Tensor, b: torch.Tensor) -> float:
    """SSIM of one pair by scipy's Gaussian filter, cut where its window leaves the picture; pixels from 0 to 1."""
    result = []
    for x, y in zip(*((p.double().numpy() + 1) / 2 for p in (a, b)), strict=True):
        mx, my, xx, yy, xy = (gaussian_filter(z, 1.5, radius=5) for z in (x, y, x * x, y * y, x * y))
        top, bottom = (2 * mx * my + 1e-4), (mx**2 + my**2 + 1e-4)
        top, bottom = top * (2 * (xy - mx * my) + 9e-4), bottom * (xx - mx**2 + yy - my**2 + 9e-4)
        result.append((top / bottom)[5:-5, 5:-5].mean())
    return float(np.mean(result))


@pytest.mark.parametrize("shift", [0.5, 0.01, 2.0])
def test_psnr_of_a_constant_shift_is_known(shift: float) -> None:
    result = psnr(grey(-1.0), grey(-1.0 + shift))
    assert result.item() == pytest.approx(20 * math.log10(2 / shift))


def test_psnr_of_noise_of_a_known_variance() -> None:
    a = pictures(0, 1, 200, 200)
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    assert psnr(a, a + noise).item() == pytest.approx(10 * math.log10(4 / 0.01), abs=0.05)


def test_equal_pictures_are_as_alike_as_can_be() -> None:
    a = pictures(0)
    assert psnr(a, a).tolist() == [math.inf, math.inf]
    assert ssim(a, a).tolist() == pytest.approx([1.0, 1.0], abs=1e-12)


def test_ssim_of_two_greys_is_a_matter_of_light_alone() -> None:
    x, y = 0.2 + 1, 0.9 + 1  # from 0 to 2
    c1 = (0.01 * 2) ** 2
    assert ssim(grey(0.2), grey(0.9)).item() == pytest.approx((2 * x * y + c1) / (x**2 + y**2 + c1))


def test_ssim_of_a_grey_and_a_pattern_has_no_covariance() -> None:
    flat = grey(0.0)
    pattern = flat + 0.5 * (1 - 2 * (torch.arange(12) % 2)).double()
    weights = window().sum(0)  # of columns
    sign = 1 - 2 * (np.arange(11) % 2)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    wanted = []
    for s in (sign, -sign):  # as the window moves by one column
        mx = 1 + 0.5 * float(weights @ s)
        vx = 0.25 - (mx - 1) ** 2
        wanted.append((2 * mx + c1) / (mx**2 + 1 + c1) * c2 / (vx + c2))
    assert ssim(pattern, flat).item() == pytest.approx(np.mean(wanted))


@pytest.mark.parametrize("other", [by_loop, by_filter])
def test_ssim_agrees_with_other_ways_to_compute_it(other: Any) -> None:
    a, b = pictures(0), pictures(1)
    b = (0.7 * a + 0.3 * b).clamp(-1, 1)
    assert ssim(a, b).tolist() == pytest.approx([other(*pair) for pair in zip(a, b, strict=True)], abs=1e-6)


def test_rows_do_not_depend_on_one_another() -> None:
    a, b = pictures(0, 3), pictures(1, 3)
    for measure in (psnr, ssim):
        assert measure(a, b)[1].item() == pytest.approx(measure(a[1:2], b[1:2]).item())


def test_a_picture_compared_in_strips_has_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pictures(0, height=40), pictures(1, height=40)
    whole = [measure(a, b) for measure in (psnr, ssim)]
    monkeypatch.setattr(image_quality, "STRIP_PIXELS", 7 * 2 * 17)
    for before, measure in zip(whole, (psnr, ssim), strict=True):
        assert torch.allclose(measure(a, b), before, rtol=1e-12)


def test_pictures_of_different_shapes_or_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        psnr(pictures(0, width=16), pictures(0, width=17))
    with pytest.raises(ValueError, match="11 pixels or more"):
        ssim(pictures(0, height=10), pictures(0, height=10))


# -- scores -----------------------------------------------------------------------------------------------------------


class Flat:
    """Stands in for a perceptual distance, which takes large networks."""

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


def test_all_measures_of_a_batch() -> None:
    a, b = pictures(0), pictures(1)
    result = score_images(a, b, Flat())  # type: ignore[arg-type]
    assert list(result) == ["lpips", "psnr", "ssim"]
    assert result["psnr"] == psnr(a, b).tolist() and result["ssim"] == ssim(a, b).tolist()
    assert list(score_images(a, b, None)) == ["psnr", "ssim"]


def test_what_a_measure_cannot_look_at_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    lpips = PerceptualDistance.load("st-alex")
    small = score_images(pictures(0, height=4, width=4), pictures(1, height=4, width=4), lpips)
    assert small["lpips"] == small["ssim"] == [None, None]
    assert all(value is not None and math.isfinite(value) for value in small["psnr"])
    monkeypatch.setattr(image_quality, "MAX_LPIPS_PIXELS", 14 * 17 - 1)
    assert score_images(pictures(0), pictures(1), lpips)["lpips"] == [None, None]


# -- means ------------------------------------------------------------------------------------------------------------


def test_the_mean_of_many_has_students_interval() -> None:
    x = np.random.default_rng(0).normal(3, 2, 200)
    result = mean_with_interval(x, np.random.default_rng(1))
    half = student.ppf(0.975, 199) * x.std(ddof=1) / math.sqrt(200)
    assert (result.value, result.n) == (pytest.approx(x.mean()), 200)
    assert (result.low, result.high) == (
        pytest.approx(x.mean() - half, rel=0.02),
        pytest.approx(x.mean() + half, rel=0.02),
    )


def test_the_interval_of_a_few_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        result = mean_with_interval(draws.normal(size=5), draws)
        assert result.low is not None and result.high is not None
        hits += result.low <= 0 <= result.high
    assert 0.9 <= hits / 200 <= 0.99


def test_a_single_picture_has_no_interval_and_equal_ones_have_no_width() -> None:
    rng = np.random.default_rng(0)
    assert mean_with_interval([2.5], rng).low is None
    same = mean_with_interval([2.5] * 4, rng)
    assert (same.low, same.value, same.high) == (2.5, 2.5, 2.5)


def test_an_interval_ends_where_its_measure_does() -> None:
    result = mean_with_interval([0.0, 0.3], np.random.default_rng(0), (0.0, 1.0))
    assert (result.low, result.high) == (0.0, 1.0)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_what_was_not_measured_has_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_with_interval(values, np.random.default_rng(0))
