"""Jobs run apart from the caller's threads, and their errors name no record."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from anonymizer.config import RunConfig
from anonymizer.errors import IntegrityError, OutputError, ShardError, StepError
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.jobs import models, redaction
from tests.support.releases import (
    people,
    settings,
)


def test_models_are_loaded_in_a_thread_that_ends_so_that_shards_have_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(models, "load_backbone", lambda model: threads.append(threading.current_thread()))
    models.backbone_of.__wrapped__(RunConfig.model_validate({"source": {"uri": "a"}, "output": {"uri": "b"}}).model)
    assert threads and threads[0] is not threading.main_thread() and not threads[0].is_alive()


def test_an_error_that_is_about_the_run_keeps_its_text_and_no_chain(tmp_path: Path) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out")

    def tampered() -> None:
        try:
            raise KeyError("alice")
        except KeyError as error:
            raise IntegrityError("counts disagree") from error

    with pytest.raises(IntegrityError, match="counts disagree") as caught:
        redaction.redact_errors(Release.at(config.output.uri).restricted, "x", StepError("x"), tampered)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_full_disk_does_not_hide_which_step_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(place: StoragePath, data: bytes) -> None:
        raise OutputError("no space")

    monkeypatch.setattr(StoragePath, "write_uncommitted", full)
    with pytest.raises(StepError, match="shard 3"):
        redaction.redact_errors(Release.at(str(tmp_path / "out")).restricted, "x", ShardError("shard 3"), lambda: 1 / 0)
