"""Names and paths of a release's two halves: ``public/`` is handed out, ``restricted/`` stays with the custodian."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from anonymizer.storage.path import StoragePath

# Files of the public half.
MANIFEST, STATEMENT = "manifest.parquet", "release.intoto.jsonl"
REVOCATIONS, AUDIT = "revocations.intoto.jsonl", "audit.json"
IMAGES = "images"  # the folder of images that are files of their own
IMAGE_METADATA = "metadata.jsonl"  # of images in folders, for readers that know no manifest

ENCRYPTED_SUFFIX = ".age"  # follows the name of a file that is encrypted to recipients


class SealKey(Protocol):
    """The custodian's key, as far as seals need it: ``crypto.custodian_key.CustodianKey``."""

    @property
    def is_persistent(self) -> bool: ...
    @property
    def check_value(self) -> str | None: ...
    def derive(self, purpose: str, *parts: bytes) -> bytes: ...


class RestrictedPath:
    """An attribute of ``Release`` that is a path in its restricted half."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, release: Release, owner: type[Release]) -> StoragePath:
        return release.restricted / self.name


@dataclass(frozen=True)
class Release:
    """The paths of a release below ``root``.

    With the custodian's key, files of the restricted half are sealed as they are written and checked as they are read
    (``crypto.seal``). Without it they are read for display, and nothing of them may be signed or published.
    """

    root: StoragePath
    key: SealKey | None = field(default=None, repr=False)

    plan = RestrictedPath("plan.json")
    shard_plans = RestrictedPath("plan")
    config = RestrictedPath("config.yaml")
    ledger = RestrictedPath("ledger")
    lock = RestrictedPath(".lock")  # held by the run that works on this release; see storage.run_lock
    features = RestrictedPath("features")  # of originals, while groups are planned; see release.feature_cache
    staging = RestrictedPath("staging")  # outputs of committed shards, until the release is assembled
    reopened = RestrictedPath("reopened")  # earlier ledgers of shards whose failed records are retried
    quarantine = RestrictedPath("quarantine")
    errors = RestrictedPath("errors")  # details of unexpected errors, which may name records
    report = RestrictedPath("report.html")
    encrypted_report = RestrictedPath(f"report.html{ENCRYPTED_SUFFIX}")
    audit = RestrictedPath("audit")  # tables of the audit's results
    audit_page = RestrictedPath("audit.html")
    audit_summary = RestrictedPath("audit/public.json")  # the bounds that may be published
    event_log = RestrictedPath("events.jsonl")
    event_log_lock = RestrictedPath(".events.lock")
    decision_log = RestrictedPath("decisions.intoto.jsonl")  # signed; the last decision counts
    erased = RestrictedPath("erased.parquet")  # keyed digests of what was erased here or in earlier releases
    predecessors = RestrictedPath("before.json")  # URIs of all releases before this one, the latest first
    purged = RestrictedPath("purged.json")  # what was deleted at the end of its retention period, and when
    revocations = RestrictedPath(REVOCATIONS)  # here and in earlier releases, as in the public half later

    @property
    def sealing_key(self) -> SealKey | None:
        """The key that files are sealed and checked with; None without one, or with one that is thrown away."""
        return self.key if self.key is not None and self.key.is_persistent else None

    @classmethod
    def at(cls, uri: str, key: SealKey | None = None) -> Release:
        return cls(StoragePath.from_uri(uri), key)

    @property
    def inherited(self) -> tuple[StoragePath, ...]:
        """Files of the restricted half that come from earlier releases, and do not change once the plan is written."""
        return self.erased, self.predecessors, self.revocations

    @property
    def public(self) -> StoragePath:
        return self.root / "public"

    @property
    def restricted(self) -> StoragePath:
        return (self.root / "restricted").as_private()

    @property
    def assembling(self) -> StoragePath:
        """Attempts to make the public half, a folder each; with the file modes of ``public``, which one becomes."""
        return self.root / "restricted" / "assembling"

    @property
    def candidate(self) -> StoragePath:
        """The complete public half until the policy and the approvers allow its publication."""
        return self.root / "restricted" / "candidate"

    @property
    def public_or_candidate(self) -> StoragePath:
        return self.public if self.is_published else self.candidate

    @property
    def manifest(self) -> StoragePath:
        return self.public_or_candidate / MANIFEST

    @property
    def statement(self) -> StoragePath:
        return self.public_or_candidate / STATEMENT

    def shard_plan(self, shard: int) -> StoragePath:
        return self.shard_plans / f"shard-{shard:05d}.json"

    def shard_ledger(self, shard: int) -> StoragePath:
        """Return the ledger file of a shard, whose existence commits the shard."""
        return self.ledger / f"shard-{shard:05d}.parquet"

    @property
    def is_published(self) -> bool:
        """Whether the manifest, which is written last, is in ``public/``."""
        return (self.public / MANIFEST).exists()

    @property
    def is_assembled(self) -> bool:
        """Whether the public half is complete, published or not."""
        return self.is_published or (self.candidate / MANIFEST).exists()

    @property
    def is_complete(self) -> bool:
        """Whether the release is published, reported (or purged since), and holds no intermediate files."""
        intermediate = (self.staging, self.assembling, self.candidate)
        reports = (self.report, self.encrypted_report, self.purged)
        return (
            self.is_published
            and any(path.exists() for path in reports)
            and not any(path.exists() for path in intermediate)
        )
