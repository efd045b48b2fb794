"""What an augmentation writes of its samples: a row for each, and their counts."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

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


@dataclass(frozen=True)
class AugmentSummary:
    """Counts only: safe to pass to a scheduler. ``read == usable + failed``, ``drawn == kept + dropped``."""

    read: int
    usable: int
    failed: int
    reasons: Mapping[str, int]  # of records that failed
    drawn: int
    kept: int
    dropped: Mapping[str, int]  # by reason
    classes: int
    most_of_one: int  # samples of the record that has most


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
    """Return what rows are sorted by to stand in the source's order."""
    return row.record, -1 if row.sample is None else row.sample


def build_table(
    rows: Sequence[Row], levels: Mapping[float, Mapping[str, Any]], constants: Mapping[str, object]
) -> pa.Table:
    """Return the manifest. ``levels``: columns of each level; ``constants``: columns that are the same in all rows."""
    records = []
    for row in rows:
        columns = {} if row.level is None else levels[row.level]
        records.append({**asdict(row), **constants, **columns, "kept": row.file is not None})
    return pa.Table.from_pylist(records, MANIFEST)


def build_listing(rows: Sequence[Row]) -> bytes:
    """Return the kept samples as the CSV that ``datasets`` reads beside images."""
    text = io.StringIO(newline="")
    label = ["label"] if any(row.label is not None for row in rows) else []
    names = ["file_name", *label, "record", "sample", "level"]
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"file_name": row.file.removeprefix("images/"), **asdict(row)} for row in rows if row.file)
    return text.getvalue().encode()


def summarize(rows: Sequence[Row], usable: Mapping[str | None, int]) -> AugmentSummary:
    """Return the counts of an augmentation; ``usable``: records that were sampled, by label."""
    failed = Counter(str(row.reason) for row in rows if row.sample is None)
    samples = [row for row in rows if row.sample is not None]
    return AugmentSummary(
        read=sum(usable.values()) + failed.total(),
        usable=sum(usable.values()),
        failed=failed.total(),
        reasons=dict(sorted(failed.items())),
        drawn=len(samples),
        kept=sum(row.file is not None for row in samples),
        dropped=dict(sorted(Counter(str(row.reason) for row in samples if row.reason).items())),
        classes=len([label for label in usable if label is not None]),
        most_of_one=max(Counter(row.record for row in samples).values(), default=0),
    )


def count_by_class(rows: Sequence[Row], originals: Mapping[str, Counter[str | None]]) -> dict[str, dict[str, int]]:
    """Return counts of originals and samples for each label of ``originals["originals"]``."""
    samples = _count_samples(rows, "label")
    return {
        label: {name: counts[label] for name, counts in originals.items()} | samples[label]
        for label in sorted(label for label in originals["originals"] if label is not None)
    }


def count_by_level(rows: Sequence[Row], levels: Mapping[float, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the columns of each level with the counts of its samples."""
    samples = _count_samples(rows, "level")
    return [{**columns, **samples[level]} for level, columns in levels.items()]


def _count_samples(rows: Sequence[Row], name: str) -> Mapping[object, dict[str, int]]:
    """Return counts of samples by a column; ``looked_at``: by the filter, ``agreed``: of these, with their label."""
    counts = defaultdict[object, dict[str, int]](lambda: dict.fromkeys(("drawn", "kept", "looked_at", "agreed"), 0))
    for row in rows:
        if row.sample is not None:
            group = counts[getattr(row, name)]
            group["drawn"] += 1
            group["kept"] += row.file is not None
            group["looked_at"] += row.agrees is not None
            group["agreed"] += row.agrees is True
    return counts
