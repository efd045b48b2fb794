"""Progress of the jobs in this process: counts and stage names, reported to a bar, an artifact or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ProgressReporter:
    """Receives progress; this one ignores it."""

    def begin(self, records: int, done: int) -> None:
        """Start a job of ``records``, ``done`` of which were finished by an earlier run."""

    def advance(self, records: int) -> None:
        """Count further finished records; a negative number where a failed attempt is taken back."""

    def stage(self, name: str) -> None:
        """Enter another stage."""


NO_PROGRESS = ProgressReporter()
_current = NO_PROGRESS


def current_progress() -> ProgressReporter:
    """Return the reporter of this process."""
    return _current


@contextmanager
def report_progress_to(reporter: ProgressReporter) -> Iterator[None]:
    """Report to ``reporter`` for a while. One per process rather than a context variable: tasks run in threads."""
    global _current
    previous, _current = _current, reporter
    try:
        yield
    finally:
        _current = previous
