"""The event log of a release: a hash chain of JSON lines in ``restricted/events.jsonl``.

Events hold counts, shard numbers and names of actors, never a record. A line that is changed, moved or removed breaks
the chain; truncation at the end is detected by the chain head in the signed statement. The custodian's key puts a keyed
digest on each line, so that a chain cannot be made anew without it; approvers and auditors, who have no key, can add
those events only that nothing but their own work follows from.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import json
import os
import random
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import sleep
from typing import Any

from filelock import FileLock

from anonymizer.crypto import seal
from anonymizer.errors import IntegrityError, OutputError
from anonymizer.storage.layout import Release, SealKey
from anonymizer.storage.path import NO_LINKS, translate_storage_errors

GENESIS_HASH = "0" * 64  # the hash before the first line
ACTOR_VARIABLE = "ANONYMIZER_ACTOR"
ERASURE_BEGUN = "erasing"  # first event of a release that replaces one from which people are erased
DESTROYED = "destroyed"  # last event of a release from which people were erased: nothing else is left of it
TAIL_BYTES = 2**16  # longer than any line
ADOPTED_EVENT = "adopted"  # of a release of an earlier version: its holder has verified all that stands before
KEYLESS_EVENTS = {"approved", "published", "verified", "destroying", "destroyed", "predecessor destroyed"}
MAX_ATTEMPTS = 100  # conditional writes to an object store, where other writers may be first


@dataclass(frozen=True)
class ChainHead:
    """Length of a chain, and the hash of its last line."""

    count: int
    hash: str


def record(release: Release, event: str, *, actor: str | None = None, **details: Any) -> ChainHead:
    """Append an event and return the new head. Raises IntegrityError if the last line is damaged."""
    fields = {"actor": actor or current_actor(), "event": event, "details": details}
    return _append_to_file(release, fields) if release.root.is_local else _append_in_store(release, fields)


def _append_to_file(release: Release, fields: Mapping[str, Any]) -> ChainHead:
    release.restricted.make_private_folder()
    with (
        FileLock(release.event_log_lock.path, mode=0o600),
        translate_storage_errors(),
        open(os.open(release.event_log.path, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o600), "r+b") as file,
    ):
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        tail = file.read()
        complete = _complete_lines(tail)
        head, line = _next_line(complete, fields, release.key)
        file.seek(size - len(tail) + len(complete))
        file.truncate()
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    return head


def _append_in_store(release: Release, fields: Mapping[str, Any]) -> ChainHead:
    """Rewrite the log, as objects cannot be appended to, on condition that no other writer was first; else retry."""
    attempt, head = None, ChainHead(0, GENESIS_HASH)
    for _ in range(MAX_ATTEMPTS):
        data, version = release.event_log.read_with_version()
        if attempt is not None and data.startswith(attempt):
            return head  # only the response was lost, and others have written since
        complete = _complete_lines(data)
        head, line = _next_line(complete, fields, release.key)
        attempt = complete + line
        if release.event_log.compare_and_swap(attempt, version):
            return head
        sleep(random.uniform(0, 0.2))
    raise OutputError("events: too many others write the log of this release: run the same command again")


def read(release: Release) -> list[Mapping[str, Any]]:
    """Return all events in order.

    Raises IntegrityError with the line number if the hash chain is broken, or, with the key, if a line is not by it, or
    if it is the log of another release under the same key.
    """
    if not release.event_log.exists():
        return []
    try:
        data = release.event_log.read()
    except OSError as error:
        raise IntegrityError(f"events: events.jsonl cannot be read ({type(error).__name__}): restore it") from None
    events = list(_verify_chain(data, release.key))
    plans = [event["details"]["plan"] for event in events if event["event"] == "planned" and "plan" in event["details"]]
    if release.sealing_key is not None and plans and release.plan.exists():
        with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            if json.loads(release.plan.read())["id"] == plans[-1]:
                return events
        raise IntegrityError("restricted/events.jsonl: is not the log of this plan: restore both")
    return events


def is_erased(release: Release) -> bool:
    """Return whether a release has ended: people were erased from it, and another one took its place."""
    return any(event["event"] == DESTROYED for event in read(release))


def contains_head(release: Release, head: ChainHead) -> bool:
    """Return whether the log had this head at some time."""
    if head.count == 0:
        return head.hash == GENESIS_HASH
    lines = release.event_log.read().splitlines() if release.event_log.exists() else []
    return len(lines) >= head.count and _hash(lines[head.count - 1]) == head.hash


def has_signed_ledger(release: Release, count: int, digest: str) -> bool:
    """Return whether the ledger had this digest when the release was signed, which was its ``count``-th event.

    Or whether it is that ledger, sealed since then by its custodian.
    """
    events = read(release)
    signed = events[count - 1]["details"].get("ledger") if 0 < count <= len(events) else None
    sealed = {e["details"]["ledger"]: e["details"]["signed"] for e in events if _is_adoption(e, release.key)}
    return signed is not None and sealed.get(digest, digest) == signed


def current_actor() -> str:
    """Return ``ANONYMIZER_ACTOR``, or the user and host name of this process."""
    if name := os.environ.get(ACTOR_VARIABLE, "").strip():
        return name
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a user without a name
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _verify_chain(data: bytes, key: SealKey | None) -> Iterator[Mapping[str, Any]]:
    lines, previous = [_decode(line) for line in data.splitlines()], GENESIS_HASH
    adopted = max((i for i, event in enumerate(lines) if event and _is_adoption(event, key)), default=-1)
    for number, (event, line) in enumerate(zip(lines, data.splitlines(), strict=True), start=1):
        if event is None or (event["n"], event["previous"]) != (number, previous):
            raise IntegrityError(f"events: line {number} does not follow from the one before it: restore events.jsonl")
        if number > adopted and not _is_keyed(event, key):
            raise IntegrityError(
                f"restricted/events.jsonl: line {number} was not written with the custodian's key: "
                f"{seal.EARLIER_VERSION_HINT}"
            )
        previous = _hash(line)
        yield event
    if data and not data.endswith(b"\n"):
        raise IntegrityError("events: the last line is not whole: restore events.jsonl")


def _complete_lines(data: bytes) -> bytes:
    """Drop a last line that an interrupted write has cut off."""
    return data[: data.rfind(b"\n") + 1]


def _next_line(lines: bytes, fields: Mapping[str, Any], key: SealKey | None) -> tuple[ChainHead, bytes]:
    """Return the line that extends a log, of which ``lines`` are the last, and the head that it makes."""
    count, previous = 0, GENESIS_HASH
    if lines:
        last = lines.splitlines()[-1]
        if (event := _decode(last)) is None:
            raise IntegrityError("events: the last line is damaged: restore restricted/events.jsonl")
        count, previous = event["n"], _hash(last)
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    event = {"n": count + 1, "time": time, "previous": previous, **fields}
    event["hmac"] = _keyed_digest(event, key) if key is not None and key.is_persistent else None
    line = _encode(event)
    return ChainHead(count + 1, _hash(line)), line + b"\n"


def _is_keyed(event: Mapping[str, Any], key: SealKey | None) -> bool:
    """Return whether a line is what the holder of the key wrote, or one that others may write."""
    if key is None or not key.is_persistent:
        return True
    if event.get("hmac") is None:
        return event["event"] in KEYLESS_EVENTS
    return hmac.compare_digest(str(event["hmac"]), _keyed_digest(event, key))


def _is_adoption(event: Mapping[str, Any], key: SealKey | None) -> bool:
    """Return whether an event says, by the key, that its holder has sealed the release; never without the key."""
    is_known = key is not None and key.is_persistent and event.get("hmac") is not None
    return event["event"] == ADOPTED_EVENT and is_known and _is_keyed(event, key)


def _keyed_digest(event: Mapping[str, Any], key: SealKey) -> str:
    fields = {name: value for name, value in event.items() if name not in ("hmac", "sha256")}
    return key.derive("event", json.dumps(fields, sort_keys=True).encode()).hex()


def _encode(event: Mapping[str, Any]) -> bytes:
    """Return an event's line; its ``sha256`` is of the line without it, so that damage to the last line shows."""
    digest = hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()
    return json.dumps({**event, "sha256": digest}, sort_keys=True).encode()


def _decode(line: bytes) -> Mapping[str, Any] | None:
    """Return the event of a line; None if it is not exactly what ``_encode`` wrote."""
    try:
        event: dict[str, Any] = json.loads(line)
        fields = {name: value for name, value in event.items() if name != "sha256"}
        is_valid = _encode(fields) == line and isinstance(event["n"], int) and isinstance(event["details"], dict)
        is_valid &= all(isinstance(event[name], str) for name in ("previous", "event", "time"))
        is_valid &= datetime.fromisoformat(event["time"]).tzinfo is not None
        return event if is_valid else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _hash(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
