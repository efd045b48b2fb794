"""What an augmentation writes of its samples: a row for each, and their counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

Row = dict[str, Any]  # columns of a sample, or of a record that has none; those that are missing are null

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


def build_table(rows: Sequence[Row]) -> pa.Table:
    """Return the manifest: rows in the source's order."""
    ordered = sorted(rows, key=lambda row: (row["record"], -1 if row.get("sample") is None else row["sample"]))
    return pa.Table.from_pylist([row | {"kept": "file" in row} for row in ordered], MANIFEST)


def select_samples(table: pa.Table) -> pd.DataFrame:
    """Return the rows of a manifest that are samples."""
    samples: pd.DataFrame = table.filter(table["sample"].is_valid()).to_pandas()
    return samples.astype({"agrees": "boolean", "sample": int})


def build_listing(samples: pd.DataFrame) -> bytes:
    """Return the kept samples as the CSV that ``datasets`` reads beside images."""
    label = ["label"] if samples["label"].notna().any() else []
    names = ["file_name", *label, "record", "sample", "level"]
    kept = samples[samples["kept"]].assign(file_name=lambda kept: kept["file"].str.removeprefix("images/"))
    text: str = kept[names].to_csv(index=False, lineterminator="\n")
    return text.encode()


def summarize(table: pa.Table, samples: pd.DataFrame, usable: Mapping[str | None, int]) -> AugmentSummary:
    """Return the counts of an augmentation; ``usable``: records that were sampled, by label."""
    failed = Counter(table.filter(table["sample"].is_null())["reason"].to_pylist())
    return AugmentSummary(
        read=sum(usable.values()) + failed.total(),
        usable=sum(usable.values()),
        failed=failed.total(),
        reasons=dict(sorted(failed.items())),
        drawn=len(samples),
        kept=int(samples["kept"].sum()),
        dropped=dict(sorted(Counter(samples["reason"].dropna()).items())),
        classes=len(usable.keys() - {None}),
        most_of_one=max(Counter(samples["record"]).values(), default=0),
    )


def count_by(samples: pd.DataFrame, column: str, values: Sequence[object]) -> dict[Any, dict[str, int]]:
    """Return counts of samples for each value of a column: ``looked_at`` by the filter, of these ``agreed``."""
    groups = samples.groupby(column)
    kept, agrees = groups["kept"], groups["agrees"]
    columns = {"drawn": groups.size(), "kept": kept.sum(), "looked_at": agrees.count(), "agreed": agrees.sum()}
    counts = pd.DataFrame(columns).reindex(list(values), fill_value=0).astype(int)
    return dict(zip(values, counts.to_dict("records"), strict=True))  # type: ignore[arg-type]
