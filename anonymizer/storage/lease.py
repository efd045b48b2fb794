"""One run at a time on a store, where there are no locks: an object with a name in it, renewed while its run goes on.

A run that was killed renews nothing: a minute later the next one takes its place. Whoever takes the place has watched
the object stand still, so that no clock has to be right.
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

RENEWAL_SECONDS = 10.0  # seconds from one renewal to the next
EXPIRY_SECONDS = 60.0  # seconds without one, after which whoever held it is taken for dead

log = logging.getLogger(__name__)
_depths: dict[str, int] = {}  # by this process, and how many times


class LeaseHeld(Exception):
    """Another run holds it."""


@contextmanager
def hold_lease(place: StoragePath) -> Iterator[None]:
    """Nobody else holds it meanwhile; whoever holds it in this process may take it again. Raises Taken at once.

    A holder that did not renew it for long, and lost it, is not stopped: what it commits does not replace what
    another has committed.
    """
    name = str(place)
    if _depths.get(name):
        _depths[name] += 1
        try:
            yield
        finally:
            _depths[name] -= 1
        return
    lease = _Lease(place)
    lease.acquire()
    _depths[name] = 1
    done = threading.Event()
    beating = threading.Thread(target=lease.renew_until, args=(done,), name="lease", daemon=True)
    beating.start()
    try:
        yield
    finally:
        done.set()
        beating.join()
        del _depths[name]
        lease.release()


class _Lease:
    def __init__(self, place: StoragePath) -> None:
        self.place, self.holder, self.beats = place, secrets.token_hex(8), 0

    def acquire(self) -> None:
        found, version = self.place.read_with_version()
        if version is not None:
            version = self._watch(found, version)
        if not self.place.compare_and_swap(self._content(), version) or not self._is_ours():
            raise LeaseHeld

    def renew_until(self, done: threading.Event) -> None:
        while not done.wait(RENEWAL_SECONDS):
            try:
                found, version = self.place.read_with_version()
                if not self._holds(found):
                    log.warning("the lease on the release was lost: another run has taken over")
                    return
                self.beats += 1
                self.place.compare_and_swap(self._content(), version)
            except OutputError:  # a store that cannot be asked for a while
                log.warning("the lease on the release could not be renewed")

    def release(self) -> None:
        try:
            if self._is_ours():
                self.place.remove()
        except OutputError:
            log.warning("the lease on the release could not be given back: it ends by itself in a minute")

    def _watch(self, found: bytes, version: str) -> str | None:
        """What to replace, once whoever holds it gives it back or says nothing any more. Raises Taken if it lives."""
        log.warning("another run holds the lease on the release: watching for a minute at most whether it lives")
        until = time.monotonic() + EXPIRY_SECONDS
        while time.monotonic() < until:
            time.sleep(RENEWAL_SECONDS / 5)
            now, now_version = self.place.read_with_version()
            if now_version is None:
                return None
            if now != found:
                raise LeaseHeld
        return version

    def _content(self) -> bytes:
        return json.dumps({"holder": self.holder, "beats": self.beats}).encode()

    def _holds(self, found: bytes) -> bool:
        try:
            return bool(json.loads(found)["holder"] == self.holder)
        except (ValueError, TypeError, KeyError):
            return False

    def _is_ours(self) -> bool:
        return self._holds(self.place.read_with_version()[0])
