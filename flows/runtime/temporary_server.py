"""A temporary Prefect server for the length of one run: quick, quiet, without telemetry, gone with the run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from secrets import token_urlsafe
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

import httpx

from anonymizer.errors import AnonymizerError, ConfigError
from flows.runtime import prefect_settings, server_database
from flows.runtime.server_database import Database

API_URL_SETTING = "PREFECT_API_URL"
PASSWORD_SETTINGS = ("PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_AUTH_STRING")  # the server's, and its clients'
STARTUP_SECONDS = 180

# Binds before it imports, so that the port is known at once. Ends when its standard input closes, however its parent
# ended, and removes the folders that it was given.
SERVER_SCRIPT = """
import os, shutil, sys, threading
import uvicorn
app = "prefect.server.api.server:create_app"
config = uvicorn.Config(app, factory=True, host="127.0.0.1", port=0, log_level="critical")
listener = config.bind_socket()
print(listener.getsockname()[1], flush=True)
os.dup2(2, 1)
def leave():
    sys.stdin.buffer.read()
    for folder in sys.argv[1:]:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
threading.Thread(target=leave, daemon=True).start()
uvicorn.Server(config).run(sockets=[listener])
"""


@contextmanager
def ensure_server(*secrets: str) -> Iterator[Callable[[], None]]:
    """Start a temporary server, unless Prefect is set up to use another; yield a function that waits until it answers.

    It does not get the environment variables ``secrets``. Prefect is imported here and not earlier.
    """
    prefect_settings.apply_defaults()
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        _check_reachable()
        yield lambda: None
        return
    chosen = prefect_settings.user_settings()
    unset = {name: value for name, value in prefect_settings.TEMPORARY_SERVER.items() if name not in chosen}
    # Others on this machine reach its port, too: they do not know this.
    unset |= dict.fromkeys(PASSWORD_SETTINGS, f"anonymizer:{token_urlsafe(24)}")
    own = nullcontext(None) if server_database.URL_SETTING in chosen else server_database.temporary_database()
    # Prefect would start a server of its own only when the flow begins, after importing all of it into this process.
    with (
        prefect_settings.override_settings(unset),
        own as database,
        TemporaryFile() as log,
        _server_process(secrets, database, log) as process,
    ):
        port = int((process.stdout or sys.stdin).readline() or b"0")  # type: ignore[arg-type]
        url = f"http://127.0.0.1:{port}/api"

        def wait_until_ready() -> None:
            _wait_until_ready(process, url, log)
            if database:
                database.save_template()

        with prefect_settings.override_settings({API_URL_SETTING: url}):
            yield wait_until_ready
            _drain_events()


def _check_reachable() -> None:
    """Raise ConfigError unless the server that Prefect is set up to use answers."""
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except Exception as error:  # of httpx, or Prefect's own
        problem = error
    if problem is not None:
        raise ConfigError(
            f"{API_URL_SETTING}: no Prefect server answers there ({type(problem).__name__}): start it, or unset "
            f"{API_URL_SETTING} to have one for the length of a run"
        )


@contextmanager
def _server_process(
    secrets: Sequence[str], database: Database | None, log: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: value for name, value in os.environ.items() if name not in secrets}
    environment |= {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    url = database.url if database else server_database.absolute_url(environment.get(server_database.URL_SETTING, ""))
    environment |= {server_database.URL_SETTING: url} if url else {}
    with TemporaryDirectory(prefix="anonymizer-prefect-", ignore_cleanup_errors=True) as empty:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER_SCRIPT, empty, *([str(database.path.parent)] if database else [])],
            env=environment,
            cwd=empty,  # Prefect's migrations put the working directory first on the path
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us: the server is needed to write down how the run ended
        )
        with process:  # closes the pipes and waits
            try:
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    with httpx.Client(trust_env=False, timeout=5) as client:  # no proxy for an address on this machine
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(f"{url}/health").is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
    log.seek(0)
    last = log.read().decode("utf-8", "replace").strip().splitlines()[-1:]
    raise AnonymizerError(
        f"prefect: the temporary server did not start ({last[0] if last else 'no answer'}): "
        "run `prefect server start` and set PREFECT_API_URL"
    )


def _drain_events() -> None:
    """Send what Prefect still has to report, while the server takes it."""
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=10)
