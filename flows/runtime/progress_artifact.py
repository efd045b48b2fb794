"""The share of the work that is done, as a progress artifact of the flow run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from threading import Event, Thread
from typing import cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact

from flows.jobs.progress import ProgressReporter

UPDATE_SECONDS = 5.0  # between two updates while it grows
HEARTBEAT_SECONDS = 20.0  # between two updates in any case


class ProgressArtifact(ProgressReporter):
    """Shown on the page of the flow run; a controller sees by it that a range of shards gets on."""

    def __init__(self, done: int, total: int, description: str, key: str | None = None) -> None:
        self.done, self.total, self.updated_at = done, total, time.monotonic()
        self.artifact_id = cast(UUID, create_progress_artifact(self.percent, key=key, description=description))

    @property
    def percent(self) -> float:
        return 100.0 * self.done / self.total if self.total else 100.0

    def advance(self, records: int) -> None:
        self.done += records
        if self.done == self.total or time.monotonic() - self.updated_at > UPDATE_SECONDS:
            self.update()

    def update(self) -> None:
        self.updated_at = time.monotonic()
        with suppress(httpx.HTTPError):  # a server that is away gets the next update
            update_progress_artifact(self.artifact_id, self.percent)

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Update the artifact every so often, changed or not, as a sign that this process lives."""
        stop, context = Event(), copy_context()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                self.update()

        thread = Thread(target=context.run, args=(beat,), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
