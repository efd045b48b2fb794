"""The manifest of a public half: which columns it has, of which types, and how its rows hang together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa

from anonymizer.attest.predicate import ReleasePredicate
from anonymizer.data.sinks.folder import label_folder
from anonymizer.schema import BIN_SUFFIX, MANIFEST_TYPES, NULLABLE_COLUMNS, PRIVATE_COLUMNS, SCORE_TYPES
from anonymizer.schema import SCORE_COLUMNS as SCORES
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST
from anonymizer.storage.parquet import TableLike

ALLOWED_METADATA = {b"metric_models"}
# Columns of the ledger, and what else must never be public under any name of its own.
PLAIN_TYPES: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null,
)  # fmt: skip
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
OUTPUT_ID_PATTERN = re.compile(r"[0-9a-f]{32}")
PART_PATTERN = re.compile(r"data/part-\d{5,}\.(tar|parquet)")


def passthrough_types(manifest: TableLike) -> Mapping[str, pa.DataType]:
    """Names and types of the columns that come from the source."""
    return {field.name: field.type for field in manifest.schema if field.name not in MANIFEST_TYPES | SCORE_TYPES}


def structure_errors(manifest: TableLike) -> Iterator[str]:
    """Why the rows cannot be looked at: columns that are missing, of another type, or have gaps.

    Reads all of it once. Raises anything at all where it is no Parquet file.
    """
    names, nulls = manifest.column_names, Counter[str]()
    for batch in manifest.to_batches(max_chunksize=parquet.BATCH_ROWS):
        batch.validate(full=True)
        nulls.update({name: column.null_count for name, column in zip(names, batch.columns, strict=True)})
    if missing := [name for name in MANIFEST_TYPES if name not in names]:
        yield f"{MANIFEST}: has no {', '.join(missing)}"
    if len(set(names)) < len(names):
        yield f"{MANIFEST}: has two columns of one name"
        return
    for name, kind in (MANIFEST_TYPES | SCORE_TYPES).items():
        if name in names and manifest.schema.field(name).type != kind:
            yield f"{MANIFEST}: {name} is {manifest.schema.field(name).type}, and should be {kind}"
        elif name in names and name in MANIFEST_TYPES and name not in NULLABLE_COLUMNS and nulls[name]:
            yield f"{MANIFEST}: {name} is missing in some rows"
    for name, kind in passthrough_types(manifest).items():
        if not any(is_kind(kind) for is_kind in PLAIN_TYPES):
            yield f"{MANIFEST}: {name} is {kind}, which no column of a release is"


def column_errors(manifest: TableLike, said: ReleasePredicate) -> Iterator[str]:
    """Columns that were not signed, and those that must not be public."""
    names = manifest.column_names
    if names != list(said.manifest.columns):
        yield f"{MANIFEST}: has other columns than were signed"
    if private := sorted(PRIVATE_COLUMNS.intersection(names)):
        yield f"{MANIFEST}: has private columns: {', '.join(private)}"
    allowed = {"none": [], "binned": [f"{name}{BIN_SUFFIX}" for name in SCORES], "exact": list(SCORES)}
    asked = said.manifest.public_scores
    if more := [name for name in SCORE_TYPES if name in names and name not in allowed[asked]]:
        yield f"{MANIFEST}: has scores that it was not meant to have ({asked}): {', '.join(more)}"
    if set(manifest.schema.metadata or {}) - ALLOWED_METADATA or any(
        _has_extra_metadata(field) for field in manifest.schema
    ):
        yield f"{MANIFEST}: holds more than its rows, and the models that scored them"


def _has_extra_metadata(field: pa.Field) -> bool:
    return bool(set(field.metadata or {}) - {b"PARQUET:field_id"})


def count_errors(manifest: TableLike, said: ReleasePredicate) -> Iterator[str]:
    counts = said.counts
    if len(manifest) != said.manifest.rows or len(manifest) != counts.released:
        yield f"{MANIFEST}: has {len(manifest):,} rows, and {said.manifest.rows:,} were signed"
    if counts.read != counts.released + counts.quarantined + counts.failed:
        yield f"counts: {counts.read:,} were read, and not as many accounted for"
    ids = (
        output_id for batch in _iter_batches(manifest, ["output_id"]) for output_id in batch["output_id"].to_pylist()
    )
    if any(one >= other for one, other in pairwise(ids)):
        yield f"{MANIFEST}: rows are not in the order of their ids, or an id stands twice"


def name_errors(manifest: TableLike) -> Iterator[str]:
    """Rows whose picture does not lie where its id and label say, so that a name cannot tell anything else."""
    at: dict[str, int] = {}
    columns = ["output_id", "file", "member", "format", "label"]
    for row in (row for batch in _iter_batches(manifest, columns) for row in batch.to_pylist()):
        name = f"{row['output_id']}{SUFFIXES.get(row['format'])}"
        part = PART_PATTERN.fullmatch(row["file"])
        if part and part[1] == "parquet":
            at[row["file"]] = at.get(row["file"], -1) + 1
            fits = row["member"] == str(at[row["file"]])
        elif part:
            fits = row["member"] == name
        else:
            fits = row["member"] is None and row["file"] == f"images/{_image_folder(row)}/{name}"
        if not fits or not OUTPUT_ID_PATTERN.fullmatch(row["output_id"]):
            yield f"{row['file']}: is not where the picture {row['output_id']} should lie"


def _iter_batches(manifest: TableLike, columns: Sequence[str]) -> Iterable[pa.RecordBatch]:
    return manifest.select(columns).to_batches(max_chunksize=parquet.BATCH_ROWS)


def _image_folder(row: Mapping[str, Any]) -> str:
    return label_folder(row["label"]) if row["label"] else row["output_id"][:2]
