"""The types that every room hands on: where a record lies, what was read, what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Status(StrEnum):
    """How a record ended; there is no fourth way."""

    RELEASED = "released"
    QUARANTINED = "quarantined"
    FAILED = "failed"


class Reason(StrEnum):
    """Why a record was not released."""

    EMPTY = "empty"  # zero bytes
    NOT_AN_IMAGE = "not_an_image"  # no decoder knows it
    TRUNCATED = "truncated"  # a decoder knows it, and it ends early or is damaged
    TOO_MANY_BYTES = "too_many_bytes"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_MANY_FRAMES = "too_many_frames"
    UNSUPPORTED_MODE = "unsupported_mode"  # pixels whose meaning we would have to guess
    UNREADABLE = "unreadable"  # listed, but the bytes cannot be had (missing, permission, I/O)
    CHANGED = "changed"  # not the bytes that were there when the run was planned
    OUTSIDE_SOURCE = "outside_source"  # a link or a path that leaves the source
    DUPLICATE_ID = "duplicate_id"  # a second record of the same id
    BAD_METADATA = "bad_metadata"  # a label, caption or carried column that cannot be read
    NO_CONDITION = "no_condition"  # the class or prompt that the model should be told is missing, or unknown to it
    NOT_FINITE = "not_finite"  # the model returned NaN or infinity
    OUT_OF_MEMORY = "out_of_memory"  # larger than what the model's device has room for, even alone
    NOT_SCORED = "not_scored"  # a score that the run asks for is missing
    UNSAFE = "unsafe"  # the model's own safety checker objects to the output
    NO_FACE = "no_face"  # the policy asks about faces, and none was detected
    TOO_CLOSE = "too_close"  # nearer to its original than the policy allows
    TOO_FAR = "too_far"  # further from it than the policy allows: of no use
    UNCLASSIFIED = "unclassified"  # a column that the configuration neither carries, drops nor restricts
    WITHDRAWN = "withdrawn"  # erased from an earlier release


@dataclass(frozen=True)
class Entry:
    """Where one record lies; listed at planning, without reading a pixel.

    ``record_id`` is unique in a source, printable UTF-8 (other bytes and control characters percent-encoded).
    ``member`` names a part inside ``uri``: a tar member, a Parquet row, a listing row. ``size`` in bytes where the
    listing knows it. ``problem`` marks a record that is known to be unusable before it is read. ``mark`` is what tells
    a row of a table from one that has taken its place since: a digest of the row, or the version of its file.
    ``subject`` is whose picture it is, where the listing knows it.
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
    """One record as read: its bytes and what the configuration asked to carry, or the reason why there is nothing."""

    entry: Entry
    data: bytes = b""
    label: str | None = None
    caption: str | None = None
    columns: Mapping[str, object] = field(default_factory=dict)
    restricted: Mapping[str, object] = field(default_factory=dict)  # kept in the ledger, and nowhere else
    subject: str | None = None  # whose picture it is; kept in the ledger, and nowhere else
    problem: Reason | None = None


@dataclass(frozen=True)
class Scores:
    """How far one output is from its original. ``None``: not asked for. NaN never means 'not asked for'."""

    clip_similarity: float | None = None
    lpips: float | None = None
    identity_distance: float | None = None
    faces: int | None = None  # detected in the output


@dataclass(frozen=True)
class Decision:
    """What the gate says of one record."""

    status: Status
    reason: Reason | None = None


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
