"""Real Prefect servers and workers: deployed as documented, run by a schedule, and an alert is sent for what fails."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from anonymizer.config import RunConfig
from anonymizer.storage.layout import Release
from flows.cli import main
from flows.jobs import release as release_job
from tests.support.planted_leaks import ADDRESS, MARK, PUBLISHER, as_folder, forbidden, spellings
from tests.support.prefect_site import ROOT, Site, receive_alerts, running, wait
from tests.support.releases import HEX, people, public_images, rows, settings

DEPLOYMENTS = ROOT / "deployments"
ENDED = ("COMPLETED", "FAILED", "CRASHED")
KEYS = {"ANONYMIZER_KEY": HEX, "ANONYMIZER_SIGNING_KEY": PUBLISHER.private_bytes.decode()}
HOOK = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock as Hook
hook = Hook(name="alerts", url={url!r}, json_data={{"text": "{{{{subject}}}} {{{{body}}}}"}})
print(hook.save("anonymizer-alerts", overwrite=True))
"""


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with both pools and all deployments, a worker for release runs and two that do shards."""
    folder = tmp_path_factory.mktemp("site")
    with running(folder, request.param) as site, ThreadPoolExecutor() as at_once:
        pools = ("anonymizer-cpu", "anonymizer-gpu")
        template = ["--type", "process", "--base-job-template", str(DEPLOYMENTS / "work-pools/process.json")]
        list(at_once.map(lambda pool: site.prefect("work-pool", "create", pool, *template), pools))
        for name, pool in (("cpu", pools[0]), ("gpu-1", pools[1]), ("gpu-2", pools[1])):
            site.work(name, pool, **(KEYS if name == "cpu" else {"ANONYMIZER_KEY": HEX}))
        # Paths of these tests in place of /srv/anonymizer, and nothing else.
        text = (DEPLOYMENTS / "prefect.yaml").read_text().replace("/srv/anonymizer", str(folder))
        (folder / "prefect.yaml").write_text(text)
        site.prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(folder / "prefect.yaml"))
        yield site


def in_process(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Release:
    """The same release without Prefect."""
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    the_plan = release_job.prepare(config)
    for shard in range(the_plan.shards):
        release_job.run_shard(config, shard, lambda done: None)
    release_job.finish(config)
    return Release.at(config.output.uri)


def settings_file(folder: Path, config: RunConfig, name: str = "release.yaml") -> Path:
    (folder / name).write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    return folder / name


def of_workers(source: Path, output: Path, model: Path, *more: str) -> RunConfig:
    """Settings that spread two ranges over workers at once."""
    spread: dict[str, Any] = {"dispatch": "workers", "workers": 2, "retries": 2}
    return settings(
        source, output, *more, model={"id": str(model)}, metrics={"clip": "none", "lpips": "none"}, run=spread
    )


@pytest.mark.fault
@pytest.mark.parametrize("site", ["sqlite", "postgresql"], indirect=True)
def test_a_schedule_makes_a_release_through_workers_and_the_server_learns_nothing(
    site: Site, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = as_folder(tmp_path)
    config = of_workers(source, tmp_path / "releases" / "{date}", tiny_model)
    settings_file(site.folder, config)
    (deployment,) = site.ask("deployments/filter", {"deployments": {"name": {"any_": ["release"]}}})
    assert [(one["schedule"]["cron"], one["active"]) for one in deployment["schedules"]] == [("0 3 1 * *", False)]
    assert not deployment["paused"]

    soon = datetime.now(UTC) + timedelta(seconds=15)  # later than the server needs to see it
    every_day = {"interval": 86400, "anchor_date": soon.isoformat()}
    site.ask(f"deployments/{deployment['id']}/schedules", [{"schedule": every_day, "active": True}])
    done = wait(lambda: [r for r in site.flow_runs("release") if r["state_type"] in ENDED])
    assert done, site.log("cpu") + site.log("gpu-1") + site.log("gpu-2")
    assert (done[0]["state_type"], done[0]["auto_scheduled"]) == ("COMPLETED", True), done[0]["state"]
    started = datetime.fromisoformat(done[0]["expected_start_time"])
    assert abs(started - soon) < timedelta(seconds=2)

    # Two ranges, each in a worker of the GPU pool, one task for each shard; the release is read and verified.
    ranges = site.flow_runs("anonymize-shards")
    assert sorted((r["parameters"]["first"], r["parameters"]["last"]) for r in ranges) == [(0, 1), (2, 4)]
    assert {r["parent_task_run_id"] is not None for r in ranges} == {True}
    release = Release.at(str(tmp_path / "releases" / f"{started:%Y-%m-%d}"))
    checked = CliRunner().invoke(main, ["verify", str(release.root), "--rescore", "0", "--json"])
    assert checked.exit_code == 0, checked.stdout
    plain = in_process(settings(source, tmp_path / "plain", model={"id": str(tiny_model)},
                                metrics={"clip": "none", "lpips": "none"}), monkeypatch)  # fmt: skip
    assert public_images(release)[0] == public_images(plain)[0]
    assert public_images(release)[1].equals(public_images(plain)[1])
    assert len(public_images(release)[0]) == 7

    # The server has the address of the source, which the settings name, and nothing of what lies there.
    ledger_rows = rows(release)
    stored = ADDRESS.sub(b"", site.written())
    assert b"anonymize-shards" in stored
    ids = {row["output_id"].encode() for row in ledger_rows if row["output_id"]}
    floats = {mark for mark in forbidden(source, ledger_rows) if len(mark) < 8}  # by chance in any file
    assert not [mark for mark in (forbidden(source, ledger_rows) | ids) - floats if mark in stored]
    logs = b"".join(path.read_bytes() for path in site.folder.glob("*.log"))
    assert not [mark for mark in {*spellings(MARK), HEX.encode(), *ids} if mark in ADDRESS.sub(b"", logs)]


def process_of(run: dict[str, Any]) -> int:
    return int(run["infrastructure_pid"].rpartition(":")[2])


def shards_done(release: Release) -> int:
    return len(list(release.ledger.children()))


@pytest.mark.fault
@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("fault", "state"), [(signal.SIGKILL, "CRASHED"), (signal.SIGSTOP, "CANCELLED")])
def test_a_range_whose_worker_is_killed_or_hangs_is_started_again(
    site: Site, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, fault: signal.Signals, state: str
) -> None:
    source = people(tmp_path / "in", 8)
    slow = "boomerang.steps=200"  # calls of the network for each batch
    began = time.monotonic()
    plain = in_process(settings(source, tmp_path / "plain", slow, model={"id": str(tiny_model)},
                                metrics={"clip": "none", "lpips": "none"}), monkeypatch)  # fmt: skip
    site.run(sys.executable, "-c", "import diffusers, flows.release")
    needed = time.monotonic() - began  # by one range, about: a limit in seconds would cancel those that are well
    config = of_workers(source, tmp_path / "out", tiny_model, slow, f"run.timeout={max(40, 4 * needed):.0f}")
    before = {run["id"] for run in site.flow_runs("anonymize-shards")}
    own = start(site, settings_file(site.folder, config, "killed.yaml"))["id"]
    release = Release.at(config.output.uri)

    def stop_one() -> dict[str, Any] | None:
        """Stop a range at once, lest it end before the fault; return it if it has shards left."""
        ranges = [run for run in site.flow_runs("anonymize-shards") if run["id"] not in before]
        for run in ranges if shards_done(release) else []:
            if run["state_type"] == "RUNNING":
                with suppress(ProcessLookupError):
                    os.kill(process_of(run), signal.SIGSTOP)
                    if not release.shard_ledger(run["parameters"]["last"]).exists():
                        return run
                    os.kill(process_of(run), signal.SIGCONT)
        return None

    victim = wait(stop_one, 300 + 10 * needed)
    os.kill(process_of(victim), fault)
    ended = wait(lambda: (now := site.ask(f"flow_runs/{own}")["state"])["type"] in ENDED and now, 300 + 20 * needed)
    assert ended and ended["type"] == "COMPLETED", site.log("cpu")
    ranges = [run for run in site.flow_runs("anonymize-shards") if run["id"] not in before]
    assert len(ranges) == 3
    assert wait(lambda: site.ask(f"flow_runs/{victim['id']}")["state_type"] == state, 90 + 4 * needed)
    assert public_images(release)[0] == public_images(plain)[0]


@contextmanager
def alerts(site: Site, lost_after: int = 180) -> Iterator[list[str]]:
    """Yield the alerts that are sent by the automations as documented."""
    with receive_alerts() as (url, heard):
        block = site.run("python", "-c", HOOK.format(url=url)).split()[-1]
        text = (DEPLOYMENTS / "automations.yaml").read_text().replace("BLOCK_ID", block)
        assert "within: 180 " in text
        (site.folder / "alerts.yaml").write_text(text.replace("within: 180 ", f"within: {lost_after} "))
        site.prefect("automation", "create", "--from-file", str(site.folder / "alerts.yaml"))
        try:
            yield heard
        finally:
            site.prefect("automation", "delete", "--all")


def start(site: Site, path: Path) -> dict[str, Any]:
    """A flow run of the deployment ``release``, asked for by hand."""
    output = site.prefect("deployment", "run", "release/release", "--param", f'config="{path}"')
    run: dict[str, Any] = site.ask(f"flow_runs/{re.findall(r'UUID: ([0-9a-f-]{36})', output)[0]}")
    return run


@pytest.mark.fault
@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
def test_an_alert_is_sent_for_a_release_whose_machine_is_gone(site: Site, tmp_path: Path, tiny_model: Path) -> None:
    with alerts(site, lost_after=10) as heard:
        config = of_workers(people(tmp_path / "in", 8), tmp_path / "out", tiny_model, "boomerang.steps=200")
        release = start(site, settings_file(site.folder, config, "lost.yaml"))
        beats = {
            "event": {"name": ["prefect.flow-run.heartbeat"]},
            "resource": {"id": [f"prefect.flow-run.{release['id']}"]},
        }
        assert wait(lambda: site.ask("events/filter", {"filter": beats})["events"]), site.log("cpu")
        pid = process_of(site.ask(f"flow_runs/{release['id']}"))
        worker = site.workers.pop("cpu")
        worker.kill()  # which else would say that its process was killed
        os.kill(pid, signal.SIGKILL)
        worker.wait()
        site.work("cpu", "anonymizer-cpu", **KEYS)
        alert = f"{release['name']} of release: Crashed"
        assert wait(lambda: [text for text in heard if alert in text and "nothing was heard" in text], 90), heard


@pytest.mark.fault
@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
def test_alerts_are_sent_for_a_failed_release_and_a_missed_start_and_not_for_a_range_that_waits(
    site: Site, tmp_path: Path, tiny_model: Path
) -> None:
    with alerts(site) as heard:
        site.stop("gpu-2")  # so the second range waits for the first
        config = of_workers(people(tmp_path / "in", 4), tmp_path / "out", tiny_model, "policy.min_released=5")
        path = settings_file(site.folder, config, "gate.yaml")
        before = {run["id"] for run in site.flow_runs("anonymize-shards")}
        release = start(site, path)
        alert = f"{release['name']} of release: Failed"
        assert wait(lambda: [text for text in heard if alert in text]), (heard, site.log("cpu"))
        (message,) = [text for text in heard if alert in text]
        assert "GateError" in message and "min_released" in message

        site.stop("cpu")
        missed = start(site, path)
        assert wait(lambda: [text for text in heard if f"{missed['name']} of release: Late" in text], 60), heard

        ranges = {run["id"] for run in site.flow_runs("anonymize-shards")} - before
        states = [state["name"] for one in ranges for state in site.ask(f"flow_run_states/?flow_run_id={one}")]
        assert len(ranges) == 2 and "Late" in states
        assert not [text for text in heard if "of anonymize-shards" in text]
