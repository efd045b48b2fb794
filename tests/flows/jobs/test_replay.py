"""Scores are measured and images drawn again, and compared with the ledger."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from anonymizer.boomerang import Boomerang
from anonymizer.records import Scores
from anonymizer.storage.layout import Release
from flows.jobs import replay as replay_job
from tests.support.groups import group_settings, photos, run_grouped
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    HEX,
    PlainScorer,
    people,
    run,
    settings,
)
from tests.support.signing_keys import PUBLISHER


class OtherScorer(PlainScorer):
    """Scores other than those of the run."""

    def score_one(self, original: Any, output: Any) -> Scores:
        return Scores(clip_similarity=-5.0, lpips=5.0)


@pytest.fixture
def replayable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A release whose originals, model and key are available."""
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setattr(replay_job, "backbone_of", lambda model: IdealGaussian())
    monkeypatch.setattr(replay_job, "scorer_of", lambda metrics, device: PlainScorer())
    return run(settings(people(tmp_path / "in", 5), tmp_path / "out"))


def replay(release: Release) -> dict[str, tuple[str, str]]:
    """Return the findings about scores and images that are made again, by check."""
    found = list(replay_job.verify_release(release, rescore=4, replay=3))
    assert len([f for f in found if f.check == "replay"]) <= 1
    return {f.check: (f.result, f.message) for f in found if f.check in ("scores", "replay", "originals", "ledger")}


def test_scores_are_measured_and_images_drawn_again_to_the_byte(replayable: Release) -> None:
    found = replay(replayable)
    assert found["scores"] == ("pass", "4 measured again, within 0.02 of the ledger")
    assert found["replay"] == ("pass", "3 drawn again to the byte")


def test_other_scores_and_other_images_are_found(replayable: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_job, "scorer_of", lambda metrics, device: OtherScorer())
    original = Boomerang.sample_latent
    monkeypatch.setattr(Boomerang, "sample_latent", lambda *args, **more: -original(*args, **more))
    found = replay(replayable)
    assert found["scores"] == ("fail", "4 of 4 scores are not those in the ledger (beyond 0.02)")
    assert found["replay"] == ("fail", "3 of 3 pictures come out otherwise")


@pytest.mark.parametrize("outputs", ["one", "each"])
def test_outputs_of_groups_are_measured_and_drawn_again_from_all_members(
    replayable: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outputs: str
) -> None:
    """A group of which a member is gone is left out."""
    config = group_settings(photos(tmp_path / "photos", 9), tmp_path / "groups", groups={"outputs": outputs})
    release = run_grouped(config)
    found = {f.check: (f.result, f.message) for f in replay_job.verify_release(release, rescore=9, replay=9)}
    count = 3 if outputs == "one" else 9
    assert found["scores"] == ("pass", f"{count} measured again, within 0.02 of the ledger")
    assert found["replay"] == ("pass", f"{count} drawn again to the byte")
    (tmp_path / "photos" / "p4.png").unlink()
    found = {f.check: (f.result, f.message) for f in replay_job.verify_release(release, rescore=9, replay=9)}
    assert found["replay"] == ("pass", f"{count * 2 // 3} drawn again to the byte")
    assert found["originals"][0] == "fail"
    monkeypatch.setattr(replay_job, "scorer_of", lambda metrics, device: OtherScorer())
    found = {f.check: (f.result, f.message) for f in replay_job.verify_release(release, rescore=9, replay=0)}
    assert found["scores"][0] == "fail"


def test_a_missing_key_model_or_source_is_reported(
    replayable: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ANONYMIZER_KEY")
    assert replay(replayable)["replay"][0] == "fail", "what was asked for was not done"
    monkeypatch.setattr(replay_job, "backbone_of", lambda model: OtherModel())
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    assert replay(replayable)["replay"] == (
        "note",
        "3 were drawn with another model or other settings, for an earlier release",
    )
    shutil.rmtree(tmp_path / "in")
    assert replay(replayable)["originals"] == ("fail", "are gone: nothing was measured or drawn again")


class OtherModel(IdealGaussian):
    def __init__(self) -> None:
        super().__init__()
        self.digest = "0" * 64


def test_a_damaged_ledger_is_not_replayed(replayable: Release) -> None:
    replayable.shard_ledger(0).write(b"garbage")
    assert set(replay(replayable)) == {"ledger"}
