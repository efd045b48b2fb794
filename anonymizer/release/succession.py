"""A release that takes the place of another one, from which people are erased: what is under way, and its end.

Both halves of the old release stay until the new one is public. Then all of the old one is destroyed but for its event
log, its plan last: a release is erased if it has none, and its log says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from anonymizer.attest import statement
from anonymizer.attest.dsse import SignedStatement
from anonymizer.attest.verify import check_public
from anonymizer.errors import AnonymizerError, ConfigError, IntegrityError, OutputError, UsageError
from anonymizer.release import event_log, history, plan
from anonymizer.storage.layout import STATEMENT, Release, SealKey
from anonymizer.storage.path import StoragePath, absolute_uri

# In the log of the old release, and the last one in that of the new release, whose first is ``ERASURE_BEGUN``.
ANNOUNCED_EVENT, CANCELLED_EVENT = "erasure begun", "erasure cancelled"
DESTROYING_EVENT = "destroying"
PREDECESSOR_DESTROYED_EVENT = "predecessor destroyed"
AGAIN = "run the same `anonymizer erase` again"


def announce(old: Release, new: Release) -> None:
    """Log in the old release that a new one is to take its place."""
    successor = absolute_uri(str(new.root))
    if pending_successor(old) != successor:
        event_log.record(old, ANNOUNCED_EVENT, successor=successor)


def cancel(old: Release, reason: str) -> str:
    """Log that an erasure will not be finished, and remove what was prepared; return where that was.

    Nothing of the old release was touched by it. Raises UsageError where no erasure can be cancelled.
    """
    successor = pending_successor(old)
    if successor is None or _has_begun(old):
        problem = "is being destroyed already" if successor else "no erasure from it is under way"
        raise UsageError(f"release {str(old.root)!r}: {problem}: there is nothing to cancel")
    if Release.at(successor).is_published:
        raise UsageError(f"release {str(old.root)!r}: {successor!r} took its place already: {AGAIN}")
    event_log.record(old, CANCELLED_EVENT, successor=successor, reason=reason)
    new = Release.at(successor, old.key)
    if is_successor(new):  # it is signed, and approvers cannot tell that it is not to be published
        new.restricted.remove()
    return successor


def pending_successor(old: Release) -> str | None:
    """Return the address of the release that is to take the place of this one; None if no erasure is under way."""
    successor: str | None = None
    for event in event_log.read(old):
        if event["event"] in (ANNOUNCED_EVENT, CANCELLED_EVENT):
            successor = event["details"]["successor"] if event["event"] == ANNOUNCED_EVENT else None
    return successor if _is_standing(old) else None


def refuse_pending(previous: str | None, output: str, key: SealKey | None, *, replaces: bool) -> None:
    """Raise ConfigError where the previous release is being erased from by another release than that at ``output``.

    If this one ``replaces`` it, also where that was cancelled. With the key only what was logged with it counts. A
    destroyed release that was put back does not show it: releases in its folder and in the output's are checked too.
    """
    if previous is None or not _is_standing(old := Release.at(previous, key)):
        return
    own, successor = absolute_uri(output), pending_successor(old)
    if successor not in (None, own):
        raise ConfigError(
            f"previous {previous!r}: an erasure from it is not finished: finish that one, and name what takes its "
            f"place, {successor!r}, or cancel it (`anonymizer erase --cancel`)"
        )
    if (other := find_replacement(old, output)) is not None:
        raise ConfigError(f"previous {previous!r}: people are erased from it, or were, by {other!r}: name that one")
    if replaces and successor is None:
        raise ConfigError(f"previous {previous!r}: the erasure from it was cancelled: remove {own!r}, or erase anew")


def find_replacement(old: Release, output: str) -> str | None:
    """Return the address of a release that replaced ``old`` by its log, in the folder of ``old`` or of ``output``.

    None if there is none but the one at ``output``. With the key of ``old`` only what was logged with it counts.
    """
    address, own = str(old.root), str(Release.at(output).root)
    digest = history.statement_digest_at(address)
    for folder in dict.fromkeys(absolute_uri(uri).rstrip("/").rpartition("/")[0] for uri in (address, output)):
        for path in StoragePath.from_uri(folder or "/").children():
            if str(path) in (address, own):
                continue
            replaced = _read_replaced(Release(path, old.key))
            if replaced is None or not {digest, absolute_uri(address)}.intersection(replaced):
                continue
            if Release(path).is_published or _is_logged(old, DESTROYING_EVENT) or not _is_cancelled(old, str(path)):
                return str(path)
    return None


def _read_replaced(sibling: Release) -> tuple[str | None, str | None] | None:
    """Return address and statement's digest of the release that another one replaces; None where it replaces none."""
    try:
        first = next(iter(event_log.read(sibling)), None)
    except (AnonymizerError, OSError):  # of another key, or no release
        return None
    if first is None or first["event"] != event_log.ERASURE_BEGUN:
        return None
    return first["details"].get("replaces"), first["details"].get("statement")


def _is_cancelled(old: Release, successor: str) -> bool:
    """Return whether the last that a log says of an erasure, by this successor, is that it was cancelled."""
    names = [e["event"] for e in event_log.read(old) if e["details"].get("successor") == absolute_uri(successor)]
    return names[-1:] == [CANCELLED_EVENT]


def is_successor(new: Release) -> bool:
    """Return whether a release takes the place of its previous one."""
    return [event["event"] for event in event_log.read(new)[:1]] == [event_log.ERASURE_BEGUN]


def describe(release: Release) -> str | None:
    """Return what is left to do of an erasure from this release, or of the one that makes it; None where nothing is."""
    if (successor := pending_successor(release)) is not None:
        if _has_begun(release):
            return f"an erasure is not finished: {successor} took its place, and a part of it still stands: {AGAIN}"
        return f"an erasure is not finished: nothing is erased before {successor} is published"
    if not is_successor(release):
        return None
    old = Release.at(str(plan.read_config(release).previous))
    try:
        is_standing = _is_standing(old)
    except OutputError as problem:  # a store that does not answer, or is gone
        is_logged = _is_logged(release, PREDECESSOR_DESTROYED_EVENT)
        return None if is_logged else f"an erasure may not be finished: {problem}"
    if is_standing:
        if pending_successor(old) is None:
            return f"an erasure was cancelled, and {old.root} stays: remove this release"
        return f"an erasure is not finished: {old.root} still stands, with all that is to be erased"
    return None


def finish(new: Release, previous: str, trusted: Sequence[str]) -> None:
    """Destroy the old release, at ``previous``, once the new one is public; does nothing where it is destroyed.

    Only the release goes whose statement the new one's, by one of the ``trusted`` public keys, names as
    ``materials.previous``. Raises IntegrityError or OutputError where the old release is another one, or the new one
    does not verify.
    """
    old = Release.at(previous, new.key)
    if _is_logged(new, PREDECESSOR_DESTROYED_EVENT) and not _is_standing(old):
        return
    try:
        if not trusted:
            raise IntegrityError("erase: no key is at hand that must have signed the new release: set the publisher's")
        findings = check_public(new.public, trusted, decode=0)
        if failures := [finding.check for finding in findings if finding.result == "fail"]:
            raise IntegrityError(
                f"erase: the new release does not verify ({failures[0]}): the old one was left as it is"
            )
        signed = statement.read(new.public)
        _refuse_other(old, signed)
        _destroy(old, new, signed.digest)
    except (IntegrityError, OutputError) as problem:
        raise type(problem)(f"{problem}; the new release is published, and the old one not gone: {AGAIN}") from None


def _refuse_other(old: Release, successor: SignedStatement) -> None:
    """Raise IntegrityError unless this is the release that the successor was signed to take the place of."""
    path = old.public / STATEMENT
    try:
        if path.exists():
            is_same = statement.read(old.public).digest == successor.predicate["materials"]["previous"]
        else:
            is_same = _is_logged(old, DESTROYING_EVENT, successor.digest)
    except ValueError:
        is_same = False
    if not is_same:
        raise IntegrityError(
            "erase: what lies at the address of the old release is not what the new one takes the place of: it was "
            "left as it is"
        )


def _destroy(old: Release, new: Release, successor: str) -> None:
    """Remove a release except for its event log; that log and the successor's say what was removed.

    ``successor``: SHA-256 of the successor's statement.
    """
    files = _remaining_files(old)
    size = sum(int(old.root.fs.size(f"{old.root.path}/{name}") or 0) for name in files)
    if files and not _is_logged(old, DESTROYING_EVENT, successor):
        event_log.record(old, DESTROYING_EVENT, files=len(files), bytes=size, successor=successor)
    old.public.remove()
    remove_except(old.restricted, {old.event_log.name, old.config.name, old.plan.name})
    old.config.remove()
    if remaining := [name for name in _remaining_files(old) if name != f"{old.restricted.name}/{old.plan.name}"]:
        raise IntegrityError(f"erase: {len(remaining)} files of the old release could not be removed: remove them")
    old.plan.remove()
    head = event_log.record(old, event_log.DESTROYED, successor=successor)
    old.event_log_lock.remove()
    event_log.record(new, PREDECESSOR_DESTROYED_EVENT, files=len(files), bytes=size, events=asdict(head))


def remove_except(folder: StoragePath, names: set[str]) -> None:
    """Remove everything in a folder except for some names."""
    for path in list(folder.children()):
        if path.name not in names:
            path.remove()


def _is_standing(old: Release) -> bool:
    return old.plan.exists() or old.public.exists()


def _has_begun(old: Release) -> bool:
    """Return whether the destruction of a release was begun."""
    return _is_logged(old, DESTROYING_EVENT)


def _is_logged(release: Release, name: str, successor: str | None = None) -> bool:
    """Return whether an event is in the log, of a certain successor or any."""
    events = [event["details"] for event in event_log.read(release) if event["event"] == name]
    return any(successor in (None, details.get("successor")) for details in events)


def _remaining_files(release: Release) -> list[str]:
    """Return the files of both halves, except for the event log."""
    halves = [half for half in (release.public, release.restricted) if half.exists()]
    names = [f"{half.name}/{name}" for half in halves for name in half.list_files()]
    kept = {f"{release.restricted.name}/{path.name}" for path in (release.event_log, release.event_log_lock)}
    return [name for name in names if name not in kept]
