"""The temporary Prefect server: quiet, without telemetry or the user's keys, and gone with its run."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from anonymizer.errors import AnonymizerError, ConfigError
from flows.runtime import prefect_settings, server_database, temporary_server
from tests.support.environment import without_prefect
from tests.support.http_listener import Quiet, listening
from tests.support.prefect_database import answers, wait_for
from tests.support.releases import (
    tree,
)


def test_telemetry_and_logging_to_the_server_are_off() -> None:
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


def in_new_process(code: str, home: Path, **more: str) -> str:
    environment = {n: v for n, v in without_prefect().items() if n not in prefect_settings.DEFAULTS}
    environment |= {"PREFECT_HOME": str(home), "TMPDIR": str(home), **more}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
    return done.stdout.strip()


@contextmanager
def healthy_server() -> Iterator[str]:
    """The address of a server that says it is well, and knows nothing else."""

    class Well(Quiet):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true")

    with listening(Well) as url:
        yield f"{url}/api"


def test_a_server_that_a_profile_names_is_used_and_its_settings_left_alone(tmp_path: Path) -> None:
    with healthy_server() as url:
        (tmp_path / "profiles.toml").write_text(f'{PROFILE}PREFECT_API_URL = "{url}"\n')
        printed = in_new_process(SETTINGS, tmp_path)
        assert printed == f"{url} INFO True {sorted(prefect_settings.DEFAULTS)}"


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    away = {PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with (
        temporary_settings(away),
        pytest.raises(ConfigError, match=r"^PREFECT_API_URL: no Prefect server answers there \(ConnectError\): start"),
        temporary_server.ensure_server(),
    ):
        pytest.fail("no server answers there")


@pytest.mark.slow
def test_what_a_profile_sets_holds_with_a_temporary_server_too(tmp_path: Path) -> None:
    (tmp_path / "profiles.toml").write_text(f'{PROFILE}PREFECT_LOGGING_LEVEL = "ERROR"\n')
    printed = in_new_process(SETTINGS, tmp_path).split(" ", 3)
    assert printed[0].startswith("http://127.0.0.1:")
    assert printed[1:3] == ["ERROR", "False"]
    assert "PREFECT_LOGGING_LEVEL" not in printed[3]


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
    environment = without_prefect(PREFECT_HOME=str(tmp_path), TMPDIR=str(tmp_path), SECRET="planted-secret")
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
    assert in_new_process(code, tmp_path, SECRET="planted-secret") == "children 1"


OTHERS = """
import json, os, urllib.error, urllib.request
from flows.runtime import temporary_server as server
with server.ensure_server("SECRET") as ready:
    ready()
    for path in ("flows/filter", "flow_runs/filter", "admin/settings"):
        request = urllib.request.Request(os.environ["PREFECT_API_URL"] + "/" + path, None if "admin" in path else b"{}")
        request.add_header("Content-Type", "application/json")
        try:
            print(path, urllib.request.urlopen(request).read())
        except urllib.error.HTTPError as error:
            print(path, error.code)
"""


@pytest.mark.slow
def test_others_on_this_machine_learn_nothing_from_the_server(tmp_path: Path) -> None:
    printed = in_new_process(OTHERS, tmp_path).splitlines()
    assert printed == ["flows/filter 401", "flow_runs/filter 401", "admin/settings 401"]


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
    for _ in range(2):  # the second begins with the template of the first
        in_new_process(RUN, tmp_path)
        files = tree(tmp_path)
        assert files["prefect.db"] == b"the user's own"
        (empty,) = (name for name in files if name.startswith("anonymizer-empty-"))
        assert set(files) <= {"prefect.db", "memo_store.toml", empty}
        assert not [name for name, data in files.items() if b"planted" in data]
    with closing(sqlite3.connect(tmp_path / empty)) as template:
        names = [name for (name,) in template.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        filled = [name for name in names if template.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]]
    assert filled == ["alembic_version"]


def test_a_database_that_the_user_names_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a fixture of these tests names one, to read what Prefect stores."""
    monkeypatch.setattr(
        temporary_server, "SERVER_SCRIPT", "import os; print(os.environ['PREFECT_SERVER_DATABASE_CONNECTION_URL'])"
    )
    monkeypatch.setenv(server_database.URL_SETTING, "sqlite+aiosqlite:////mine.db")
    with open(tmp_path / "log", "w+b") as log, temporary_server._server_process("KEY", None, log) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"sqlite+aiosqlite:////mine.db\n"


@pytest.mark.parametrize(
    ("url", "moves"),
    [
        ("sqlite+aiosqlite:///mine.db", True),
        ("sqlite+aiosqlite:///./mine.db?timeout=5", True),
        ("sqlite+aiosqlite:////mine.db", False),
        ("sqlite+aiosqlite:///file::memory:?cache=shared", False),
        ("sqlite+aiosqlite:///:memory:", False),
        ("postgresql+asyncpg:///prefect", False),
        ("", False),
    ],
)
def test_a_database_is_the_same_one_from_the_servers_own_folder(url: str, moves: bool) -> None:
    expected = f"sqlite+aiosqlite:///{Path.cwd()}/mine.db" if moves else url
    assert server_database.absolute_url(url).partition("?timeout")[0] == expected


def test_a_home_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").touch()
    one = server_database.Database(tmp_path / "prefect.db", tmp_path / "no/such/folder/empty.db")
    one.save_template()
    assert not one.template.exists()
