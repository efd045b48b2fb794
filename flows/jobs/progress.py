"""Progress of a job: counts that this process reports to the console or to Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class ProgressReporter(Protocol):
    def begin(self, records: int, done: int) -> None:
        """Start a run of ``records``, ``done`` of which were finished earlier."""
        ...

    def advance(self, records: int) -> None: ...

    def stage(self, name: str) -> None:
        """Enter another stage of the run."""
        ...


class NoProgress:
    def begin(self, records: int, done: int) -> None: ...

    def advance(self, records: int) -> None: ...

    def stage(self, name: str) -> None: ...


NO_PROGRESS: ProgressReporter = NoProgress()
_current: ProgressReporter = NO_PROGRESS


def current_progress() -> ProgressReporter:
    return _current


@contextmanager
def report_progress_to(reporter: ProgressReporter) -> Iterator[None]:
    """Send the progress of runs in this process to ``reporter``; global, because tasks run in threads of their own."""
    global _current
    previous, _current = _current, reporter
    try:
        yield
    finally:
        _current = previous
