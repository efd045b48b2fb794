"""A Prefect server and workers as an operator starts them: from the command line, on SQLite or PostgreSQL."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.http_listener import Quiet, listening
from tests.support.prefect_database import answers

PREFECT = [sys.executable, "-m", "prefect"]
PASSWORD = "anonymizer:one that every client of these tests has"
IMPATIENT = {
    "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "5",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
}


@dataclass
class Site:
    """Where everything of it lies, how to reach it, and what it has written down."""

    folder: Path
    url: str
    written: Callable[[], bytes]  # all that the database holds
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of an operator: no key, and no settings of the one who runs the tests."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "ANONYMIZER"))}
        clean |= {"PREFECT_HOME": str(self.folder / "home"), "PREFECT_API_URL": self.url, "DO_NOT_TRACK": "1"}
        clean |= {"PREFECT_API_AUTH_STRING": PASSWORD}
        return (
            clean
            | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
            | IMPATIENT
            | more
        )

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment(), cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def prefect(self, *words: str) -> str:
        return self.run(*PREFECT, *words)

    def ask(self, path: str, body: Any = None) -> Any:
        """What the server answers: a GET, or a POST of JSON; asked again where it is too busy, as Prefect does.

        A POST may so be done twice: ask for what does no harm then.
        """
        data = None if body is None else json.dumps(body).encode()
        login = base64.b64encode(PASSWORD.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        for last in (False,) * 9 + (True,):
            try:
                with urllib.request.urlopen(request, timeout=15) as answer:
                    return json.load(answer)
            except (urllib.error.HTTPError, TimeoutError) as error:
                if last or getattr(error, "code", 503) != 503:
                    raise
                time.sleep(1)

    def flow_runs(self, flow: str) -> list[dict[str, Any]]:
        """The first one first."""
        body = {"flows": {"name": {"any_": [flow]}}, "sort": "EXPECTED_START_TIME_ASC"}
        found: list[dict[str, Any]] = self.ask("flow_runs/filter", body)
        return found

    def work(self, name: str, pool: str, **secrets: str) -> None:
        """Start a worker, which has the keys that its flow runs need; a pinned one where it has ANONYMIZER_POLICY."""
        command = [*PREFECT, "worker", "start", "--pool", pool, "--type", "process", "--name", name, "--limit", "1"]
        if "ANONYMIZER_POLICY" in secrets:
            command = [sys.executable, "-P", "-m", "flows.cli", "worker", pool, "--name", name]
        with open(self.folder / f"{name}.log", "wb") as log:
            self.workers[name] = subprocess.Popen(
                command, env=self.environment(**secrets), cwd=self.folder, stdout=log, stderr=log
            )

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def stop(self, name: str) -> None:
        end(self.workers.pop(name))


def wait(what: Callable[[], Any], seconds: float = 300) -> Any:
    """The first answer that is one."""
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return found


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running(folder: Path, database: str) -> Iterator[Site]:
    """A server, gone with its workers at the end."""
    with ExitStack() as stack:
        more, written = {"sqlite": sqlite, "postgresql": lambda f: stack.enter_context(postgresql())}[database](folder)
        port = free_port()
        site = Site(folder, f"http://127.0.0.1:{port}/api", written)
        (folder / "home").mkdir()
        command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui"]
        with open(folder / "server.log", "wb") as log:
            own = site.environment(**more, PREFECT_SERVER_API_AUTH_STRING=PASSWORD)
            server = subprocess.Popen(command, env=own, cwd=folder, stdout=log, stderr=log)
        stack.callback(end, server)
        assert wait(lambda: server.poll() is not None or answers(site.url)), "no server"
        assert server.poll() is None, (folder / "server.log").read_text()
        try:
            yield site
        finally:
            for name in list(site.workers):
                site.stop(name)


def sqlite(folder: Path) -> tuple[Mapping[str, str], Callable[[], bytes]]:
    return {}, lambda: b"\n".join(path.read_bytes() for path in sorted((folder / "home").glob("prefect.db*")))


@contextmanager
def postgresql() -> Iterator[tuple[Mapping[str, str], Callable[[], bytes]]]:
    """A database of its own, as the user that Debian's package makes; skips where that is missing."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    programs, port = found[-1].parent, free_port()
    as_user: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="anonymizer-postgresql-"))
    shutil.chown(folder, **as_user) if as_user else None
    options = f"-c listen_addresses=127.0.0.1 -p {port} -c unix_socket_directories={folder} -c fsync=off"

    def call(program: str, *words: str) -> bytes:
        return subprocess.run(
            [str(programs / program), *words], cwd=folder, check=True, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, timeout=120, **as_user,
        ).stdout  # fmt: skip

    data = str(folder / "data")
    try:
        try:
            call("initdb", "-D", data, "-U", "prefect", "--auth=trust", "--no-sync")
            # Its output goes to a file: a pipe would stay open for as long as the server runs.
            call("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
        except (OSError, subprocess.SubprocessError, KeyError) as error:
            pytest.skip(f"PostgreSQL does not start here: {error}")
        where = ["-h", "127.0.0.1", "-p", str(port), "-U", "prefect"]
        url = f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        yield (
            {"PREFECT_SERVER_DATABASE_CONNECTION_URL": url},
            lambda: call("pg_dump", *where, "--data-only", "--inserts", "postgres"),
        )
        call("pg_ctl", "-D", data, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def receive_alerts() -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a webhook and the alerts that it receives."""
    heard: list[str] = []

    class Listener(Quiet):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

    with listening(Listener) as url:
        yield f"{url}/", heard
