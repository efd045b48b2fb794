"""How long the restricted half is kept: what shows an original, and what names a record, each for so many days."""

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
    """What is kept until when; ``left`` counts what is still there."""

    kind: str
    until: datetime
    paths: Sequence[StoragePath]

    @property
    def remaining(self) -> int:
        return len(self.paths)

    def is_due(self, now: datetime) -> bool:
        return bool(self.paths) and now >= self.until


def retention_start(release: Release) -> datetime | None:
    """When the time that things are kept began: at publication, and with an erasure at that of the release before.

    None while nothing is published.
    """
    if not release.is_published:
        return None
    found = event_log.read(release)
    published = [event["time"] for event in found if event["event"] == "published"]
    if not published:
        return None
    earlier = [event["details"]["kept_since"] for event in found if event["details"].get("kept_since")]
    return datetime.fromisoformat([*published, *earlier][-1])


def list_terms(release: Release, config: RestrictedConfig) -> list[RetentionTerm]:
    """Every term that is set, counted from the day of publication; none before that."""
    begun = retention_start(release)
    if begun is None:
        return []
    kinds = {
        "pictures": (config.picture_days, _paths_with_pictures(release)),
        "records": (config.record_days, _paths_with_records(release)),
    }
    return [
        RetentionTerm(what, begun + timedelta(days=days), [place for place in places if place.exists()])
        for what, (days, places) in kinds.items()
        if days is not None
    ]


def purge(release: Release, config: RestrictedConfig, now: datetime) -> list[RetentionTerm]:
    """Remove what has been kept long enough, and say so in the event log; what was removed."""
    due = [term for term in list_terms(release, config) if term.is_due(now)]
    if due:
        told = dict(read_purged(release)) | {term.kind: now.date().isoformat() for term in due}
        release.purged.write(json.dumps(told).encode())
    for term in due:
        event_log.record(release, "purged", what=term.kind, places=term.remaining)
        for place in term.paths:
            place.remove()
    return due


def read_purged(release: Release) -> Mapping[str, str]:
    """What was removed because it had been kept long enough, and on which day."""
    try:
        found: Mapping[str, str] = json.loads(release.purged.read()) if release.purged.exists() else {}
    except ValueError:
        raise IntegrityError("release: restricted/purged.json is damaged: restore it") from None
    return found


def _paths_with_pictures(release: Release) -> list[StoragePath]:
    """What shows originals, or outputs that were held back."""
    return [release.quarantine, *_restricted_pages(release), release.errors]


def _paths_with_records(release: Release) -> list[StoragePath]:
    """What names records: the ledger, the plan's lists, the pages, and who was found by attackers."""
    return [
        release.ledger,
        release.shard_plans,
        *_restricted_pages(release),
        release.errors,
        release.audit / "found.parquet",
    ]


def _restricted_pages(release: Release) -> list[StoragePath]:
    """Pages for the custodian, as they are and encrypted."""
    pages = (release.report, release.audit_page)
    return [place for page in pages for place in (page, release.restricted / f"{page.name}{ENCRYPTED_SUFFIX}")]
