"""The scorer that a release uses: one row for each output, whatever the batch, the metrics or the pictures."""

from __future__ import annotations

import math
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from anonymizer.config import MetricsConfig
from metrics.scores.scorer import ReleaseScorer, build_scorer
from tests.support.pictures import noisy, pictures

needs_faces = pytest.mark.skipif(find_spec("dlib") is None, reason="the extra is not installed: anonymizer[faces]")


@pytest.fixture(scope="module")
def scorer() -> ReleaseScorer:
    return build_scorer(MetricsConfig(), "cpu")


def test_each_metric_names_its_model_and_weights(scorer: ReleaseScorer) -> None:
    assert set(scorer.names) == {"clip_similarity", "lpips"}
    assert scorer.names["clip_similarity"].startswith("clip-mini sha256:")
    assert scorer.names["lpips"].startswith("st-lpips-alex sha256:")


def test_an_unchanged_picture_scores_one_and_zero(scorer: ReleaseScorer) -> None:
    x = pictures(3)
    for row in scorer.score(scorer.embed(x), x.clone()):
        assert row.clip_similarity == pytest.approx(1, abs=1e-5) and row.lpips == pytest.approx(0, abs=1e-6)
        assert row.identity_distance is None and row.faces is None


def test_rows_keep_their_order(scorer: ReleaseScorer) -> None:
    x = pictures(4)
    outputs = x.clone()
    outputs[2] = noisy(x, 0.6)[2]
    rows = scorer.score(scorer.embed(x), outputs)
    assert max(range(4), key=lambda i: rows[i].lpips or 0) == 2
    assert min(range(4), key=lambda i: rows[i].clip_similarity or 0) == 2


def test_how_a_batch_is_split_does_not_matter(scorer: ReleaseScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pictures(5), pictures(5, seed=1)
    whole = scorer.score(scorer.embed(x), y)
    split = [row for i in range(5) for row in scorer.score(scorer.embed(x[i : i + 1]), y[i : i + 1])]
    monkeypatch.setattr("metrics.models.lpips.CHUNK_PIXELS", 2 * 64 * 64)
    chunked = scorer.score(scorer.embed(x), y)
    monkeypatch.setattr("metrics.scores.scorer.MAX_FEATURE_BYTES", 0)
    without_kept_features = scorer.score(scorer.embed(x), y)
    for other in (split, chunked, without_kept_features):
        for a, b in zip(whole, other, strict=True):
            assert a.clip_similarity == pytest.approx(b.clip_similarity, abs=1e-5)
            assert a.lpips == pytest.approx(b.lpips, abs=1e-5)


def test_a_picture_that_is_not_finite_scores_nan_and_leaves_the_others_alone(scorer: ReleaseScorer) -> None:
    x, y = pictures(4), pictures(4, seed=1)
    clean = scorer.score(scorer.embed(x), y)
    x[0, 0, 0, 0], y[2, 1, 5, 5] = math.nan, math.inf
    rows = scorer.score(scorer.embed(x), y)
    for i in (0, 2):
        assert math.isnan(rows[i].clip_similarity or 0) and math.isnan(rows[i].lpips or 0)
    for i in (1, 3):
        assert rows[i].clip_similarity == pytest.approx(clean[i].clip_similarity, abs=1e-5)
        assert rows[i].lpips == pytest.approx(clean[i].lpips, abs=1e-5)


def test_what_an_encoder_would_clip_is_clipped_before_it_is_scored(scorer: ReleaseScorer) -> None:
    x = pictures(2)
    reference = scorer.embed(x)
    assert scorer.score(reference, x * 3) == scorer.score(reference, (x * 3).clamp(-1, 1))


def test_every_output_against_every_original_has_the_score_of_its_pair(scorer: ReleaseScorer) -> None:
    originals, outputs = pictures(6)[:3].clone(), pictures(6)[3:] * 1.5
    originals[2, 0, 0, 0] = float("nan")
    across, pairs = scorer.score_pairwise(originals, outputs), scorer.score(scorer.embed(originals), outputs)
    assert set(across) == {"clip_similarity", "lpips"}
    for name, values in across.items():
        assert values.shape == (3, 3) and values[:, 2].isnan().all() and values[:, :2].isfinite().all()
        assert values.diagonal().tolist() == pytest.approx([getattr(p, name) for p in pairs], abs=1e-5, nan_ok=True)
    fewer = scorer.score_pairwise(originals[:2], outputs)
    assert torch.allclose(fewer["lpips"], across["lpips"][:, :2], atol=1e-5)


@pytest.mark.parametrize(
    ("config", "filled"),
    [
        (MetricsConfig(clip="none"), {"lpips"}),
        (MetricsConfig(lpips="none"), {"clip_similarity"}),
        (MetricsConfig(clip="none", lpips="none"), set()),
        pytest.param(
            MetricsConfig(clip="none", lpips="none", identity="dlib"), {"identity_distance", "faces"}, marks=needs_faces
        ),
    ],
)
def test_a_metric_set_to_none_is_none_in_each_row(config: MetricsConfig, filled: set[str]) -> None:
    scorer = build_scorer(config, "cpu")
    x = pictures(2)
    rows = scorer.score(scorer.embed(x), x)
    assert set(scorer.names) == filled and len(rows) == 2
    for row in rows:
        for column in ("clip_similarity", "lpips", "identity_distance", "faces"):
            assert (getattr(row, column) is not None) == (column in filled)


def test_outputs_must_have_the_shape_of_their_originals(scorer: ReleaseScorer) -> None:
    reference = scorer.embed(pictures(2))
    with pytest.raises(ValueError, match="equal shapes"):
        scorer.score(reference, pictures(3))
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        scorer.embed(torch.zeros(2, 64, 64))


def test_larger_pictures_are_scored_at_their_own_size(scorer: ReleaseScorer) -> None:
    x = pictures(2, 96)
    assert all(row.lpips == pytest.approx(0, abs=1e-6) for row in scorer.score(scorer.embed(x), x))


def test_importing_the_scorer_does_not_import_its_heavy_models() -> None:
    heavy = ("open_clip", "lpips", "torchvision", "dlib", "onnxruntime")
    code = f"import sys, metrics.scores.scorer; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
