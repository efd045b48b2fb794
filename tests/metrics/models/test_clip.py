"""CLIP embeddings: the bundled model and models from files, against open_clip's own transform."""

from __future__ import annotations

import json
import warnings
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anonymizer.errors import ModelError
from metrics.models.clip import ClipEmbedder, Preprocess, cosine_similarity
from tests.support.pictures import blurred, noisy, pictures

BUNDLED = Path(str(files("anonymizer.bundled"))) / "clip-mini"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture(scope="module")
def mini() -> ClipEmbedder:
    return ClipEmbedder.load("bundled:clip-mini")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """An architecture that open_clip knows, for once, and its random weights as two kinds of file."""
    import open_clip
    from safetensors.torch import save_file

    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    config = tmp_path / "tiny-test-clip.json"
    config.write_text(json.dumps(TINY))
    open_clip.add_model_config(config)
    state = open_clip.CLIP(**TINY).state_dict()
    safe, pickle = tmp_path / "secret-place.safetensors", tmp_path / "secret-place.pt"
    save_file({k: v.contiguous().clone() for k, v in state.items()}, safe)
    torch.save(state, pickle)
    return {"safe": safe, "pickle": pickle}


def test_an_embedding_is_a_unit_vector_of_float32(mini: ClipEmbedder) -> None:
    result = mini.embed(pictures(3).double())
    assert result.shape == (3, 256) and result.dtype == torch.float32
    torch.testing.assert_close(result.norm(dim=1), torch.ones(3), atol=1e-5, rtol=0)


def test_identical_pictures_have_similarity_one(mini: ClipEmbedder) -> None:
    x = mini.embed(pictures(4))
    torch.testing.assert_close(cosine_similarity(x, x), torch.ones(4), atol=1e-5, rtol=0)


def test_similarity_is_symmetric(mini: ClipEmbedder) -> None:
    a, b = mini.embed(pictures(4)), mini.embed(pictures(4, seed=1))
    assert torch.equal(cosine_similarity(a, b), cosine_similarity(b, a))


def test_how_a_batch_is_split_does_not_matter(mini: ClipEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    x = pictures(5)
    whole = mini.embed(x)
    monkeypatch.setattr("metrics.models.clip.CHUNK_PIXELS", 2 * 64 * 64)
    torch.testing.assert_close(mini.embed(x), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cat([mini.embed(row[None]) for row in x]), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "spoil", [lambda x, s: blurred(x, 2**s), lambda x, s: noisy(x, 0.15 * s**2)], ids=["blur", "noise"]
)
def test_similarity_falls_as_pictures_are_spoilt(mini: ClipEmbedder, spoil: Any) -> None:
    x = pictures(16)
    means = [cosine_similarity(mini.embed(x), mini.embed(spoil(x, s))).mean().item() for s in (1, 2, 3)]
    assert 1 > means[0] > means[1] > means[2]


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [
        ((64, 64), 1e-6),  # nothing to resize
        ((200, 200), 3 / 127.5),  # PIL rounds to 8 bits after each of its two passes
        ((150, 97), 3 / 127.5),
        ((32, 47), 3 / 127.5),
    ],
)
def test_preprocessing_agrees_with_open_clips_pil_transform(size: tuple[int, int], tolerance: float) -> None:
    import open_clip

    _, _, reference = open_clip.create_model_and_transforms(f"local-dir:{BUNDLED}")
    ours = Preprocess.from_config(json.loads((BUNDLED / "open_clip_config.json").read_text())["preprocess_cfg"])
    x = ((pictures(1, 256)[0, :, : size[0], : size[1]] + 1) * 127.5).round().byte()
    theirs = reference(Image.fromarray(x.permute(1, 2, 0).numpy()))
    torch.testing.assert_close(ours(x[None] / 127.5 - 1)[0], theirs, atol=tolerance, rtol=0)


def test_the_image_tower_agrees_with_open_clips_own_loading(mini: ClipEmbedder) -> None:
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{BUNDLED}")
    x = pictures(2)
    with torch.inference_mode():
        theirs = model.eval().encode_image(x, normalize=True)  # the bundled model is trained on [-1, 1]
    torch.testing.assert_close(mini.embed(x), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (0, 3, 64, 64), (1, 64, 64, 3)])
def test_another_shape_is_refused(mini: ClipEmbedder, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        mini.embed(torch.zeros(shape))


def test_bytes_are_refused(mini: ClipEmbedder) -> None:
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        mini.embed(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_embeddings_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="equal"):
        cosine_similarity(torch.zeros(2, 4), torch.zeros(3, 4))


def test_a_local_file_of_a_known_architecture_is_loaded(tiny: dict[str, Path]) -> None:
    result = ClipEmbedder.load(f"tiny-test-clip/{tiny['safe']}")
    assert result.embed(pictures(2, 48)).shape == (2, 16)
    assert result.preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert result.versioned_name.startswith("tiny-test-clip sha256:") and "secret" not in result.versioned_name


def test_a_pickle_file_is_refused_unless_allowed(tiny: dict[str, Path]) -> None:
    spec = f"tiny-test-clip/{tiny['pickle']}"
    with pytest.raises(ModelError, match="pickle"):
        ClipEmbedder.load(spec)
    allowed = ClipEmbedder.load(spec, allow_pickle=True)
    safe = ClipEmbedder.load(f"tiny-test-clip/{tiny['safe']}")
    assert torch.equal(allowed.embed(pictures(1)), safe.embed(pictures(1)))


def test_weights_of_another_model_are_one_clear_line(tiny: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="do not fit") as error:
        ClipEmbedder.load(f"tiny-test-clip/{BUNDLED / 'open_clip_model.safetensors'}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("bundled:clip-maxi", "known: bundled:clip-mini"),
        ("bundled:../bundled/clip-mini", "unknown bundled model"),
        ("clip-mini", "MODEL/PRETRAINED"),
        ("ViT-B-32", "MODEL/PRETRAINED"),
        ("ViT-B-32/no-such-tag", "laion2b_s34b_b79k"),
        ("local-dir:no-such-folder", "open_clip_config.json"),
    ],
)
def test_an_unknown_model_is_one_line_that_says_what_to_write(spec: str, what: str) -> None:
    with pytest.raises(ModelError, match=what) as error:
        ClipEmbedder.load(spec)
    assert "\n" not in str(error.value) and str(error.value).startswith("metrics.clip: ")


def test_without_network_the_error_says_which_file_to_place_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args: None)
    with pytest.raises(ModelError) as error:
        ClipEmbedder.load("ViT-B-32/laion2b_s34b_b79k")
    line = str(error.value)
    assert "open_clip_model.safetensors" in line and "laion/CLIP-ViT-B-32-laion2B-s34B-b79K" in line
    assert "write ViT-B-32/PATH_OF_THE_FILE" in line and "\n" not in line


def test_a_model_whose_input_is_not_square_is_refused() -> None:
    with pytest.raises(ModelError, match="square"):
        Preprocess.from_config({"size": (64, 32), "mean": (0, 0, 0), "std": (1, 1, 1)})


def test_loading_leaves_logging_and_warnings_alone(recwarn: pytest.WarningsRecorder) -> None:
    import logging

    before = list(logging.getLogger().handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ClipEmbedder.load("bundled:clip-mini")
    assert logging.getLogger().handlers == before and not recwarn.list


def test_the_bundled_weights_are_small_safetensors() -> None:
    assert (BUNDLED / "open_clip_model.safetensors").stat().st_size < 20e6
    assert not [p for p in BUNDLED.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
