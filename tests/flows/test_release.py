"""The release flow on a temporary Prefect server: what it returns, what it retries, what it writes down."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from anonymizer.config import RunConfig
from anonymizer.errors import AnonymizerError, ConfigError, IntegrityError, OutputError, ShardError, StepError
from anonymizer.release import ledger
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.jobs import models, redaction
from flows.jobs import release as release_job
from flows.jobs.progress import report_progress_to
from flows.runtime import prefect_settings, server_database, temporary_server
from tests.support.http_listener import Quiet, listening
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.prefect_database import answers, query, wait_for
from tests.support.releases import (
    GARBAGE,
    HEX,
    Broken,
    PlainScorer,
    folder_of,
    handed_out,
    people,
    rows,
    run,
    settings,
    tree,
)


@pytest.fixture
def flow(prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the flow with a model and scores in closed form, under a key."""
    from prefect import tags

    from flows.release import TAGS, release

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)

    def run_it(config: RunConfig, backbone: Any = None, scorer: Any = None) -> dict[str, Any]:
        backbone, scorer = backbone or IdealGaussian(), scorer or PlainScorer()
        monkeypatch.setattr(release_job, "backbone_of", lambda model: backbone)
        monkeypatch.setattr(release_job, "scorer_of", lambda metrics, device: scorer)
        with tags(*TAGS):
            return release(config.model_dump(mode="json"))

    return run_it


class Failing(IdealGaussian):
    """Fails for the shards whose turn it is, in order of the attempts."""

    def __init__(self, *attempts: bool) -> None:
        super().__init__()
        self.attempts = list(attempts)

    def encode(self, images: Any) -> Any:
        if self.attempts and self.attempts.pop(0):
            raise RuntimeError("the model is unwell")
        return images


class Watching:
    def __init__(self) -> None:
        self.total, self.done, self.stages = 0, 0, list[str]()

    def begin(self, records: int, done: int) -> None:
        self.total = records

    def advance(self, records: int) -> None:
        self.done += records

    def stage(self, name: str) -> None:
        self.stages.append(name)


def test_the_flow_makes_the_same_release_as_the_functions_without_it(tmp_path: Path, flow: Any) -> None:
    source = people(tmp_path / "in", 5)
    folder_of(source, {"bad.png": GARBAGE})
    watching = Watching()
    with report_progress_to(watching):
        summary = flow(settings(source, tmp_path / "out"))
    counts = {name: summary[name] for name in ("read", "released", "quarantined", "failed", "shards", "reasons")}
    assert counts == {
        "read": 6, "released": 5, "quarantined": 0, "failed": 1, "shards": 3, "reasons": {"not_an_image": 1},
    }  # fmt: skip
    release, plain = Release.at(str(tmp_path / "out")), run(settings(source, tmp_path / "plain"))
    assert handed_out(release)[0] == handed_out(plain)[0]
    assert handed_out(release)[1].equals(handed_out(plain)[1])
    assert release.is_complete
    assert (watching.total, watching.done) == (6, 6)
    assert watching.stages == ["planning", "anonymising", "assembling"]


def test_progress_and_summary_are_artifacts_and_runs_are_tagged(tmp_path: Path, flow: Any, prefect_home: Path) -> None:
    config = settings(people(tmp_path / "in", 3), tmp_path / "out")
    flow(config)
    (run_id,) = [i for i, p in query(prefect_home, "SELECT id, parameters FROM flow_run") if config.output.uri in p]
    found = dict(query(prefect_home, "SELECT key, data FROM artifact WHERE flow_run_id = ?", run_id))
    assert float(found["release-progress"]) == 100
    assert "| released | 3 |" in json.loads(found["release-summary"])
    assert "2 shards." in json.loads(found["release-summary"])

    def names() -> set[str]:
        return {name for (name,) in query(prefect_home, "SELECT name FROM task_run WHERE flow_run_id = ?", run_id)}

    assert wait_for(lambda: {"shard-0", "shard-1"} <= names())
    tags = query(prefect_home, "SELECT tags FROM task_run WHERE flow_run_id = ? AND name = 'shard-0'", run_id)
    assert set(json.loads(tags[0][0])) >= {"anonymizer", "release", "shard"}
    ((own,),) = query(prefect_home, "SELECT tags FROM flow_run WHERE id = ?", run_id)
    assert set(json.loads(own)) == {"anonymizer", "release"}


def test_tags_of_whoever_starts_a_run_stay_on_it(tmp_path: Path, flow: Any, prefect_home: Path) -> None:
    from prefect import tags

    config = settings(people(tmp_path / "in", 1), tmp_path / "out")
    with tags("monthly"):
        flow(config)
    (own,) = [t for t, p in query(prefect_home, "SELECT tags, parameters FROM flow_run") if config.output.uri in p]
    assert set(json.loads(own)) == {"anonymizer", "release", "monthly"}


def test_models_are_loaded_in_a_thread_that_ends_so_that_shards_have_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    monkeypatch.setattr(models, "load_backbone", lambda model: threads.append(threading.current_thread()))
    models.backbone_of.__wrapped__(RunConfig.model_validate({"source": {"uri": "a"}, "output": {"uri": "b"}}).model)
    assert threads and threads[0] is not threading.main_thread() and not threads[0].is_alive()


def test_a_second_run_on_one_output_is_refused_and_spoils_nothing(tmp_path: Path, flow: Any) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out")
    (tmp_path / "out" / "restricted").mkdir(parents=True)
    lock = tmp_path / "out" / "restricted" / ".lock"
    holder = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match="another run is working on it"):
            flow(config)
        assert not (tmp_path / "out" / "restricted" / "plan.json").exists()
    assert flow(config)["released"] == 2


def test_a_shard_that_fails_once_is_tried_again(tmp_path: Path, flow: Any) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out")
    assert flow(config, Failing(True, False))["released"] == 2
    assert "the model is unwell" in (tmp_path / "out/restricted/errors/shard-00000.txt").read_text()


def test_other_shards_go_on_when_one_fails_and_a_second_run_finishes(tmp_path: Path, flow: Any) -> None:
    config = settings(people(tmp_path / "in", 6), tmp_path / "out", "run.retries=0")
    with pytest.raises(ShardError) as caught:
        flow(config, Failing(False, True, False))
    assert str(caught.value) == (
        "1 of 3 shards failed: shard 1: failed, nothing of it was committed: see restricted/errors/shard-00001.txt: "
        "run again to finish them"
    )
    release = Release.at(config.output.uri)
    assert [ledger.read_shard(release, shard) is not None for shard in range(3)] == [True, False, True]
    assert not release.public.exists()
    first = IdealGaussian()
    assert flow(config, first)["released"] == 6
    assert len(first.calls) == config.boomerang.steps  # one shard of one batch, and not the others again
    assert handed_out(release)[0] == handed_out(run(settings(tmp_path / "in", tmp_path / "plain")))[0]


def test_a_disk_that_fills_up_is_named_and_the_run_resumed(
    tmp_path: Path, flow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", "run.retries=0")
    original = StoragePath.write_uncommitted

    def full(place: StoragePath, data: bytes) -> None:
        if "staging" in place.path or "errors" in place.path:
            raise OutputError("output.uri: cannot be written (No space left on device): check space and access")
        original(place, data)

    with monkeypatch.context() as patch, pytest.raises(OutputError, match="No space left on device"):
        patch.setattr(StoragePath, "write_uncommitted", full)
        flow(config)
    assert flow(config)["released"] == 2


@pytest.mark.parametrize("step", ["plan", "assemble"])
def test_what_goes_wrong_in_any_step_is_kept_from_the_scheduler(
    tmp_path: Path, flow: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def leaking(*args: Any) -> None:
        raise ValueError("/home/alice/patient 7.png")

    monkeypatch.setattr(
        "anonymizer.release.plan.write_or_resume" if step == "plan" else "anonymizer.release.assemble.assemble", leaking
    )
    with pytest.raises(StepError) as caught:
        flow(settings(people(tmp_path / "in", 2), tmp_path / "out"))
    assert f"see restricted/errors/{step}.txt" in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert "alice" not in repr(error)
        error = error.__cause__ or error.__context__
    assert "alice" in (tmp_path / f"out/restricted/errors/{step}.txt").read_text()


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


def test_nobody_is_told_about_runs() -> None:
    assert prefect_settings.DEFAULTS["DO_NOT_TRACK"] == "1"
    assert prefect_settings.TEMPORARY_SERVER["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert prefect_settings.TEMPORARY_SERVER["PREFECT_LOGGING_TO_API_ENABLED"] == "false"


def test_what_the_user_has_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in prefect_settings.DEFAULTS | prefect_settings.TEMPORARY_SERVER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(temporary_server.API_URL_SETTING, "http://prefect.example/api")
    monkeypatch.setenv("DO_NOT_TRACK", "0")
    prefect_settings.apply_defaults()
    assert os.environ["DO_NOT_TRACK"] == "0"
    assert not [name for name in prefect_settings.TEMPORARY_SERVER if name in os.environ]


PROFILE = """
active = "work"
[profiles.work]
"""
SETTINGS = """
import os
before = set(os.environ)
from flows.runtime import temporary_server as server
with server.ensure_server("SECRET") as ready:
    ready()
    from prefect.settings import get_current_settings as now
    print(now().api.url, now().logging.level, now().logging.to_api.enabled, sorted(set(os.environ) - before))
"""


def in_a_process_of_its_own(code: str, home: Path, **more: str) -> str:
    environment = {
        n: v for n, v in os.environ.items() if not n.startswith("PREFECT") and n not in prefect_settings.DEFAULTS
    }
    environment |= {"PREFECT_HOME": str(home), "TMPDIR": str(home), **more}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


@contextmanager
def healthy() -> Iterator[str]:
    """The address of a server that says it is well, and knows nothing else."""

    class Well(Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

    with listening(Well) as url:
        yield f"{url}/api"


def test_a_server_that_a_profile_names_is_used_and_its_settings_left_alone(tmp_path: Path) -> None:
    with healthy() as url:
        (tmp_path / "profiles.toml").write_text(f'{PROFILE}PREFECT_API_URL = "{url}"\n')
        told = in_a_process_of_its_own(SETTINGS, tmp_path)
        assert told == f"{url} INFO True {sorted(prefect_settings.DEFAULTS)}"


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    away = {PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with (
        temporary_settings(away),
        pytest.raises(ConfigError, match=r"^PREFECT_API_URL: no Prefect server answers there \(ConnectError\): start"),
        temporary_server.ensure_server(),
    ):
        pytest.fail("nobody is there")


@pytest.mark.slow
def test_what_a_profile_sets_holds_with_a_temporary_server_too(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text(f'{PROFILE}PREFECT_LOGGING_LEVEL = "ERROR"\n')
    told = in_a_process_of_its_own(SETTINGS, tmp_path).split(" ", 3)
    assert told[0].startswith("http://127.0.0.1:")
    assert told[1:3] == ["ERROR", "False"]
    assert "PREFECT_LOGGING_LEVEL" not in told[3]


def test_what_broke_before_is_read_from_the_ledger(tmp_path: Path, flow: Any) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", "run.retries=0")
    with pytest.raises(ShardError):
        flow(config, Broken())
    flow(config)
    assert [row["status"] for row in rows(Release.at(config.output.uri))] == ["released"] * 2


# -- the temporary server ---------------------------------------------------------------------------------------------


def test_a_server_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(temporary_server, "SERVER_SCRIPT", "print(1, flush=True); raise SystemExit('no luck')")
    with open(tmp_path / "log", "w+b") as log, temporary_server._server_process("KEY", None, log) as process:
        process.wait(20)
        with pytest.raises(AnonymizerError, match=r"did not start \(no luck\): run `prefect server start`"):
            temporary_server._wait_until_ready(process, "http://127.0.0.1:1/api", log)


HOLD = """
import os, sys, time
from flows.runtime import temporary_server as server
with server.ensure_server("SECRET") as ready:
    ready()
    print(os.environ["PREFECT_API_URL"], flush=True)
    time.sleep(600)
"""


@pytest.mark.fault
def test_the_server_goes_when_its_run_is_killed(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment |= {"PREFECT_HOME": str(tmp_path), "TMPDIR": str(tmp_path), "SECRET": "planted-secret"}
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        assert answers(url)
        assert list(tmp_path.glob("anonymizer-prefect-*"))
        child.send_signal(signal.SIGKILL)
    assert wait_for(lambda: not answers(url))
    assert wait_for(lambda: not list(tmp_path.glob("anonymizer-prefect-*")))


@pytest.mark.slow
def test_the_server_never_sees_the_key(tmp_path: Path) -> None:
    """Linux shows a process's environment as a file."""
    code = (
        "import os, sys; from flows.runtime import temporary_server as server\n"
        "with server.ensure_server('SECRET') as ready:\n"
        "    import subprocess\n"
        "    ready()\n"
        "    children = open(f'/proc/self/task/{os.getpid()}/children').read().split()\n"
        "    for pid in children:\n"
        "        assert b'planted-secret' not in open(f'/proc/{pid}/environ', 'rb').read()\n"
        "    print('children', len(children))\n"
    )
    assert in_a_process_of_its_own(code, tmp_path, SECRET="planted-secret") == "children 1"


RUN = """
from flows.runtime import temporary_server as server
with server.ensure_server("SECRET") as ready:
    ready()
    from prefect import flow
    @flow(name="planted-flow")
    def one(uri): return 1
    one("planted-address")
"""


@pytest.mark.slow
def test_nothing_of_a_run_stays_in_the_users_prefect(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_bytes(b"the user's own")
    for _ in range(2):  # the second begins with what the first has kept
        in_a_process_of_its_own(RUN, tmp_path)
        files = tree(tmp_path)
        assert files["prefect.db"] == b"the user's own"
        (empty,) = (name for name in files if name.startswith("anonymizer-empty-"))
        assert set(files) <= {"prefect.db", "memo_store.toml", empty}
        assert not [name for name, data in files.items() if b"planted" in data]
    with closing(sqlite3.connect(tmp_path / empty)) as kept:
        names = [name for (name,) in kept.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        filled = [name for name in names if kept.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]]
    assert filled == ["alembic_version"]


def test_a_database_that_the_user_names_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture names one; so does whoever wants to keep what Prefect is told."""
    monkeypatch.setattr(
        temporary_server, "SERVER_SCRIPT", "import os; print(os.environ['PREFECT_SERVER_DATABASE_CONNECTION_URL'])"
    )
    monkeypatch.setenv(server_database.URL_SETTING, "sqlite+aiosqlite:////mine.db")
    with open(tmp_path / "log", "w+b") as log, temporary_server._server_process("KEY", None, log) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"sqlite+aiosqlite:////mine.db\n"


def test_a_home_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").touch()
    one = server_database.Database(tmp_path / "prefect.db", tmp_path / "no/such/folder/empty.db")
    one.save_template()
    assert not one.template.exists()
