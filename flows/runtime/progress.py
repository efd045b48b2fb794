"""Where a run's progress goes: to whoever watches this process. Counts only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Watcher(Protocol):
    def begin(self, records: int, done: int) -> None:
        """A run of ``records`` starts, ``done`` of which were finished earlier."""
        ...

    def advance(self, records: int) -> None: ...

    def stage(self, name: str) -> None:
        """The run enters another stage."""
        ...


class Nobody:
    def begin(self, records: int, done: int) -> None: ...

    def advance(self, records: int) -> None: ...

    def stage(self, name: str) -> None: ...


NOBODY: Watcher = Nobody()
_watcher: Watcher = NOBODY


def watcher() -> Watcher:
    return _watcher


@contextmanager
def watched_by(new: Watcher) -> Iterator[None]:
    """Progress of runs in this process goes to ``new``. Tasks run in threads, so this is one place for all of them."""
    global _watcher
    old, _watcher = _watcher, new
    try:
        yield
    finally:
        _watcher = old
