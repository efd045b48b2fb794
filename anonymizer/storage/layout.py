"""Where the parts of a release lie: ``public/`` is handed out, ``restricted/`` stays with the custodian."""

from __future__ import annotations

from dataclasses import dataclass

from anonymizer.crypto.encryption import SUFFIX
from anonymizer.storage.path import Place

MANIFEST, STATEMENT = "manifest.parquet", "release.intoto.jsonl"
IMAGES = "images"  # the folder of pictures that are files of their own
REVOCATIONS, AUDIT = "revocations.intoto.jsonl", "audit.json"  # of the public half, as the two above


@dataclass(frozen=True)
class Release:
    """The two halves of a release, never mixed, and the names of what is in them."""

    root: Place

    @classmethod
    def at(cls, uri: str) -> Release:
        return cls(Place.of(uri))

    @property
    def public(self) -> Place:
        return self.root / "public"

    @property
    def is_published(self) -> bool:
        """The manifest is the last thing that appears in ``public/``."""
        return (self.public / MANIFEST).exists()

    @property
    def is_assembled(self) -> bool:
        """There is something to hand out, whether it may be or not."""
        return self.is_published or (self.candidate / MANIFEST).exists()

    @property
    def is_complete(self) -> bool:
        """Published, reported (or purged since), and nothing left to tidy up."""
        left = (self.staging, self.assembling, self.candidate)
        reported = any(place.exists() for place in (self.report, self.sealed_report, self.purged))
        return self.is_published and reported and not any(place.exists() for place in left)

    @property
    def handout(self) -> Place:
        """What is to be handed out: ``public``, or the candidate that the gate has not let out yet."""
        return self.public if self.is_published else self.candidate

    @property
    def manifest(self) -> Place:
        return self.handout / MANIFEST

    @property
    def statement(self) -> Place:
        """Who says what about this release: a signed statement."""
        return self.handout / STATEMENT

    @property
    def restricted(self) -> Place:
        return (self.root / "restricted").as_private()

    @property
    def plan(self) -> Place:
        return self.restricted / "plan.json"

    @property
    def config(self) -> Place:
        return self.restricted / "config.yaml"

    @property
    def report(self) -> Place:
        return self.restricted / "report.html"

    @property
    def sealed_report(self) -> Place:
        """The report, where it is kept encrypted."""
        return self.restricted / f"{self.report.name}{SUFFIX}"

    @property
    def ledger(self) -> Place:
        return self.restricted / "ledger"

    @property
    def lock(self) -> Place:
        """Held by the run that works on this release, on a disk."""
        return self.restricted / ".lock"

    @property
    def staging(self) -> Place:
        """Outputs of committed shards, until the release is assembled."""
        return self.restricted / "staging"

    @property
    def assembling(self) -> Place:
        """Where the public half is made, in a folder for each attempt; one of them becomes ``public`` in one move."""
        return self.root / "restricted" / "assembling"  # with the modes of what is public

    @property
    def candidate(self) -> Place:
        """The public half, whole, while the gate and the approvers have not let it out."""
        return self.root / "restricted" / "candidate"

    @property
    def reopened(self) -> Place:
        """What stands of shards whose failed records are done again; see ``anonymizer.retry``."""
        return self.restricted / "reopened"

    @property
    def quarantine(self) -> Place:
        return self.restricted / "quarantine"

    @property
    def errors(self) -> Place:
        """Details of unexpected errors: they may name records, so they stay here."""
        return self.restricted / "errors"

    @property
    def audit(self) -> Place:
        """What attackers found out: tables, for the custodian and the auditor."""
        return self.restricted / "audit"

    @property
    def audit_page(self) -> Place:
        return self.restricted / "audit.html"

    @property
    def audit_summary(self) -> Place:
        """What of the audit may be handed out: bounds, and nothing that helps an attacker."""
        return self.audit / "public.json"

    @property
    def events(self) -> Place:
        """What happened, in order; see ``anonymizer.events``."""
        return self.restricted / "events.jsonl"

    @property
    def events_lock(self) -> Place:
        """Held by whoever writes an event, on a disk."""
        return self.restricted / ".events.lock"

    @property
    def decision(self) -> Place:
        """What the policy said of this release each time it was asked, signed; the last line counts."""
        return self.restricted / "decisions.intoto.jsonl"

    @property
    def erased(self) -> Place:
        """Keyed digests of what was erased, here or in a release before, so that it does not come back."""
        return self.restricted / "erased.parquet"

    @property
    def purged(self) -> Place:
        """What was removed when it had been kept long enough, and when."""
        return self.restricted / "purged.json"

    @property
    def revocations(self) -> Place:
        """The list of what was revoked, here or in a release before, as it will stand in the public half."""
        return self.restricted / REVOCATIONS

    @property
    def plans(self) -> Place:
        return self.restricted / "plan"

    def entries(self, shard: int) -> Place:
        return self.plans / f"shard-{shard:05d}.json"

    def shard(self, shard: int) -> Place:
        """The ledger of one shard; the shard is committed when this file is there."""
        return self.ledger / f"shard-{shard:05d}.parquet"
