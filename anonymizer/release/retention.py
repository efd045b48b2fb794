"""Retention of the restricted half: what shows an original, and what names a record, each for a number of days."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from anonymizer.config import RestrictedConfig
from anonymizer.errors import IntegrityError
from anonymizer.release import event_log
from anonymizer.storage.layout import ENCRYPTED_SUFFIX, Release
from anonymizer.storage.path import StoragePath


@dataclass(frozen=True)
class RetentionTerm:
    """When a kind of data is due to be deleted, and the paths that still exist."""

    kind: str
    until: datetime
    paths: Sequence[StoragePath]

    @property
    def remaining(self) -> int:
        """The number of paths that still exist."""
        return len(self.paths)

    def is_due(self, now: datetime) -> bool:
        """Return whether something is past its retention period."""
        return bool(self.paths) and now >= self.until


def retention_start(release: Release) -> datetime | None:
    """Return when the retention period began: when it was signed, or, after an erasure, when that before it was.

    None while nothing is published. Only events count that none but the custodian's key can write.
    """
    if not release.is_published:
        return None
    events = event_log.read(release)
    signed = [event["time"] for event in events if event["event"] == "sealed"]
    begun = [event["details"].get("kept_since") for event in events if event["event"] == event_log.ERASURE_BEGUN]
    times = [*signed[-1:], *filter(None, begun)]
    if not signed:
        return None
    try:
        start = datetime.fromisoformat(times[-1])
    except (TypeError, ValueError):
        start = datetime.min
    if start.tzinfo is None:
        raise IntegrityError("events: an erasure has no time since when it counts: restore restricted/events.jsonl")
    return start


def list_terms(release: Release, config: RestrictedConfig) -> list[RetentionTerm]:
    """Return every term that is configured, counted from the signature; none before publication."""
    start = retention_start(release)
    if start is None:
        return []
    pages = [page for name in (release.report, release.audit_page) for page in _plain_and_encrypted(release, name)]
    pictures = [release.quarantine, *pages, release.errors]  # what shows originals, or quarantined outputs
    records = [release.ledger, release.shard_plans, *pages, release.errors, release.audit / "found.parquet"]
    terms = (("pictures", config.picture_days, pictures), ("records", config.record_days, records))
    return [
        RetentionTerm(kind, start + timedelta(days=days), [path for path in paths if path.exists()])
        for kind, days, paths in terms
        if days is not None
    ]


def purge(release: Release, config: RestrictedConfig, now: datetime) -> list[RetentionTerm]:
    """Delete data past its retention period and log it; return the terms that were due."""
    due = [term for term in list_terms(release, config) if term.is_due(now)]
    if due:
        purged = dict(read_purged(release)) | {term.kind: now.date().isoformat() for term in due}
        release.purged.write(json.dumps(purged).encode())
    for term in due:
        event_log.record(release, "purged", what=term.kind, places=term.remaining)
        for path in term.paths:
            path.remove()
    return due


def read_purged(release: Release) -> Mapping[str, str]:
    """Return which kinds of data were purged, and on which day."""
    try:
        purged = json.loads(release.purged.read()) if release.purged.exists() else {}
        if not isinstance(purged, dict) or not all(isinstance(day, str) for day in purged.values()):
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise IntegrityError("release: restricted/purged.json is damaged: restore it") from None
    return purged


def _plain_and_encrypted(release: Release, page: StoragePath) -> tuple[StoragePath, StoragePath]:
    return page, release.restricted / f"{page.name}{ENCRYPTED_SUFFIX}"
