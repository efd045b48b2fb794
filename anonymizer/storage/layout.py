"""Where the parts of a release lie: ``public/`` is handed out, ``restricted/`` stays with the custodian."""

from __future__ import annotations

from dataclasses import dataclass

from anonymizer.storage.path import StoragePath

MANIFEST, STATEMENT = "manifest.parquet", "release.intoto.jsonl"
ENCRYPTED_SUFFIX = ".age"  # after the name of a file that is encrypted to recipients
IMAGES = "images"  # the folder of pictures that are files of their own
REVOCATIONS, AUDIT = "revocations.intoto.jsonl", "audit.json"  # of the public half, as the two above


@dataclass(frozen=True)
class Release:
    """The two halves of a release, never mixed, and the names of what is in them."""

    root: StoragePath

    @classmethod
    def at(cls, uri: str) -> Release:
        return cls(StoragePath.from_uri(uri))

    @property
    def public(self) -> StoragePath:
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
        reported = any(place.exists() for place in (self.report, self.encrypted_report, self.purged))
        return self.is_published and reported and not any(place.exists() for place in left)

    @property
    def public_or_candidate(self) -> StoragePath:
        """What is to be handed out: ``public``, or the candidate that the gate has not let out yet."""
        return self.public if self.is_published else self.candidate

    @property
    def manifest(self) -> StoragePath:
        return self.public_or_candidate / MANIFEST

    @property
    def statement(self) -> StoragePath:
        """Who says what about this release: a signed statement."""
        return self.public_or_candidate / STATEMENT

    @property
    def restricted(self) -> StoragePath:
        return (self.root / "restricted").as_private()

    @property
    def plan(self) -> StoragePath:
        return self.restricted / "plan.json"

    @property
    def config(self) -> StoragePath:
        return self.restricted / "config.yaml"

    @property
    def report(self) -> StoragePath:
        return self.restricted / "report.html"

    @property
    def encrypted_report(self) -> StoragePath:
        """The report, where it is kept encrypted."""
        return self.restricted / f"{self.report.name}{ENCRYPTED_SUFFIX}"

    @property
    def ledger(self) -> StoragePath:
        return self.restricted / "ledger"

    @property
    def lock(self) -> StoragePath:
        """Held by the run that works on this release, on a disk."""
        return self.restricted / ".lock"

    @property
    def staging(self) -> StoragePath:
        """Outputs of committed shards, until the release is assembled."""
        return self.restricted / "staging"

    @property
    def assembling(self) -> StoragePath:
        """Where the public half is made, in a folder for each attempt; one of them becomes ``public`` in one move."""
        return self.root / "restricted" / "assembling"  # with the modes of what is public

    @property
    def candidate(self) -> StoragePath:
        """The public half, whole, while the gate and the approvers have not let it out."""
        return self.root / "restricted" / "candidate"

    @property
    def reopened(self) -> StoragePath:
        """What stands of shards whose failed records are done again; see ``anonymizer.retry``."""
        return self.restricted / "reopened"

    @property
    def quarantine(self) -> StoragePath:
        return self.restricted / "quarantine"

    @property
    def errors(self) -> StoragePath:
        """Details of unexpected errors: they may name records, so they stay here."""
        return self.restricted / "errors"

    @property
    def audit(self) -> StoragePath:
        """What attackers found out: tables, for the custodian and the auditor."""
        return self.restricted / "audit"

    @property
    def audit_page(self) -> StoragePath:
        return self.restricted / "audit.html"

    @property
    def audit_summary(self) -> StoragePath:
        """What of the audit may be handed out: bounds, and nothing that helps an attacker."""
        return self.audit / "public.json"

    @property
    def event_log(self) -> StoragePath:
        """What happened, in order; see ``anonymizer.events``."""
        return self.restricted / "events.jsonl"

    @property
    def event_log_lock(self) -> StoragePath:
        """Held by whoever writes an event, on a disk."""
        return self.restricted / ".events.lock"

    @property
    def decision_log(self) -> StoragePath:
        """What the policy said of this release each time it was asked, signed; the last line counts."""
        return self.restricted / "decisions.intoto.jsonl"

    @property
    def erased(self) -> StoragePath:
        """Keyed digests of what was erased, here or in a release before, so that it does not come back."""
        return self.restricted / "erased.parquet"

    @property
    def purged(self) -> StoragePath:
        """What was removed when it had been kept long enough, and when."""
        return self.restricted / "purged.json"

    @property
    def revocations(self) -> StoragePath:
        """The list of what was revoked, here or in a release before, as it will stand in the public half."""
        return self.restricted / REVOCATIONS

    @property
    def shard_plans(self) -> StoragePath:
        return self.restricted / "plan"

    def shard_plan(self, shard: int) -> StoragePath:
        return self.shard_plans / f"shard-{shard:05d}.json"

    def shard_ledger(self, shard: int) -> StoragePath:
        """The ledger of one shard; the shard is committed when this file is there."""
        return self.ledger / f"shard-{shard:05d}.parquet"
