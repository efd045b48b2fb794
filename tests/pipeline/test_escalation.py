"""Escalation: an output that is too close to its original is sampled again at a stronger level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anonymizer.backbones import Denoised
from anonymizer.crypto import signing
from anonymizer.errors import ConfigError, GateError
from anonymizer.records import Scores
from anonymizer.release.ledger import Ledger
from anonymizer.storage.layout import Release
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    PlainScorer,
    folder_of,
    manifest,
    people,
    picture,
    plain,
    rows,
    run,
    settings,
)


@pytest.fixture(autouse=True)
def publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())


class LevelScorer(PlainScorer):
    """Scores an output by the level it was sampled at, relative to the need of its original.

    The greyer an original, the more noise it needs: ``lpips`` is the level over the original's mean in [0, 1].
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def score_one(self, original: torch.Tensor, output: torch.Tensor) -> Scores:
        need = float(original.mean() + 1) / 2
        return Scores(clip_similarity=0.5, lpips=self.model.level / max(need, 1e-6))


class LevelRecorder(IdealGaussian):
    """A model that records the level it last started at."""

    level = 0.0

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        self.level = max(t / self.T, self.level if self.calls and self.calls[-1] > t else 0)
        return super().predict(zt, t, condition)


def run_escalating(tmp_path: Path, **policy: Any) -> tuple[Release, Any]:
    """Run on greys that need levels 0.2, 0.45, 0.7 and 0.98, and on a file that is no image."""
    greys = {f"{need}.png": plain(round(need * 255)) for need in (0.2, 0.45, 0.7, 0.98)}
    folder_of(tmp_path / "in", greys | {"bad.png": b"x"})
    model = LevelRecorder()
    gates = {"scores": {"lpips": {"min": 0.99}}, "escalate": [0.5, 0.8]} | policy
    config = settings(tmp_path / "in", tmp_path / "out", policy=gates, run={"shard_size": 3, "batch_size": 2})
    return run(config, model, LevelScorer(model)), config


def test_an_output_that_is_too_close_is_drawn_again_at_a_stronger_level(tmp_path: Path) -> None:
    release, _ = run_escalating(tmp_path)
    found = {row["record_id"]: row for row in rows(release)}
    outcomes = {name: (row["status"], row["reason"], row["attempts"], row["level"]) for name, row in found.items()}
    assert outcomes == {
        "0.2.png": ("released", None, 1, 0.4),
        "0.45.png": ("released", None, 2, 0.5),
        "0.7.png": ("released", None, 3, 0.8),
        "0.98.png": ("quarantined", "too_close", 3, 0.8),
        "bad.png": ("failed", "not_an_image", 0, 0.4),
    }
    earlier = json.loads(found["0.7.png"]["earlier"])
    assert [(one["level"], one["reason"]) for one in earlier] == [(0.4, "too_close"), (0.5, "too_close")]
    assert earlier[0]["lpips"] == pytest.approx(0.4 / 0.7, abs=0.02)
    counts = Ledger.open(release).summarize()
    assert (counts.read, counts.released, counts.quarantined, counts.failed) == (5, 3, 1, 1)
    assert sorted(manifest(release)["level"].to_pylist()) == [0.4, 0.5, 0.8]
    assert [p.name for p in release.quarantine.children()] == [f"{found['0.98.png']['output_id']}.png"]


def test_an_escalated_output_is_what_a_run_at_that_level_gives(tmp_path: Path) -> None:
    """Each level has noise of its own: shared noise could be cancelled."""
    release, _ = run_escalating(tmp_path)
    row = next(row for row in rows(release) if row["record_id"] == "0.7.png")
    alone = settings(tmp_path / "in", tmp_path / "alone", boomerang={"level": 0.8, "steps": 2})
    other = next(row for row in rows(run(alone, LevelRecorder())) if row["record_id"] == "0.7.png")
    same = ("output_id", "sha256", "config_fingerprint", "t_boom", "log_snr")
    assert [row[name] for name in same] == [other[name] for name in same]


def test_batches_and_shards_do_not_matter_to_what_is_drawn_again(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(9)})
    first = rows(run(settings(tmp_path / "in", tmp_path / "first", boomerang={"level": 0.2})))
    middle = sorted(row["lpips"] for row in first)[4]
    outcomes = []
    for number, (shard, batch) in enumerate([(9, 9), (2, 1), (4, 3)]):
        config = settings(
            tmp_path / "in", tmp_path / f"out{number}", boomerang={"level": 0.2},
            policy={"scores": {"lpips": {"min": middle}}, "escalate": [0.4, 0.9]},
            run={"shard_size": shard, "batch_size": batch},
        )  # fmt: skip
        outcomes.append(sorted((r["record_id"], r["attempts"], r["status"]) for r in rows(run(config))))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len({attempts for _, attempts, _ in outcomes[0]}) > 1, "the gate must bite for some, and not for all"


def test_an_output_that_is_too_far_is_not_drawn_again(tmp_path: Path) -> None:
    config = settings(
        people(tmp_path / "in", 2), tmp_path / "out", policy={"scores": {"lpips": {"max": 0}}, "escalate": [0.9]}
    )
    with pytest.raises(GateError, match="nothing is published"):
        run(config)
    found = rows(Release.at(config.output.uri))
    assert {(row["reason"], row["attempts"]) for row in found} == {("too_far", 1)}


@pytest.mark.parametrize("levels", [[0.4], [0.3, 0.9], [0.9, 0.5], [0.5, 0.5], [1.1]])
def test_a_level_that_is_not_stronger_is_refused(levels: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"policy\.escalate"):
        settings("in", "out", policy={"escalate": levels})


def test_a_run_that_was_begun_cannot_be_finished_with_other_bounds(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 3)
    run(settings(source, tmp_path / "out", policy={"scores": {"lpips": {"min": 0.01}}}))
    with pytest.raises(Exception, match=r"was begun with policy\.scores"):
        run(settings(source, tmp_path / "out"))
