"""Where the parts of a release lie: ``public/`` is handed out, ``restricted/`` stays with the custodian."""

from __future__ import annotations

from dataclasses import dataclass

from anonymizer.place import Place


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
    def manifest(self) -> Place:
        return self.public / "manifest.parquet"

    @property
    def is_published(self) -> bool:
        """The manifest is the last thing that appears in ``public/``."""
        return self.manifest.exists()

    @property
    def is_complete(self) -> bool:
        """Published, reported, and nothing left to tidy up."""
        return self.is_published and self.report.exists() and not self.staging.exists() and not self.assembling.exists()

    @property
    def restricted(self) -> Place:
        return self.root / "restricted"

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
        return self.restricted / "assembling"

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
    def public_audit(self) -> Place:
        """What of the audit may be handed out: bounds, and nothing that helps an attacker."""
        return self.public / "audit.json"

    @property
    def plans(self) -> Place:
        return self.restricted / "plan"

    def entries(self, shard: int) -> Place:
        return self.plans / f"shard-{shard:05d}.json"

    def shard(self, shard: int) -> Place:
        """The ledger of one shard; the shard is committed when this file is there."""
        return self.ledger / f"shard-{shard:05d}.parquet"
