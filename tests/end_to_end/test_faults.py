"""What a machine does to a run: processes that are killed or interrupted, a scheduler that goes away.

Each ends with every record accounted for, and with the pictures of a run that nobody disturbed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from anonymizer.config import RunConfig
from anonymizer.storage.layout import Release
from tests.support.environment import without_prefect
from tests.support.prefect_database import answers, wait_for
from tests.support.releases import GARBAGE, HEX, folder_of, people, public_images, rows, settings, tree

pytestmark = pytest.mark.fault
KILLS = 50
RECORDS = 14  # one of which is no picture


@pytest.fixture
def configured(tiny_model: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    source = folder_of(people(tmp_path / "in", RECORDS - 1), {"a/broken.png": GARBAGE})

    def of(name: str, **run: Any) -> RunConfig:
        return settings(
            source,
            tmp_path / name,
            model={"id": str(tiny_model)},
            boomerang={"steps": 24},
            metrics={"lpips": "none"},
            run={"shard_size": 3, "batch_size": 2} | run,
        )

    return of


@pytest.fixture
def undisturbed(configured: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> Release:
    from flows.jobs import release as release_job

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    config = configured("undisturbed")
    for shard in range(release_job.prepare(config).shards):
        release_job.run_shard(config, shard, lambda done: None)
    release_job.finish(config)
    return Release.at(config.output.uri)


def assert_the_same(config: RunConfig, whole: Release) -> None:
    """Pictures, manifest, quarantine and every record's end are those of a run that nobody disturbed."""
    release = Release.at(config.output.uri)
    assert public_images(release)[0] == public_images(whole)[0]
    assert public_images(release)[1].equals(public_images(whole)[1])
    assert ends(release) == ends(whole)
    assert len(ends(release)) == RECORDS
    assert tree(release.quarantine.path) == tree(whole.quarantine.path)
    assert not release.staging.exists()


def ends(release: Release) -> list[list[Any]]:
    return [[row[name] for name in ("record_id", "status", "reason", "output_id", "sha256")] for row in rows(release)]


# -- workers ----------------------------------------------------------------------------------------------------------

# Holds the models; for each configuration that it reads, starts a worker that has them already, and says how it ended.
NURSERY = """
import json, os, sys
import torch
from anonymizer.config import RunConfig
from flows.jobs import release as steps
torch.set_num_threads(1)
for line in sys.stdin:
    config = RunConfig.model_validate(json.loads(line))
    shards = steps.prepare(config).shards
    if not (worker := os.fork()):
        for shard in range(shards):
            steps.run_shard(config, shard, lambda done: None)
        os._exit(0)
    print(worker, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), flush=True)
"""


class Nursery:
    """Workers that are there at once."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin
        assert process.stdout
        self.orders, self.news = process.stdin, process.stdout

    def work(self, config: RunConfig, kill_after: float | None = None) -> int:
        """How a worker on this release ended, which is killed after so many seconds if it is not done by then."""
        self.orders.write(config.model_dump_json() + "\n")
        self.orders.flush()
        worker = int(self.news.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        return int(self.news.readline())


@contextmanager
def nursery() -> Iterator[Nursery]:
    environment = os.environ | {"ANONYMIZER_KEY": HEX, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", NURSERY]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as process:
        yield Nursery(process)
        process.communicate()


def test_a_worker_that_is_killed_at_fifty_random_moments_loses_nothing(
    configured: Callable[..., RunConfig], undisturbed: Release
) -> None:
    from flows.jobs import release as release_job

    chance, killed, done = random.Random(0), 0, list[RunConfig]()
    with nursery() as workers:
        assert workers.work(configured("first")) == 0
        began = time.monotonic()
        assert workers.work(configured("second")) == 0
        whole = time.monotonic() - began
        while killed < KILLS:
            config = configured(f"killed-{len(done)}")
            while (end := workers.work(config, chance.uniform(0, whole))) != 0:
                assert end == -signal.SIGKILL
                killed += 1
            done.append(config)
    for config in done:
        release_job.finish(config)
        assert_the_same(config, undisturbed)


# -- whole runs -------------------------------------------------------------------------------------------------------


def started(config: RunConfig, home: Path, **more: str) -> subprocess.Popen[str]:
    """`anonymizer run`, in a process of its own."""
    file = home.parent / f"{Path(config.output.uri).name}.json"
    file.write_text(config.model_dump_json())
    environment = without_prefect(ANONYMIZER_KEY=HEX, PREFECT_HOME=str(home), OMP_NUM_THREADS="1", **more)
    command = [sys.executable, "-m", "flows.cli", "run", str(file), "--quiet"]
    return subprocess.Popen(
        command, stdout=-1, stderr=subprocess.STDOUT, text=True, env=environment, preexec_fn=hears_interrupts
    )


def hears_interrupts() -> None:
    """Also where whoever started these tests does not: what is ignored is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def committed(config: RunConfig) -> int:
    ledger = Path(config.output.uri, "restricted", "ledger")
    return len(list(ledger.glob("*.parquet"))) if ledger.exists() else 0


def finished(config: RunConfig, home: Path, **more: str) -> None:
    with started(config, home, **more) as run:
        said, _ = run.communicate(timeout=240)
    assert run.returncode == 0, said


def test_a_controller_that_is_killed_anywhere_is_finished_by_the_same_command(
    configured: Callable[..., RunConfig], undisturbed: Release, tmp_path: Path
) -> None:
    config, chance, killed = configured("out"), random.Random(1), 0
    for seen in (0, 2, 4):  # shards committed before it is killed, a moment after
        with started(config, tmp_path / "home") as run:
            assert wait_for(lambda seen=seen: committed(config) >= seen or run.poll() is not None, 120)
            time.sleep(chance.uniform(0, 0.3))
            run.kill()
        killed += run.returncode == -signal.SIGKILL
    assert killed == 3
    finished(config, tmp_path / "home")
    assert_the_same(config, undisturbed)


def test_a_run_that_is_interrupted_says_how_to_finish_it(
    configured: Callable[..., RunConfig], undisturbed: Release, tmp_path: Path
) -> None:
    config = configured("out", shard_size=1)
    with started(config, tmp_path / "home") as run:
        assert wait_for(lambda: committed(config) >= 1, 120)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert said.splitlines() == ["stopped: run the same command again to finish what is left"]
    assert 1 <= committed(config) < RECORDS
    finished(config, tmp_path / "home")
    assert_the_same(config, undisturbed)


@contextmanager
def prefect_server(home: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server as a user starts it, with what it was told before."""
    environment = without_prefect(
        PREFECT_HOME=str(home),
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_SERVER_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{home / 'server.db'}",
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=-3, stderr=-3, start_new_session=True) as process:
        try:
            assert wait_for(lambda: answers(f"http://127.0.0.1:{port}/api"), 120)
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    import socket

    with socket.socket() as any_one:
        any_one.bind(("127.0.0.1", 0))
        return int(any_one.getsockname()[1])


def test_a_run_outlives_a_prefect_server_that_is_killed_and_started_again(
    configured: Callable[..., RunConfig], undisturbed: Release, tmp_path: Path
) -> None:
    config, port, home = configured("out", shard_size=1), free_port(), tmp_path / "home"
    home.mkdir()
    url = {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    with prefect_server(home, port):
        run = started(config, home, **url)
        assert wait_for(lambda: committed(config) >= 2 or run.poll() is not None, 120)
    assert committed(config) < RECORDS
    time.sleep(2)
    with prefect_server(home, port), run:
        said, _ = run.communicate(timeout=240)
        assert run.returncode == 0, said
    assert_the_same(config, undisturbed)
