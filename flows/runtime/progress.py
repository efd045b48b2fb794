"""Where a run's progress goes: to whoever watches this process. Counts only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class ProgressReporter(Protocol):
    def begin(self, records: int, done: int) -> None:
        """A run of ``records`` starts, ``done`` of which were finished earlier."""
        ...

    def advance(self, records: int) -> None: ...

    def stage(self, name: str) -> None:
        """The run enters another stage."""
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
    """Progress of runs in this process goes to ``new``. Tasks run in threads, so this is one place for all of them."""
    global _current
    old, _current = _current, reporter
    try:
        yield
    finally:
        _current = old
