"""The lock that lets one run at a time work on a release: a file lock on a disk, a lease on an object store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from filelock import FileLock, Timeout

from anonymizer.errors import OutputError
from anonymizer.storage.layout import Release
from anonymizer.storage.lease import LeaseHeld, hold_lease

LOCK_TIMEOUT = 0.5  # seconds; ``is_running`` holds the lock for less


@contextmanager
def exclusive_run(uri: str) -> Iterator[None]:
    """Hold the lock of the release at ``uri``. Reentrant in this process; OutputError if another run holds it."""
    release = Release.at(uri)
    lock: AbstractContextManager[object]
    try:
        if release.root.is_local:
            release.restricted.make_private_folder()
            # One object for each path in this process makes the lock reentrant.
            lock = FileLock(release.lock.path, timeout=LOCK_TIMEOUT, is_singleton=True, thread_local=False, mode=0o600)
        else:
            lock = hold_lease(release.lock)
        with lock:
            yield
    except (Timeout, LeaseHeld):
        raise OutputError(
            f"output.uri {uri!r}: another run is working on it: wait for it, or choose another output"
        ) from None


def is_running(release: Release) -> bool:
    """Return whether a run holds the lock of a release on a disk; False on a store, where it takes a minute to tell."""
    if not release.root.is_local or not release.lock.exists():
        return False
    try:
        with FileLock(release.lock.path, timeout=0, mode=0o600):
            return False
    except Timeout:
        return True
    except OSError:  # a reader without write access cannot tell
        return False
