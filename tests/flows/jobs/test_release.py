"""The job of a release refuses shards that were planned otherwise, and uses the planned number of threads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import CustodianKeyError, ModelError
from anonymizer.release import preflight
from anonymizer.release.ledger import Ledger
from anonymizer.storage.layout import Release
from flows.jobs import (
    release as release_job,  # nothing that imports Prefect: its server's settings are set by a fixture
)
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import HEX, people, settings

PLAIN = {"metrics": {"clip": "none", "lpips": "none"}}


def test_a_shard_is_done_with_as_many_threads_as_the_plan_says(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray and Dask give a process one, and another number rounds otherwise."""
    import torch

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", model={"id": str(tiny_model)}, **PLAIN)
    usual, seen = torch.get_num_threads(), list[int]()
    monkeypatch.setattr(release_job, "anonymize_shard", lambda *given: seen.append(torch.get_num_threads()))
    try:
        torch.set_num_threads(3)
        release_job.prepare(config)
        torch.set_num_threads(1)
        release_job.run_shard(config, 0, lambda done: None)
    finally:
        torch.set_num_threads(usual)
    assert seen == [3]


def test_another_key_or_model_than_was_planned_with_does_no_shard(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", model={"id": str(tiny_model)}, **PLAIN)
    release_job.prepare(config)
    with monkeypatch.context() as patch, pytest.raises(CustodianKeyError, match="not the key that the release was"):
        patch.setenv("ANONYMIZER_KEY", CustodianKey(bytes(range(1, 33))).secret.hex())
        release_job.run_shard(config, 0, lambda done: None)
    with monkeypatch.context() as patch, pytest.raises(CustodianKeyError, match="not set where shards are done"):
        patch.delenv("ANONYMIZER_KEY")
        release_job.run_shard(config, 0, lambda done: None)
    with monkeypatch.context() as patch, pytest.raises(ModelError, match="other weights or settings than"):
        patch.setattr(release_job, "backbone_of", lambda model: IdealGaussian())
        release_job.run_shard(config, 0, lambda done: None)
    assert Ledger.open(Release.at(config.output.uri)).read_shard(0) is None
    assert json.loads(Release.at(config.output.uri).plan.read())["shards"] == 1


def test_everything_is_checked_once_on_the_way_from_the_command_to_the_flow(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", model={"id": str(tiny_model)}, **PLAIN)
    checked, looked = list[object](), preflight.check_previous
    monkeypatch.setattr(preflight, "check_previous", lambda *given: (checked.append(given), looked(*given)))
    release_job.check(config)
    release_job.prepare_for_flow(config)
    plan = release_job.prepare_for_scheduler(config)
    assert len(checked) == 1 and plan.records == 2
    assert release_job.prepare_for_scheduler(config) == plan and len(checked) == 2  # a later flow run looks again
