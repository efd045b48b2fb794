"""A real server that speaks S3 (moto's), and a way to it that can be made to fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

BUCKET = "bucket"


class OneAtATime:
    """moto looks at a condition and puts in two steps; S3 does it in one, and so does this."""

    def __init__(self) -> None:
        self.app, self.lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def __call__(self, *arguments: Any) -> Any:
        with self.lock:
            return self.app(*arguments)


@contextmanager
def serving() -> Iterator[str]:
    """The address of a server with one empty bucket."""
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


def environment(url: str) -> dict[str, str]:
    """What a user sets to reach it."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret-of-someone",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
