"""What happened to a release, in order: one line for each event, with its own hash and that of the line before.

Events hold counts, shard numbers and names of people who act; never a record. A line that was changed, moved or taken
out breaks the chain; lines cut off at its end do not, unless a signed statement speaks of them.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import random
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from time import sleep
from typing import Any

from filelock import FileLock

from anonymizer.errors import IntegrityError, OutputError
from anonymizer.storage.layout import Release
from anonymizer.storage.path import translate_storage_errors

GENESIS_HASH = "0" * 64  # stands for the line before the first
ACTOR_VARIABLE = "ANONYMIZER_ACTOR"
TAIL_BYTES = 2**16  # bytes that surely hold the last line
MAX_ATTEMPTS = 100  # times that a line is offered to a store, where others may have been quicker


@dataclass(frozen=True)
class ChainHead:
    """How long a chain is, and the hash of its last line."""

    count: int
    hash: str


def record(release: Release, event: str, *, actor: str | None = None, **details: Any) -> ChainHead:
    """Add one event to the log; IntegrityError if what is there is no chain."""
    told = {"actor": actor or current_actor(), "event": event, "details": details}
    if not release.root.is_local:
        return _record_in_store(release, told)
    with _log_lock(release):
        head = _read_head(release)
        line = _next_line(head, told)
        _append(release, line + b"\n")
    return ChainHead(head.count + 1, _hash(line))


def _next_line(head: ChainHead, told: Mapping[str, Any]) -> bytes:
    """The line that follows on the last one."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    return _encode_event({"n": head.count + 1, "time": time, "previous": head.hash, **told})


def _record_in_store(release: Release, told: Mapping[str, Any]) -> ChainHead:
    """Where nothing can be appended: the whole log is put again if nobody else did so meanwhile, else once more."""
    for _ in range(MAX_ATTEMPTS):
        data, version = release.event_log.read_with_version()
        data = data[: data.rfind(b"\n") + 1]  # a store whose puts are not atomic may hold a line that was cut off
        head = _parse_head(data)
        line = _next_line(head, told)
        if release.event_log.compare_and_swap(data + line + b"\n", version):
            return ChainHead(head.count + 1, _hash(line))
        sleep(random.uniform(0, 0.2))
    raise OutputError("events: too many others write the log of this release: run the same command again")


def read(release: Release) -> list[Mapping[str, Any]]:
    """All events, the first one first. IntegrityError where the chain is broken, with the line's number."""
    data = release.event_log.read() if release.event_log.exists() else b""
    return list(_verify_chain(data))


def contains_head(release: Release, earlier: ChainHead) -> bool:
    """Whether the log is one that had this head at some time."""
    lines = release.event_log.read().splitlines() if release.event_log.exists() else []
    if earlier.count == 0:
        return earlier.hash == GENESIS_HASH
    return len(lines) >= earlier.count and _hash(lines[earlier.count - 1]) == earlier.hash


def has_signed_ledger(release: Release, count: int, digest: str) -> bool:
    """Return whether the ledger had this digest when the release was signed, which was its ``count``-th event."""
    events = read(release)[:count]
    return bool(events) and events[-1]["details"].get("ledger") == digest


def current_actor() -> str:
    """Who acts: ``ANONYMIZER_ACTOR``, or the user of this machine."""
    if named := os.environ.get(ACTOR_VARIABLE, "").strip():
        return named
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container may run as a user without a name
        return f"user {os.getuid()}@{socket.gethostname()}"


def _verify_chain(data: bytes) -> Iterator[Mapping[str, Any]]:
    before = GENESIS_HASH
    for number, line in enumerate(data.splitlines(), start=1):
        event = _decode_event(line)
        if event is None or (event["n"], event["previous"]) != (number, before):
            raise IntegrityError(f"events: line {number} does not follow from the one before it: restore events.jsonl")
        before = _hash(line)
        yield event
    if data and not data.endswith(b"\n"):
        raise IntegrityError("events: the last line is not whole: restore events.jsonl")


def _encode_event(told: Mapping[str, Any]) -> bytes:
    """An event as it is written; ``sha256`` is of the line without it, and tells that the last one is as it was."""
    own = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return json.dumps({**told, "sha256": own}, sort_keys=True).encode()


def _decode_event(line: bytes) -> Mapping[str, Any] | None:
    """The event in a line, or nothing where the line is not what was written."""
    try:
        event: dict[str, Any] = json.loads(line)
        told = {name: value for name, value in event.items() if name != "sha256"}
        whole = _encode_event(told) == line and isinstance(event["n"], int) and isinstance(event["previous"], str)
        return event if whole else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _read_head(release: Release) -> ChainHead:
    """The end of a chain that is taken to be whole, without walking it; a line that a crash cut off is taken away."""
    if not release.event_log.exists():
        return ChainHead(0, GENESIS_HASH)
    data = _read_tail(release)
    if not data.endswith(b"\n"):
        whole, _, cut = data.rpartition(b"\n")
        _truncate(release, len(cut))
        data = whole
    return _parse_head(data)


def _parse_head(data: bytes) -> ChainHead:
    """The end of a log, or of the end of one, that is whole lines."""
    lines = data.splitlines()
    if not lines:
        return ChainHead(0, GENESIS_HASH)
    if (last := _decode_event(lines[-1])) is None:
        raise IntegrityError("events: the last line is damaged: restore restricted/events.jsonl")
    return ChainHead(last["n"], _hash(lines[-1]))


def _read_tail(release: Release) -> bytes:
    """The last lines of the log, or all of them."""
    with open(release.event_log.path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read()


def _append(release: Release, line: bytes) -> None:
    with (
        translate_storage_errors(),
        open(os.open(release.event_log.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log,
    ):
        log.write(line)
        log.flush()
        os.fsync(log.fileno())


def _truncate(release: Release, count: int) -> None:
    with translate_storage_errors():
        os.truncate(release.event_log.path, os.path.getsize(release.event_log.path) - count)


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


@contextmanager
def _log_lock(release: Release) -> Iterator[None]:
    """Nobody else adds an event meanwhile, to a log that lies on a disk."""
    release.restricted.make_private_folder()
    with FileLock(release.event_log_lock.path, mode=0o600):
        yield
