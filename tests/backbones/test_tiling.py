"""Large pictures in overlapping tiles: exact where a model does not mind places, and without seams where it does."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from anonymizer.backbones import Denoised
from anonymizer.backbones.prediction_type import from_noise
from anonymizer.backbones.tiling import TiledBackbone
from anonymizer.boomerang import Boomerang
from anonymizer.noise import KeyedNoise
from tests.support.ideal_gaussian import IdealGaussian

OVERLAPS = (0.0, 0.25, 0.5, 0.75)


class Convolved(IdealGaussian):
    """Random convolutions that see the edge of what they are given: so a tile's edge shows, if nothing is done."""

    def __init__(self, size: int = 16) -> None:
        super().__init__(size=size)
        draw = torch.Generator().manual_seed(0)
        self.layers = [torch.randn(3, 3, 5, 5, generator=draw) / 5 for _ in range(3)]
        self.calls: list[tuple[tuple[int, ...], object]] = []

    def condition(self, texts: Sequence[str]) -> object:
        return tuple(texts)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        self.calls.append((tuple(zt.shape), condition))
        out = zt
        for layer in self.layers:
            out = torch.tanh(F.conv2d(out, layer, padding=2))
        return from_noise(zt, out, float(self.alphas_cumprod[t - 1]))


def noise(rows: int) -> KeyedNoise:
    return KeyedNoise([bytes([row]) * 16 for row in range(rows)])


def waves(height: int, width: int) -> torch.Tensor:
    """A smooth picture (1, 3, height, width)."""
    rows, columns = torch.meshgrid(torch.arange(height) / 9, torch.arange(width) / 7, indexing="ij")
    return torch.stack([torch.sin(rows), torch.cos(columns), torch.sin(rows + columns)])[None] * 0.5


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_a_picture_of_the_models_own_size_is_seen_whole(overlap):
    model, x0 = Convolved(), torch.rand(2, 3, 16, 16) * 2 - 1
    tiled = TiledBackbone(model, overlap)
    for part in ("z0", "eps"):
        found, plain = (getattr(one.predict(x0, 300), part) for one in (tiled, model))
        torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-6)
    ours, plain = (Boomerang(one, "ddim", 4).sample(x0, 0.4, noise(2)) for one in (tiled, model))
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "sde-dpm++"])
@pytest.mark.parametrize("sides", [(8, 21), (19, 8), (23, 17)])
def test_a_model_that_does_not_mind_places_gives_the_untiled_answer(ideal, sides, sampler, overlap):
    x0 = torch.rand(2, 3, *sides) * 0.5
    ours, plain = (
        Boomerang(one, sampler, 5).sample(x0, 0.6, noise(2)) for one in (TiledBackbone(ideal, overlap), ideal)
    )
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


@given(st.integers(1, 40), st.floats(0, 0.75), st.integers(0, 200))
def test_tiles_cover_a_side_from_end_to_end_and_overlap_as_set(side, overlap, more):
    tiled = TiledBackbone(IdealGaussian(size=side), overlap)
    starts = tiled.tile_starts(side + more)
    assert starts[0] == 0
    assert starts[-1] + side == side + more
    assert tiled.overlap_cells >= min(side - 1, overlap * side - 0.5)
    assert all(0 < b - a <= side - tiled.overlap_cells for a, b in pairwise(starts))
    assert (tiled.weights > 0).all()
    # No more of them than are needed: one fewer would leave a gap, or overlap less.
    assert side + (len(starts) - 2) * (side - tiled.overlap_cells) < side + more or len(starts) == 1


@given(st.integers(1, 12), st.floats(0, 0.75), st.integers(0, 20), st.integers(0, 20))
def test_each_cell_is_in_a_tile(side, overlap, taller, wider):
    tiled, seen = TiledBackbone(IdealGaussian(size=side), overlap), torch.zeros(side + taller, side + wider)
    for tile in tiled.tiles(*seen.shape):
        assert seen[tile].shape == (side, side)
        seen[tile] += 1
    assert seen.min() >= 1


def seams(overlap: float) -> float:
    """How much more a picture jumps where a tile begins or ends than it does elsewhere: 1 if nothing is to be seen."""
    tiled = TiledBackbone(Convolved(64), overlap)
    jumps = tiled.predict(waves(64, 388), 300).z0.diff(dim=-1).abs().mean(dim=(0, 1, 2))  # (387,)
    starts = tiled.tile_starts(388)
    at = sorted({start - 1 for start in starts[1:]} | {start + tiled.tile_size - 1 for start in starts[:-1]})
    away = [column for column in range(8, 380) if column not in at]  # and not where the picture itself ends
    return float(jumps[at].mean() / jumps[away].mean())


def test_where_tiles_overlap_there_are_no_seams():
    assert seams(0.0) > 2  # tiles that only touch: the measure sees them
    for overlap in (0.25, 0.5, 0.75):
        assert seams(overlap) < 1.05


def test_each_tile_is_predicted_separately_with_the_condition_of_its_rows():
    model = Convolved()
    tiled = TiledBackbone(model, 0.25)
    tiled.predict(torch.zeros(2, 3, 16, 28), 300, tiled.condition(["a", "b"]))
    assert model.calls == [((2, 3, 16, 16), ("a", "b"))] * 2


def test_a_row_does_not_depend_on_its_batch():
    tiled, zt = TiledBackbone(Convolved(), 0.25), torch.randn(2, 3, 20, 33)
    both = tiled.predict(zt, 300)
    for row in range(2):
        torch.testing.assert_close(tiled.predict(zt[row : row + 1], 300).z0, both.z0[row : row + 1])


def test_all_else_is_the_models_own(ideal):
    tiled = TiledBackbone(ideal, 0.25)
    assert (tiled.T, tiled.size, tiled.digest, tiled.condition_kind) == (ideal.T, ideal.size, ideal.digest, "nothing")
    assert tiled.alphas_cumprod is ideal.alphas_cumprod
    with pytest.raises(AttributeError):
        tiled.no_such_thing  # noqa: B018


def test_a_tile_is_counted_in_cells_and_not_in_pixels(ideal):
    ideal.scale = 4
    assert TiledBackbone(ideal, 0.25).tile_size == 2


@pytest.mark.parametrize("sides", [(7, 8), (8, 7), (1, 1)])
def test_a_picture_below_a_tile_is_refused(ideal, sides):
    with pytest.raises(ValueError, match=r"sides must be 8 cells or more, got \d: enlarge the picture first"):
        TiledBackbone(ideal, 0.25).predict(torch.zeros(1, 3, *sides), 300)
