"""A lock on an object store, which has none: an object that names its holder and is renewed while the holder runs.

A holder that was killed renews nothing, and another run takes the lease after it has watched the object unchanged for a
minute. No clocks are compared.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from anonymizer.errors import OutputError
from anonymizer.storage.path import StoragePath

RENEWAL_SECONDS = 10.0  # from one renewal to the next
EXPIRY_SECONDS = 60.0  # without a renewal, after which the holder is considered dead

log = logging.getLogger(__name__)
_depths: dict[str, int] = {}  # how many times this process holds each lease


class LeaseHeld(Exception):
    """Another run holds the lease."""


@contextmanager
def hold_lease(path: StoragePath) -> Iterator[None]:
    """Hold the lease at ``path``; reentrant in this process. Raises LeaseHeld if another run renews it.

    A holder that lost its lease for want of renewals is not stopped: its commits do not replace those of others.
    """
    name = str(path)
    if _depths.get(name):
        _depths[name] += 1
        try:
            yield
        finally:
            _depths[name] -= 1
        return
    lease = _Lease(path)
    lease.acquire()
    _depths[name] = 1
    done = threading.Event()
    renewal = threading.Thread(target=lease.renew_until, args=(done,), name="lease", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        done.set()
        renewal.join()
        del _depths[name]
        lease.release()


class _Lease:
    def __init__(self, path: StoragePath) -> None:
        self.path, self.holder, self.renewals = path, secrets.token_hex(8), 0

    def acquire(self) -> None:
        data, version = self.path.read_with_version()
        if version is not None:
            version = self._wait_until_free(data, version)
        if not self._write(version) or not self._is_mine(self.path.read_with_version()[0]):
            raise LeaseHeld

    def renew_until(self, done: threading.Event) -> None:
        while not done.wait(RENEWAL_SECONDS):
            try:
                data, version = self.path.read_with_version()
                if not self._is_mine(data):
                    log.warning("the lease on the release was lost: another run has taken over")
                    return
                self.renewals += 1
                self._write(version)
            except OutputError:  # the store does not answer for a while
                log.warning("the lease on the release could not be renewed")

    def release(self) -> None:
        try:
            if self._is_mine(self.path.read_with_version()[0]):
                self.path.remove()
        except OutputError:
            log.warning("the lease on the release could not be given back: it ends by itself in a minute")

    def _wait_until_free(self, data: bytes, version: str) -> str | None:
        """Return the version to replace once the holder releases the lease or stops renewing. Raises LeaseHeld."""
        log.warning("another run holds the lease on the release: watching for a minute at most whether it lives")
        until = time.monotonic() + EXPIRY_SECONDS
        while time.monotonic() < until:
            time.sleep(RENEWAL_SECONDS / 5)
            current, current_version = self.path.read_with_version()
            if current_version is None:
                return None
            if current != data:
                raise LeaseHeld
        return version

    def _write(self, version: str | None) -> bool:
        content = json.dumps({"holder": self.holder, "beats": self.renewals})
        return self.path.compare_and_swap(content.encode(), version)

    def _is_mine(self, data: bytes) -> bool:
        return self.holder.encode() in data
