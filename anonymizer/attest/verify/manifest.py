"""Check of a public manifest: its columns and their types, its counts, and where its rows say that images lie."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import pyarrow as pa
from pyarrow import types

from anonymizer.attest.predicate import ReleasePredicate
from anonymizer.data.sinks.folder import label_folder
from anonymizer.schema import (
    BIN_SUFFIX,
    GROUP_TYPES,
    MANIFEST_TYPES,
    NULLABLE_COLUMNS,
    OWN_TYPES,
    PRIVATE_COLUMNS,
    SCORE_TYPES,
)
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST
from anonymizer.storage.parquet import TableLike

ALLOWED_METADATA = {b"metric_models"}
PLAIN_TYPES = (types.is_string, types.is_integer, types.is_floating, types.is_boolean, types.is_null)
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
OUTPUT_ID_PATTERN = re.compile(r"[0-9a-f]{32}")
PART_PATTERN = re.compile(r"data/part-\d{5,}\.(tar|parquet)")


def passthrough_types(manifest: TableLike) -> dict[str, pa.DataType]:
    """Return names and types of the columns that come from the source."""
    return {field.name: field.type for field in manifest.schema if field.name not in OWN_TYPES}


def structure_errors(manifest: TableLike) -> Iterator[str]:
    """Yield a line on each column that is missing, has another type or has nulls, so that rows cannot be read.

    Reads the whole file once. A damaged one can raise any error.
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
    for name, expected in OWN_TYPES.items():
        if name in names and manifest.schema.field(name).type != expected:
            yield f"{MANIFEST}: {name} is {manifest.schema.field(name).type}, and should be {expected}"
        elif name in MANIFEST_TYPES | GROUP_TYPES and name not in NULLABLE_COLUMNS and nulls[name]:
            yield f"{MANIFEST}: {name} is missing in some rows"
    for name, kind in passthrough_types(manifest).items():
        if not any(is_type(kind) for is_type in PLAIN_TYPES):
            yield f"{MANIFEST}: {name} is {kind}, which no column of a release is"


def column_errors(manifest: TableLike, predicate: ReleasePredicate) -> Iterator[str]:
    """Yield a line on columns that were not signed, and on columns and metadata that must not be public."""
    names, mode = manifest.column_names, predicate.manifest.public_scores
    if names != list(predicate.manifest.columns):
        yield f"{MANIFEST}: has other columns than were signed"
    if private := sorted(PRIVATE_COLUMNS.intersection(names)):
        yield f"{MANIFEST}: has private columns: {', '.join(private)}"
    is_binned = {name: name.endswith(BIN_SUFFIX) for name in SCORE_TYPES if name in names}
    if extra := [name for name, binned in is_binned.items() if mode != ("binned" if binned else "exact")]:
        yield f"{MANIFEST}: has scores that it was not meant to have ({mode}): {', '.join(extra)}"
    yield from _group_errors(manifest, predicate)
    fields_metadata = {key for field in manifest.schema for key in field.metadata or {}}
    if set(manifest.schema.metadata or {}) - ALLOWED_METADATA or fields_metadata - {b"PARQUET:field_id"}:
        yield f"{MANIFEST}: holds more than its rows, and the models that scored them"


def _group_errors(manifest: TableLike, predicate: ReleasePredicate) -> Iterator[str]:
    """Yield a line where the manifest gives another k than was signed, and where fewer records share its images."""
    groups, counts = predicate.groups, predicate.counts
    if ("k" in manifest.column_names) != (groups is not None):
        yield f"{MANIFEST}: {'has no k' if groups else 'has k'}, and {'groups' if groups else 'none'} were signed"
    elif groups is not None:
        if any(row["k"] != groups.k for row in _iter_rows(manifest, ["k"])):
            yield f"{MANIFEST}: has another k than was signed ({groups.k})"
        if groups.outputs == "one" and counts.released < groups.k * counts.released_images:
            count = f"{counts.released:,} records share {counts.released_images:,} images"
            yield f"counts: {count}, fewer than {groups.k} each"


def count_errors(manifest: TableLike, predicate: ReleasePredicate) -> Iterator[str]:
    """Yield a line on counts that were not signed or do not add up, and on ids out of order."""
    counts, signed = predicate.counts, predicate.manifest.rows
    if len(manifest) != signed or len(manifest) != counts.released_images:
        yield f"{MANIFEST}: has {len(manifest):,} rows, and {signed:,} were signed"
    if counts.read != counts.released + counts.quarantined + counts.failed + counts.waiting:
        yield f"counts: {counts.read:,} were read, and not as many accounted for"
    ids = (row["output_id"] for row in _iter_rows(manifest, ["output_id"]))
    if any(output_id >= following for output_id, following in pairwise(ids)):
        yield f"{MANIFEST}: rows are not in the order of their ids, or an id stands twice"


def name_errors(manifest: TableLike) -> Iterator[str]:
    """Yield a line on each row whose image does not lie where its id and label say; a name could carry information."""
    part_rows = Counter[str]()
    for row in _iter_rows(manifest, ["output_id", "file", "member", "format", "label"]):
        name = f"{row['output_id']}{SUFFIXES.get(row['format'])}"
        part = PART_PATTERN.fullmatch(row["file"])
        if part:
            is_valid = row["member"] == (str(part_rows[row["file"]]) if part[1] == "parquet" else name)
            part_rows[row["file"]] += 1
        else:
            folder = label_folder(row["label"]) if row["label"] else row["output_id"][:2]
            is_valid = row["member"] is None and row["file"] == f"images/{folder}/{name}"
        if not is_valid or not OUTPUT_ID_PATTERN.fullmatch(row["output_id"]):
            yield f"{row['file']}: is not where the picture {row['output_id']} should lie"


def _iter_rows(manifest: TableLike, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for batch in manifest.select(columns).to_batches(max_chunksize=parquet.BATCH_ROWS):
        yield from batch.to_pylist()
