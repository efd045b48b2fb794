"""Enlarging pictures: upsampling, and the algorithm against the same steps by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional as F

from anonymizer.backbones import Denoised
from anonymizer.boomerang import Boomerang
from anonymizer.enhance import UPSAMPLINGS, Enhancer, Upsampling, cautions, lanczos, noise_key, resample
from anonymizer.noise import KeyedNoise
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import NotFinite

KEYS = [bytes([i]) * 16 for i in range(4)]
NOISE = KeyedNoise(KEYS[:2])


def low(height: int = 4, width: int = 4, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def model(size: int = 16, multiple: int = 1) -> IdealGaussian:
    found = IdealGaussian(size=size)
    found.multiple = multiple
    return found


# -- upsampling -------------------------------------------------------------------------------------------------------


def lanczos_weights(old: int, new: int) -> npt.NDArray[np.float64]:
    """(new, old) weights of sinc(x) sinc(x / 3) for |x| < 3, about the centres of areas; wider where it reduces."""
    scale = max(old / new, 1.0)
    centres = (np.arange(new) + 0.5) * old / new
    x = (np.arange(old) + 0.5 - centres[:, None]) / scale
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("sides", [(20, 12), (28, 44), (7, 11), (3, 5)])
def test_lanczos_is_the_published_kernel(sides: tuple[int, int]) -> None:
    x = low(7, 11)
    rows, columns = lanczos_weights(7, sides[0]), lanczos_weights(11, sides[1])
    expected = torch.from_numpy(rows @ x.double().numpy() @ columns.T).clamp(-1, 1).float()
    assert torch.allclose(lanczos(x, sides), expected, atol=1e-5)


@pytest.mark.parametrize("kind", UPSAMPLINGS)
def test_upsampling_keeps_a_grey_and_stays_in_range(kind: Upsampling) -> None:
    grey = torch.full((1, 3, 3, 5), 0.3)
    assert torch.allclose(resample(grey, (12, 20), kind), torch.tensor(0.3), atol=1e-6)
    edge = torch.cat([-torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4)], dim=3)
    assert resample(edge, (16, 32), kind).abs().max() <= 1


# -- the algorithm ----------------------------------------------------------------------------------------------------


def test_a_picture_is_upsampled_and_sampled_nearby() -> None:
    x0 = F.interpolate(low(), scale_factor=4, mode="bicubic").clamp(-1, 1)
    wanted = Boomerang(model(), "ddpm", 3).sample(x0, 0.4, NOISE)
    assert torch.allclose(Enhancer(model(), 4, (0.4,), sampler="ddpm", steps=3)(low(), NOISE), wanted, atol=1e-6)


def test_a_cascade_is_one_pass_after_another_each_with_noise_of_its_own() -> None:
    boomerang = Boomerang(model(), "ddpm", 3)
    x0 = resample(low(), (16, 16), "lanczos")
    wanted = boomerang.sample(boomerang.sample(x0, 0.5, NOISE), 0.3, NOISE.sample(1))
    enhancer = Enhancer(model(), 4, (0.5, 0.3), "lanczos", sampler="ddpm", steps=3)
    assert torch.allclose(enhancer(low(), NOISE), wanted, atol=1e-6)
    assert (enhancer.t_boom, enhancer.steps) == ((500, 300), 6)


def test_a_tiny_level_gives_the_upsampled_picture_back() -> None:
    near = Enhancer(model(), 4, (0.001,), sampler="ddim", steps=1)(low(), NOISE)
    far = Enhancer(model(), 4, (0.9,), sampler="ddim", steps=4)(low(), NOISE)
    x0 = resample(low(), (16, 16), "bicubic")
    assert (near - x0).abs().mean() < 0.02 < (far - x0).abs().mean()


def test_tiles_of_a_large_picture_leave_no_trace() -> None:
    """A model that looks at each pixel by itself message the same of a tile as of the whole."""
    small, large = Enhancer(model(size=8), 4, sampler="ddpm", steps=4), Boomerang(model(size=16), "ddpm", 4)
    wanted = large.sample(resample(low(5, 4), (20, 16), "bicubic"), 0.4, NOISE)
    assert torch.allclose(small(low(5, 4), NOISE), wanted, atol=1e-5)
    assert len(small.backbone.calls) > 4 * 4  # several tiles at each step


class Shapes(IdealGaussian):
    """Remembers the sides of what it was shown."""

    def __init__(self, size: int, multiple: int) -> None:
        super().__init__(size=size)
        self.multiple = multiple
        self.seen: set[tuple[int, ...]] = set()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.add(tuple(images.shape[-2:]))
        return images

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        self.seen.add(tuple(zt.shape[-2:]))
        return super().predict(zt, t, condition)


def test_sides_that_do_not_fit_are_continued_by_their_edge_and_cut() -> None:
    backbone = Shapes(size=8, multiple=4)
    out = Enhancer(backbone, 3, (0.2,), sampler="ddpm", steps=1)(low(3, 5), NOISE)
    assert out.shape == (2, 3, 9, 15)
    assert backbone.seen == {(12, 16), (8, 8)}  # the whole, and its tiles
    x0 = F.pad(resample(low(3, 5), (9, 15), "bicubic"), (0, 1, 0, 3), mode="replicate")
    wanted = Boomerang(model(size=8), "ddpm", 1).sample(x0, 0.2, NOISE)[..., :9, :15]
    assert torch.allclose(out, wanted, atol=1e-5)


def test_a_picture_that_stays_below_the_models_size_is_worked_on_at_it_and_reduced() -> None:
    backbone = Shapes(size=32, multiple=8)
    enhancer = Enhancer(backbone, 2, (0.2,), sampler="ddpm", steps=1)
    assert enhancer(low(4, 6), NOISE).shape == (2, 3, 8, 12)
    assert backbone.seen == {(32, 48), (32, 32)}
    assert enhancer.working_sides(8, 12) == (32, 48)
    assert enhancer.working_sides(40, 33) == (40, 33)


def test_batch_split_does_not_matter() -> None:
    enhancer = Enhancer(model(), 4, (0.4, 0.2), sampler="ddpm", steps=3)
    both = enhancer(low(), NOISE)
    one = enhancer(low()[1:], KeyedNoise(KEYS[1:2]))
    assert torch.allclose(both[1:], one, atol=1e-6)


def test_a_non_finite_output_is_nan() -> None:
    pictures = torch.stack([torch.ones(3, 2, 2), torch.zeros(3, 2, 2)])
    out = Enhancer(NotFinite(), 4, (0.4,), sampler="ddpm", steps=1)(pictures, NOISE)
    assert out[0].isnan().all() and out[1].isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"factor": 1}, "factor must be 2 or more"),
        ({"levels": ()}, "levels must not be empty"),
        ({"levels": (0.4, 0)}, "level must be in"),
        ({"upsampling": "nearest"}, "upsampling: unknown 'nearest'"),
        ({"steps": 0}, "steps must be 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Enhancer(model(), **wrong)


def test_a_picture_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, h, w\)"):
        Enhancer(model())(low()[0], NOISE)


def test_noise_follows_from_the_seed_and_the_pictures_bytes() -> None:
    assert noise_key(1, b"a") == noise_key(1, b"a")
    assert len({noise_key(1, b"a"), noise_key(2, b"a"), noise_key(1, b"b"), noise_key(11, b"a")}) == 4
    assert len(noise_key(0, b"")) == 16


def test_levels_outside_of_the_papers_get_a_caution() -> None:
    assert cautions((0.2, 0.6)) == []
    low_one, high_one = cautions((0.1, 0.4, 0.9))
    assert "0.1" in low_one and "little is added" in low_one and "0.9" in high_one
