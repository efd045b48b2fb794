"""What a release is set beside: each method does what its name says, and blur and pixelation meet the same distance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anonymizer.boomerang import Boomerang
from metrics.audit import baselines
from metrics.audit.mechanisms import (
    Blur,
    LocalSampling,
    Mechanism,
    Pixelate,
    RoundTrip,
    Unrelated,
    apply,
    generate_people,
    reencode,
)
from metrics.audit.workbench import Evidence
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.pictures import pictures


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def mean_difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A stand-in for LPIPS: mean absolute difference, (N,)."""
    return (a - b).abs().mean((1, 2, 3))


def evidence(outputs: torch.Tensor, originals: torch.Tensor, model: IdealGaussian, **more: object) -> Evidence:
    names = np.array([f"p{i}" for i in range(len(originals))])
    method = LocalSampling(Boomerang(model, "ddim", 4), 0.5)
    return Evidence(originals, outputs, names, False, method, model, **more)  # type: ignore[arg-type]


def test_a_round_trip_changes_no_more_than_rounding(rng: np.random.Generator) -> None:
    x = pictures(3, 16)
    torch.testing.assert_close(RoundTrip()(x, rng), x, atol=1 / 255 + 1e-6, rtol=0)


def test_a_blur_keeps_the_mean_and_takes_detail(rng: np.random.Generator) -> None:
    point = torch.full((1, 3, 33, 33), -1.0)
    point[:, :, 16, 16] = 1
    made = Blur(2.0)(point, rng) + 1
    assert made.sum().item() == pytest.approx(2 * 3, rel=1e-3)
    weights = torch.exp(-(torch.arange(-16.0, 17) ** 2) / (2 * 2.0**2))
    row = made[0, 0, 16] / made[0, 0, 16, 16]  # a Gaussian of that sigma, in closed form
    torch.testing.assert_close(row[10:23], weights[10:23], atol=1e-3, rtol=0)


@pytest.mark.parametrize("sigma", [0.3, 5.0, 40.0])
def test_a_blur_of_any_strength_fits_the_picture(rng: np.random.Generator, sigma: float) -> None:
    assert Blur(sigma)(pictures(1, 8), rng).shape == (1, 3, 8, 8)


def test_pixelation_gives_each_cell_its_mean(rng: np.random.Generator) -> None:
    x = pictures(2, 16)
    made = Pixelate(4)(x, rng)
    assert torch.unique(made[0, 0]).numel() <= 16
    torch.testing.assert_close(made[:, :, :4, :4].mean((2, 3)), x[:, :, :4, :4].mean((2, 3)))


def test_unrelated_pictures_are_drawn_from_others_without_repetition(rng: np.random.Generator) -> None:
    pool = pictures(6, 8, seed=1)
    made = Unrelated(pool)(pictures(6, 8), rng)
    assert sorted(x.sum().item() for x in made) == pytest.approx(sorted(x.sum().item() for x in pool))


def test_several_runs_of_a_random_method_differ_and_of_any_other_do_not(rng: np.random.Generator) -> None:
    x, local = pictures(2, 8), LocalSampling(Boomerang(IdealGaussian(), "ddim", 4), 0.5)
    methods: list[Mechanism] = [local, RoundTrip(), Blur(1), Pixelate(4)]
    for method in methods:
        assert torch.equal(method(x, rng), method(x, rng)) is not method.is_random


def test_batches_do_not_matter(rng: np.random.Generator) -> None:
    x, local = pictures(5, 8), LocalSampling(Boomerang(IdealGaussian(), "ddim", 4), 0.5)
    a, b = (apply(local, x, np.random.default_rng(1), batch=batch) for batch in (2, 5))
    torch.testing.assert_close(a, b)


def test_invented_people_have_the_models_mean_and_spread(ideal: IdealGaussian, rng: np.random.Generator) -> None:
    made = generate_people(ideal, 40, rng)
    assert made.mean().item() == pytest.approx(ideal.mean, abs=0.03)
    assert made.std().item() == pytest.approx(ideal.spread, rel=0.2)


def test_a_picture_that_is_not_finite_stays_so() -> None:
    x = pictures(2, 8)
    x[1, 0, 0, 0] = torch.nan
    assert not reencode(x)[1].isfinite().all() and reencode(x)[0].isfinite().all()


def test_attackers_make_outputs_in_the_releases_encoding() -> None:
    x, boomerang = pictures(2, 16), Boomerang(IdealGaussian(size=16), "ddim", 4)
    plain, rough = (
        LocalSampling(boomerang, 0.3, image, 30)(x, np.random.default_rng(1))
        for image in ("png", "jpeg")  # type: ignore[arg-type]
    )
    assert torch.equal(reencode(plain), plain) and 0.01 < (plain - rough).abs().mean() < 0.3


@pytest.mark.parametrize("name", ["blur", "pixelation"])
def test_blur_and_pixelation_are_set_to_change_as_much_as_the_release(
    name: str, ideal: IdealGaussian, rng: np.random.Generator
) -> None:
    originals = pictures(12, 32)
    outputs = reencode(Blur(3.0)(originals, rng))
    result = baselines.apply_baseline(name, evidence(outputs, originals, ideal), mean_difference, rng)
    target = baselines.median_distance(originals, outputs, mean_difference)
    assert result.distance == pytest.approx(target, rel=0.15)
    if name == "blur":
        assert isinstance(result.mechanism, Blur) and result.mechanism.sigma == pytest.approx(3.0, rel=0.1)


def test_a_release_that_is_out_of_reach_takes_the_end_of_the_ladder(
    ideal: IdealGaussian, rng: np.random.Generator
) -> None:
    originals = pictures(6, 16)
    far = evidence(-originals.sign(), originals, ideal)
    result = baselines.apply_baseline("pixelation", far, mean_difference, rng)
    assert isinstance(result.mechanism, Pixelate) and result.mechanism.cells == 1


def test_the_ends_keep_all_and_nothing(ideal: IdealGaussian, rng: np.random.Generator) -> None:
    originals, strangers = pictures(30, 8) * 0.25 + 0.1, pictures(30, 8, seed=9)
    of = evidence(originals, originals, ideal, outsiders=(strangers, np.arange(30).astype(np.str_)))
    assert baselines.apply_baseline("round-trip", of, mean_difference, rng).distance < 0.01
    pure = baselines.apply_baseline("global", of, mean_difference, rng)
    assert isinstance(pure.mechanism, LocalSampling) and pure.mechanism.level == 1
    assert abs(np.corrcoef(pure.outputs.flatten(), originals.flatten())[0, 1]) < 0.2
    unrelated = baselines.apply_baseline("unrelated", of, mean_difference, rng)
    assert unrelated.outputs.shape == originals.shape and unrelated.distance > 0.1


def test_unrelated_pictures_need_other_people(ideal: IdealGaussian, rng: np.random.Generator) -> None:
    x = pictures(4, 8)
    with pytest.raises(ValueError, match=r"audit\.outsiders"):
        baselines.apply_baseline("unrelated", evidence(x, x, ideal), mean_difference, rng)
