"""How long the restricted half is kept: what shows an original, and what names a record, each for so many days."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from anonymizer.config import RestrictedConfig
from anonymizer.crypto.encryption import SUFFIX
from anonymizer.errors import IntegrityError
from anonymizer.release import event_log
from anonymizer.storage.layout import Release
from anonymizer.storage.path import Place


@dataclass(frozen=True)
class Term:
    """What is kept until when; ``left`` counts what is still there."""

    what: str
    until: datetime
    places: Sequence[Place]

    @property
    def left(self) -> int:
        return len(self.places)

    def is_due(self, now: datetime) -> bool:
        return bool(self.places) and now >= self.until


def since(release: Release) -> datetime | None:
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


def terms(release: Release, config: RestrictedConfig) -> list[Term]:
    """Every term that is set, counted from the day of publication; none before that."""
    begun = since(release)
    if begun is None:
        return []
    kinds = {"pictures": (config.picture_days, _pictures(release)), "records": (config.record_days, _records(release))}
    return [
        Term(what, begun + timedelta(days=days), [place for place in places if place.exists()])
        for what, (days, places) in kinds.items()
        if days is not None
    ]


def purge(release: Release, config: RestrictedConfig, now: datetime) -> list[Term]:
    """Remove what has been kept long enough, and say so in the event log; what was removed."""
    due = [term for term in terms(release, config) if term.is_due(now)]
    if due:
        told = dict(purged(release)) | {term.what: now.date().isoformat() for term in due}
        release.purged.write(json.dumps(told).encode())
    for term in due:
        event_log.record(release, "purged", what=term.what, places=term.left)
        for place in term.places:
            place.remove()
    return due


def purged(release: Release) -> Mapping[str, str]:
    """What was removed because it had been kept long enough, and on which day."""
    try:
        found: Mapping[str, str] = json.loads(release.purged.read()) if release.purged.exists() else {}
    except ValueError:
        raise IntegrityError("release: restricted/purged.json is damaged: restore it") from None
    return found


def _pictures(release: Release) -> list[Place]:
    """What shows originals, or outputs that were held back."""
    return [release.quarantine, *_pages(release), release.errors]


def _records(release: Release) -> list[Place]:
    """What names records: the ledger, the plan's lists, the pages, and who was found by attackers."""
    return [release.ledger, release.plans, *_pages(release), release.errors, release.audit / "found.parquet"]


def _pages(release: Release) -> list[Place]:
    """Pages for the custodian, as they are and encrypted."""
    pages = (release.report, release.audit_page)
    return [place for page in pages for place in (page, release.restricted / f"{page.name}{SUFFIX}")]
