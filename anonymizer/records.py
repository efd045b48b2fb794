"""Types shared by all rooms: entries, records, scores and decisions; plans and summaries of releases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """The end of a record."""

    RELEASED = "released"
    QUARANTINED = "quarantined"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a record was not released."""

    EMPTY = "empty"  # zero bytes
    NOT_AN_IMAGE = "not_an_image"  # recognised by no decoder
    TRUNCATED = "truncated"  # recognised by a decoder, but ends early or is damaged
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_FRAMES = "too_many_frames"
    UNSUPPORTED_MODE = "unsupported_mode"  # the meaning of the pixels is ambiguous
    UNREADABLE = "unreadable"  # listed, but its bytes cannot be read (missing, permission, I/O)
    CHANGED = "changed"  # other bytes than when the run was planned
    OUTSIDE_SOURCE = "outside_source"  # a link or path that leads out of the source
    DUPLICATE_ID = "duplicate_id"  # a second record with the same id
    BAD_METADATA = "bad_metadata"  # a label, caption or carried column that cannot be read
    NO_CONDITION = "no_condition"  # the class or prompt is missing, or unknown to the model
    NOT_FINITE = "not_finite"  # the model returned NaN or infinity
    OUT_OF_MEMORY = "out_of_memory"  # too large for the model's device, even in a batch of one
    NOT_SCORED = "not_scored"  # a configured score is missing
    UNSAFE = "unsafe"  # rejected by the model's safety checker
    NO_FACE = "no_face"  # a rule about faces, and none was detected
    TOO_CLOSE = "too_close"  # closer to its original than the policy allows
    TOO_FAR = "too_far"  # farther from its original than the policy allows: of no use
    UNCLASSIFIED = "unclassified"  # has a column that the configuration neither carries, drops nor restricts
    WITHDRAWN = "withdrawn"  # erased from an earlier release


@dataclass(frozen=True)
class Entry:
    """The location of one record; listed at planning, without reading a pixel.

    ``record_id`` is unique in a source, printable UTF-8 (other bytes and control characters percent-encoded).
    ``member`` names a part of ``uri``: a tar member, a Parquet row, a listing row. ``size`` in bytes, ``label`` and
    ``subject`` (the person) are set if the listing has them. ``problem`` marks a record that is unusable before it is
    read. ``mark`` detects a changed table: a digest of the row, or the version of its file.
    """

    record_id: str
    uri: str
    member: str | None = None
    offset: int | None = None
    size: int | None = None
    label: str | None = None
    problem: Reason | None = None
    mark: str | None = None
    subject: str | None = None


@dataclass(frozen=True)
class Record:
    """One record as read: its bytes and the configured columns, or the reason why there are none."""

    entry: Entry
    data: bytes = b""
    label: str | None = None
    caption: str | None = None
    columns: Mapping[str, object] = field(default_factory=dict)
    restricted: Mapping[str, object] = field(default_factory=dict)  # stored in the ledger only
    subject: str | None = None  # the person; stored in the ledger only
    problem: Reason | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of one output against its original; None (never NaN) for those that are not configured."""

    clip_similarity: float | None = None
    lpips: float | None = None
    identity_distance: float | None = None
    faces: int | None = None  # detected in the output


@dataclass(frozen=True)
class Decision:
    """The gate's decision about one record."""

    status: Status
    reason: str | None = None  # a ``Reason``, or what another job than a release drops an output for


@dataclass(frozen=True)
class Plan:
    """What a run will do, except for the records themselves. ``steps`` counts network calls for each image."""

    source: str
    output: str
    records: int
    shards: int
    shard_size: int
    level: float
    t_boom: int
    T: int
    log_snr: float
    sampler: str
    steps: int
    model: str
    model_digest: str
    fingerprint: str
    escalated: tuple[str, ...]  # fingerprints at the levels of policy.escalate
    key_check: str | None
    threads: int | None = None  # of the model on a CPU, on which rounding depends; None in plans of earlier versions
    id: str | None = None  # unique to this plan


@dataclass(frozen=True)
class ShardSummary:
    """Counts of one committed shard, and nothing about a record: safe to pass to a scheduler."""

    shard: int
    read: int
    released: int
    quarantined: int
    failed: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """Counts of a whole release; ``reasons`` counts the records that were not released by reason."""

    read: int
    released: int
    quarantined: int
    failed: int
    shards: int
    seconds: float
    reasons: Mapping[str, int]
