"""What each task runner needs is known before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anonymizer.errors import ConfigError, CustodianKeyError
from flows.runtime import task_runners
from tests.support.releases import HEX, people, settings


@pytest.mark.parametrize("run", [{"runner": "ray"}, {"runner": "dask"}, {"dispatch": "workers"}])
def test_several_processes_need_a_key_that_each_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: dict[str, Any]
) -> None:
    monkeypatch.delenv("ANONYMIZER_KEY", raising=False)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", run=run)
    with pytest.raises(
        CustodianKeyError, match=r"ANONYMIZER_KEY: not set, and run\.\w+ \w+ works in several processes"
    ):
        task_runners.check(config)
    assert not (tmp_path / "out").exists()


def test_ranges_need_a_deployment_of_their_own_flow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    spread = {"dispatch": "workers", "deployment": "release/release"}
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", run=spread)
    with pytest.raises(ConfigError, match=r"run\.deployment 'release/release': is a deployment of another flow"):
        task_runners.check(config)


@pytest.mark.parametrize("runner", ["ray", "dask"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str) -> None:
    monkeypatch.setattr(task_runners, "find_spec", lambda name: None)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", f"run.runner={runner}")
    with pytest.raises(ConfigError, match=rf"pip install 'anonymizer\[{runner}\]'"):
        task_runners.check(config)


def test_workers_need_a_server_that_answers_and_has_their_deployment(
    tmp_path: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", "run.dispatch=workers")
    with pytest.raises(
        ConfigError, match=r"run\.deployment 'anonymize-shards/anonymize-shards': the Prefect server has no"
    ):
        task_runners.check(config)
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ConfigError, match="set PREFECT_API_URL"),
    ):
        task_runners.check(config)
    away = {PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(away), pytest.raises(ConfigError, match=r"does not answer \(ConnectError\): check"):
        task_runners.check(config)


def test_work_is_distributed_in_one_way_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose one way to spread the work"):
        settings(tmp_path / "in", tmp_path / "out", "run.dispatch=workers", "run.runner=ray")
    with pytest.raises(ConfigError, match=r"run\.deployment must be FLOW/DEPLOYMENT"):
        settings(tmp_path / "in", tmp_path / "out", "run.deployment=shards")


def test_a_gpu_that_no_node_of_a_cluster_has_is_refused(tmp_path: Path) -> None:
    asked = settings(tmp_path / "in", tmp_path / "out", "model.device=cuda:0")
    with pytest.raises(ConfigError, match=r"model\.device cuda:0: no node of the Ray cluster has a GPU"):
        task_runners.gpus_per_task(asked, 0)
    auto = settings(tmp_path / "in", tmp_path / "out")
    assert [
        task_runners.gpus_per_task(asked, 8),
        task_runners.gpus_per_task(auto, 8),
        task_runners.gpus_per_task(auto, 0),
    ] == [1, 1, 0]
    assert task_runners.gpus_per_task(settings(tmp_path / "in", tmp_path / "out", "model.device=cpu"), 8) == 0
