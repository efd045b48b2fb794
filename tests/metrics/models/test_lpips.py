"""Perceptual distance: what any distance must do, and agreement with two independent implementations."""

from __future__ import annotations

import sys
import types
import warnings
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch

from anonymizer.errors import ModelError
from metrics.models.lpips import BACKBONES, BlurPool, PerceptualDistance
from tests.support.pictures import blurred, noisy, pictures


@pytest.fixture(scope="module")
def tolerant() -> PerceptualDistance:
    return PerceptualDistance.load("st-alex")


def test_identical_pictures_have_distance_zero(tolerant: PerceptualDistance) -> None:
    x = pictures(3)
    torch.testing.assert_close(tolerant(x, x.clone()), torch.zeros(3), atol=1e-7, rtol=0)


def test_distance_is_symmetric_and_positive(tolerant: PerceptualDistance) -> None:
    a, b = pictures(3), pictures(3, seed=1)
    forth = tolerant(a, b)
    assert (forth > 0.05).all() and forth.dtype == torch.float32 and forth.shape == (3,)
    torch.testing.assert_close(forth, tolerant(b, a), atol=1e-6, rtol=0)


def test_how_a_batch_is_split_does_not_matter(tolerant: PerceptualDistance, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pictures(5), pictures(5, seed=1)
    whole = tolerant(a, b)
    monkeypatch.setattr("metrics.models.lpips.CHUNK_PIXELS", 2 * 64 * 64)
    torch.testing.assert_close(tolerant(a, b), whole, atol=1e-6, rtol=0)
    single = torch.cat([tolerant(x[None], y[None]) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(single, whole, atol=1e-6, rtol=0)


def test_every_picture_against_every_other_is_what_pairs_give(
    tolerant: PerceptualDistance, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = pictures(12, 32).split([5, 7])
    pairs = torch.stack([tolerant(a[i : i + 1].expand(7, -1, -1, -1), b) for i in range(5)])
    assert torch.allclose(tolerant.pairwise(a, b), pairs, atol=1e-5)
    assert torch.allclose(tolerant.pairwise(a, a).diagonal(), torch.zeros(5), atol=1e-5)
    monkeypatch.setattr("metrics.models.lpips.MAX_CANDIDATE_BYTES", 1)
    monkeypatch.setattr("metrics.models.lpips.CHUNK_PIXELS", 2 * 32 * 32)
    assert torch.allclose(tolerant.pairwise(a, b), pairs, atol=1e-5)
    with pytest.raises(ValueError, match="equal shapes"):
        tolerant.pairwise(a, b[..., :16])


@pytest.mark.parametrize(
    "spoil", [lambda x, s: blurred(x, 2**s), lambda x, s: noisy(x, 0.15 * s**2)], ids=["blur", "noise"]
)
def test_distance_grows_as_pictures_are_spoilt(tolerant: PerceptualDistance, spoil: Any) -> None:
    x = pictures(8)
    means = [tolerant(x, spoil(x, s)).mean().item() for s in (1, 2, 3)]
    assert 0 < means[0] < means[1] < means[2]


def test_a_blur_pool_halves_a_constant_picture_and_keeps_it() -> None:
    x = torch.full((1, 2, 8, 8), 0.7)
    torch.testing.assert_close(BlurPool(2)(x), torch.full((1, 2, 5, 5), 0.7))


def test_shift_tolerant_lpips_agrees_with_its_authors_code(tolerant: PerceptualDistance) -> None:
    theirs = _authors_code()
    a, b = pictures(2, 72), pictures(2, 72, seed=1)
    with torch.inference_mode():
        expected = theirs(a, b).flatten()
    torch.testing.assert_close(tolerant(a, b), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["alex", "squeeze", pytest.param("vgg", marks=pytest.mark.slow)])
def test_plain_lpips_agrees_with_the_lpips_package_on_random_backbones(kind: str, tmp_path: Path) -> None:
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks torchvision with an old keyword
        theirs = lpips.LPIPS(net=kind, pnet_rand=True, verbose=False)
    state, slices = {}, BACKBONES[kind]
    for number in range(1, len(slices) + 1):
        for name, value in getattr(theirs.net, f"slice{number}").state_dict().items():
            state[f"features.{name}"] = value
    torch.save(state, tmp_path / "backbone.pth")
    ours = PerceptualDistance.load(f"{kind}:{tmp_path / 'backbone.pth'}")
    a, b = pictures(2), pictures(2, seed=1)
    with torch.inference_mode():
        expected = theirs(a, b).flatten()
    assert expected.min() > 1e-4
    torch.testing.assert_close(ours(a, b), expected, atol=1e-6, rtol=1e-4)
    assert ours.versioned_name.startswith(f"lpips-{kind} sha256:") and "backbone" not in ours.versioned_name


def test_the_two_kinds_have_different_names(tolerant: PerceptualDistance) -> None:
    assert tolerant.versioned_name.startswith("st-lpips-alex sha256:")


@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_without_network_the_error_says_which_file_to_place_where(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(ModelError) as error:
        PerceptualDistance.load(kind)
    line = str(error.value)
    assert str(tmp_path / "checkpoints" / kind) in line and "https://" in line and f"write {kind}:" in line
    assert "\n" not in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("resnet", "known: st-alex, alex, vgg, squeeze"),
        ("st-alex:file", "known:"),
        ("alex:no-such-file.pth", "no file 'no-such-file.pth'"),
    ],
)
def test_an_unknown_model_is_one_line_that_says_what_to_write(spec: str, what: str) -> None:
    with pytest.raises(ModelError, match=what) as error:
        PerceptualDistance.load(spec)
    assert "\n" not in str(error.value) and str(error.value).startswith("metrics.lpips: ")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_file_that_holds_no_weights_is_one_clear_line(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if content is None:
        torch.save({"features.0.weight": torch.zeros(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.pth") as error:
        PerceptualDistance.load(f"alex:{path}")
    assert "\n" not in str(error.value)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save(_Trap(tmp_path / "sprung"), tmp_path / "weights.pth")
    with pytest.raises(ModelError):
        PerceptualDistance.load(f"alex:{tmp_path / 'weights.pth'}")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (0, 3, 64, 64)])
def test_another_shape_is_refused(tolerant: PerceptualDistance, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        tolerant(torch.zeros(shape), torch.zeros(shape))


def test_pictures_of_different_sizes_are_refused(tolerant: PerceptualDistance) -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        tolerant(pictures(1, 64), pictures(1, 72))


def test_pictures_too_small_for_the_network_are_one_clear_line(tolerant: PerceptualDistance) -> None:
    with pytest.raises(ModelError, match="16 x 16"):
        tolerant(pictures(1, 16), pictures(1, 16))


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


def _authors_code() -> Any:
    """The authors' network, imported with stand-ins for the two packages that it imports and does not use here."""
    try:
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            for name, attribute in (("IPython", "embed"), ("torchsummary", "summary")):
                if name not in sys.modules:  # others ask there whether they run in IPython
                    stand_in = types.ModuleType(name)
                    setattr(stand_in, attribute, None)
                    patch.setitem(sys.modules, name, stand_in)
            from stlpips_pytorch import stlpips

            path = distribution("stlpips-pytorch").locate_file("stlpips_pytorch/weights/vST0.0/alex_shift_tolerant.pth")
            return stlpips.LPIPS(net="alex", variant="shift_tolerant", model_path=str(path), verbose=False)
    except ImportError as error:
        pytest.skip(f"the authors' code cannot be imported: {error}")
