"""Types shared by all rooms: entries, records, scores and decisions; plans and summaries of releases."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

STRICT = {"extra": "forbid", "strict": True}  # where pydantic reads a dataclass from a file


class Status(StrEnum):
    """The end of a record."""

    RELEASED = "released"
    QUARANTINED = "quarantined"
    FAILED = "failed"
    WAITING = "waiting"


class Reason(StrEnum):
    """Why a record was not released; ``meaning`` says so in a sentence, for reports."""

    _value_: str
    meaning: str

    def __new__(cls, value: str, meaning: str = "") -> Reason:
        reason = str.__new__(cls, value)
        reason._value_, reason.meaning = value, meaning
        return reason

    EMPTY = "empty", "There are no bytes."
    NOT_AN_IMAGE = "not_an_image", "No decoder knows these bytes."
    TRUNCATED = "truncated", "The picture ends early or is damaged."
    TOO_MANY_BYTES = "too_many_bytes", "Larger than source.limits.max_bytes."
    TOO_MANY_PIXELS = "too_many_pixels", "Larger than source.limits.max_pixels, or than the output format can hold."
    TOO_MANY_FRAMES = "too_many_frames", "More frames than source.limits.max_frames."
    UNSUPPORTED_MODE = "unsupported_mode", "The meaning of its pixels is ambiguous."
    UNREADABLE = "unreadable", "Listed, but its bytes cannot be read: missing, no permission, or an I/O error."
    CHANGED = "changed", "Its bytes have changed since the run was planned."
    OUTSIDE_SOURCE = "outside_source", "A link or path that leads out of the source."
    DUPLICATE_ID = "duplicate_id", "A second record with the same id."
    BAD_METADATA = (
        "bad_metadata",
        "A label, caption or carried column cannot be read, or the file that holds it is missing.",
    )
    NO_SUBJECT = "no_subject", "source.subject is set, and nothing says who it is: it could not be erased by person."
    NO_CONDITION = "no_condition", "Its class or prompt is missing, or unknown to the model."
    NOT_FINITE = "not_finite", "The model returned NaN or infinity."
    OUT_OF_MEMORY = "out_of_memory", "Too large for the model's device, even in a batch of one."
    NOT_SCORED = "not_scored", "A configured score is missing; the output was quarantined."
    UNSAFE = "unsafe", "The model's own safety checker rejects the output; it was quarantined."
    NO_FACE = "no_face", "The policy bounds faces, and none was detected; the output was quarantined."
    TOO_CLOSE = "too_close", "Closer to its original than the policy allows; the output was quarantined."
    TOO_FAR = "too_far", "Farther from its original than the policy allows; the output was quarantined."
    TOO_FEW_ALIKE = "too_few_alike", "Fewer than boomerang.k alike: it waits for more, and nothing was made of it."
    UNCLASSIFIED = "unclassified", "It has a column that the configuration neither carries, drops nor restricts."
    WITHDRAWN = "withdrawn", "Erased from an earlier release."


def normalize_subject(name: str) -> str:
    """Return the one spelling under which a person is compared: canonical caseless (NFC), without outer space.

    This is Unicode's canonical caseless matching (definition D145). Inner space and accents count.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold()).strip()


def normalize_record_id(record_id: str) -> str:
    """Return the one spelling under which a record's id is compared: NFC; file systems differ in it."""
    return unicodedata.normalize("NFC", record_id)


@dataclass(frozen=True)
class Entry:
    """The location of one record; listed at planning, without reading a pixel.

    ``record_id`` is unique in a source, printable UTF-8 (other bytes and control characters percent-encoded).
    ``member`` names a part of ``uri``: a tar member, a Parquet row, a listing row. ``size`` in bytes, ``label`` and
    ``subject`` (the person) are set if the listing has them. ``problem`` marks a record that is unusable before it is
    read. ``mark`` detects a changed table: a digest of the row, or the version of its file. ``group`` is the keyed id
    of its group, all of whose members stand together in one shard.
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
    group: str | None = None


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
class CeilingRate:
    """The highest rate at which any attacker can name the right one of ``gallery`` candidates, with a 95 % interval."""

    __pydantic_config__ = STRICT

    value: float
    low: float
    high: float
    gallery: int


@dataclass(frozen=True)
class MembershipCeiling:
    """The highest true-positive rate of any attacker who tells which of two people an output was made from.

    For the nearest other person, the median pair and the pair that is least alike.
    """

    __pydantic_config__ = STRICT

    nearest: float
    median: float
    worst: float


@dataclass(frozen=True)
class Ceilings:
    """What no attacker on outputs can pass, whatever it computes; see ``metrics.stats.ceilings``.

    For ``outputs`` of each original, or of each mean of ``k``. Linkage is to the right original by the first guess, by
    five, or by the most probable one-to-one matching; ``knows_others`` by an attacker who knows all other members of a
    group, None for k = 1; membership at a false-positive rate of 1 % and 0.1 %. ``caveats``: what attackers may have
    besides pictures that these figures do not cover.
    """

    __pydantic_config__ = STRICT

    k: int
    outputs: int
    linkage_rank1: CeilingRate
    linkage_rank5: CeilingRate
    linkage_assigned: CeilingRate
    knows_others: CeilingRate | None
    membership_tpr_at_1: MembershipCeiling
    membership_tpr_at_01: MembershipCeiling
    caveats: tuple[str, ...] = ()


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
    ceilings: Ceilings | None = None
    no_ceiling: tuple[str, ...] = ()  # why there is none
    accept_deterministic: str | None = None  # why a sampler that draws no noise on its way back was accepted
    inherited: Mapping[str, str] = field(default_factory=dict)  # SHA-256 of each file that was taken over, by name
    shard_records: tuple[int, ...] = ()  # of each shard, with groups; else they hold ``shard_size``, but the last


@dataclass(frozen=True)
class ShardSummary:
    """Counts of one committed shard, and nothing about a record: safe to pass to a scheduler."""

    shard: int
    read: int
    released: int
    quarantined: int
    failed: int
    seconds: float
    waiting: int = 0
    least_group: int | None = None
    images: int = 0  # released; fewer than records where groups share them


@dataclass(frozen=True)
class Summary:
    """Counts of a whole release; ``reasons`` counts the records that were not released by reason.

    ``least_group``: the fewest originals behind a released output; None where nothing was released.
    """

    read: int
    released: int
    quarantined: int
    failed: int
    shards: int
    seconds: float
    reasons: Mapping[str, int]
    waiting: int = 0
    least_group: int | None = None
    images: int = 0
