"""What an augmentation writes about its samples: a row for each, and their counts."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

Number = float | int


@dataclass(frozen=True)
class AugmentSummary:
    """Counts only: safe to hand to a scheduler. ``read == usable + failed``, ``drawn == kept + dropped``."""

    read: int
    usable: int
    failed: int
    reasons: Mapping[str, int]  # of those that failed
    drawn: int
    kept: int
    dropped: Mapping[str, int]  # by reason
    classes: int
    most_of_one: int  # samples of that record which has most


@dataclass(frozen=True, slots=True)
class Row:
    """One sample, or a record that has none since it cannot be used; ``reason`` says why there is no file."""

    record: int
    record_id: str
    label: str | None
    sample: int | None = None
    level: float | None = None
    file: str | None = None
    reason: str | None = None
    predicted: str | None = None
    agrees: bool | None = None


def source_order(row: Row) -> tuple[int, int]:
    """Where a row stands: in the source's order."""
    return row.record, -1 if row.sample is None else row.sample


def build_table(
    rows: Sequence[Row], levels: Mapping[float, Mapping[str, Number]], constants: Mapping[str, object]
) -> pa.Table:
    """The manifest. ``levels``: t_boom, log_snr and steps of each level. ``same``: what is the same for all rows."""
    columns: dict[str, list[object]] = {name: [getattr(row, name) for row in rows] for name in Row.__slots__}
    columns["kept"] = [row.file is not None for row in rows]
    for name in ("t_boom", "log_snr", "steps"):
        columns[name] = [None if row.level is None else levels[row.level][name] for row in rows]
    columns |= {name: [value] * len(rows) for name, value in constants.items()}
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in MANIFEST}, MANIFEST)


def build_listing(rows: Sequence[Row]) -> bytes:
    """What was kept, as the CSV that ``datasets`` reads beside pictures."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    has_labels = any(row.label is not None for row in rows)
    writer.writerow(["file_name", *(["label"] if has_labels else []), "record", "sample", "level"])
    for row in rows:
        if row.file is not None:
            label = [row.label] if has_labels else []
            writer.writerow([row.file.removeprefix("images/"), *label, row.record, row.sample, row.level])
    return text.getvalue().encode()


def summarize(rows: Sequence[Row], usable: Mapping[str | None, int]) -> AugmentSummary:
    """``usable``: records of each label, or without one, that samples were drawn of."""
    failed = Counter(str(row.reason) for row in rows if row.sample is None)
    drawn = [row for row in rows if row.sample is not None]
    return AugmentSummary(
        read=sum(usable.values()) + failed.total(),
        usable=sum(usable.values()),
        failed=failed.total(),
        reasons=dict(sorted(failed.items())),
        drawn=len(drawn),
        kept=sum(row.file is not None for row in drawn),
        dropped=dict(sorted(Counter(str(row.reason) for row in drawn if row.reason).items())),
        classes=len([label for label in usable if label is not None]),
        most_of_one=max(Counter(row.record for row in drawn).values(), default=0),
    )


def count_by_class(rows: Sequence[Row], originals: Mapping[str, Mapping[str | None, int]]) -> dict[str, dict[str, int]]:
    """``originals``: counts of them by label, under their names; the labels are those of the first."""
    found: dict[str, list[Row]] = {label: [] for label in next(iter(originals.values())) if label is not None}
    for row in rows:
        if row.sample is not None and row.label is not None:
            found[row.label].append(row)
    return {
        label: {name: counts.get(label, 0) for name, counts in originals.items()} | _counts(found[label])
        for label in sorted(found)
    }


def count_by_level(rows: Sequence[Row], levels: Mapping[float, Mapping[str, Number]]) -> list[dict[str, Number]]:
    found: dict[float, list[Row]] = {level: [] for level in levels}
    for row in rows:
        if row.level is not None:
            found[row.level].append(row)
    return [{"level": level, **levels[level], **_counts(some)} for level, some in found.items()]


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    """``looked_at``: by the filter; ``agreed``: of these, with their label."""
    return {
        "drawn": len(rows),
        "kept": sum(row.file is not None for row in rows),
        "looked_at": sum(row.agrees is not None for row in rows),
        "agreed": sum(row.agrees is True for row in rows),
    }


MANIFEST = pa.schema(
    [
        ("file", pa.string()),
        ("record", pa.int64()),
        ("record_id", pa.string()),
        ("label", pa.string()),
        ("sample", pa.int32()),
        ("level", pa.float64()),
        ("t_boom", pa.int32()),
        ("log_snr", pa.float64()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("predicted", pa.string()),
        ("agrees", pa.bool_()),
        ("model", pa.string()),
        ("model_digest", pa.string()),
        ("sampler", pa.string()),
        ("steps", pa.int32()),
        ("seed", pa.int64()),
    ]
)
