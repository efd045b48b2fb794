"""An S3 server (moto's), a proxy that makes requests to it fail, and helpers for tests with it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from anonymizer.storage import filesystem
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath

BUCKET = "bucket"


class OneAtATime:
    """Serialise requests: moto checks a condition and puts in two steps, S3 in one."""

    def __init__(self) -> None:
        self.app, self.lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        with self.lock:
            return self.app(*arguments)


@contextmanager
def serving() -> Iterator[str]:
    """Yield the address of a server."""
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, OneAtATime(), threaded=True, request_handler=MotoRequestHandler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def checking_keys(url: str) -> Iterator[None]:
    """Make the server reject all access keys."""
    _post(f"{url}/moto-api/reset-auth", b"0")
    try:
        yield
    finally:
        _post(f"{url}/moto-api/reset-auth", b"inf")


def _post(url: str, data: bytes) -> None:
    with urlopen(Request(url, data, {"Content-Type": "text/plain"}, method="POST")):
        pass


def environment(url: str) -> dict[str, str]:
    """Return the environment variables with which a user reaches the server."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret-of-someone",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Unreliable(ThreadingHTTPServer):
    """A proxy in which one of ``every`` requests fails: with 500, with 503, by a connection that is cut before the
    request is forwarded, or by one that is cut after it, so that the response is lost."""

    daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __init__(self, url: str, every: int = 10) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behind, self.every = url.removeprefix("http://"), every
        self.count, self.failed, self.sent, self.lock = 0, 0, 0, threading.Lock()
        self.faults: tuple[str, ...] = ("500", "503", "cut", "lost")

    def fault(self) -> str | None:
        with self.lock:
            self.count += 1
            if self.count % self.every:
                return None
            self.failed += 1
            return self.faults[self.failed % len(self.faults)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Unreliable

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault()
        if fault in ("500", "503"):
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if fault == "cut":
            return self._cut()
        behind = HTTPConnection(self.server.behind)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        data = answer.read()
        behind.close()
        if fault == "lost":
            return self._cut()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.server.sent += len(data)
        self.wfile.write(data)

    def _cut(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@contextmanager
def unreliable(url: str, every: int = 10) -> Iterator[Unreliable]:
    """Yield a proxy to the server in which requests fail."""
    proxy = Unreliable(url, every)
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()


def reach(monkeypatch: pytest.MonkeyPatch, url: str) -> Any:
    """Return the file system of the server at ``url``, which the environment names from here on."""
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)
    filesystem.open_fs("s3://")[0].clear_instance_cache()
    return filesystem.open_fs("s3://")[0]


def upload(folder: Path, uri: str) -> str:
    for file in folder.rglob("*"):
        if file.is_file():
            (StoragePath.from_uri(uri) / str(file.relative_to(folder))).write_uncommitted(file.read_bytes())
    return uri


def release_images(release: Release) -> dict[str, bytes]:
    return {name: (release.public / name).read() for name in release.public.list_files() if name.startswith("images/")}


def together(work: Callable[[int], Any], count: int) -> list[Any]:
    """Return the results of ``work(number)`` in concurrent threads."""
    results: list[Any] = [None] * count
    ready = threading.Barrier(count)

    def one(number: int) -> None:
        ready.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


async def delete_nothing(self: Any, paths: list[str], **more: Any) -> list[str]:
    return []
