"""Tar and Parquet parts, taken apart: their pictures, in order, and whatever else they hold.

A part is just what this package writes, or something is wrong with it: a header, a column or a few bytes more could
tell anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from anonymizer.attest.verify.image import IMAGE_COLUMNS, ManifestRow
from anonymizer.attest.verify.inventory import open_file
from anonymizer.attest.verify.manifest import SUFFIXES, passthrough_types
from anonymizer.data.sinks.parquet import BASE_COLUMNS, IMAGE_TYPE
from anonymizer.storage.path import StoragePath

BLOCK_SIZE = 2**20
ALLOWED_METADATA = {b"huggingface"}  # which says the types of the columns
SIDE_FILES = (".json", ".cls", ".txt")
DIGEST_MISMATCH = "is not what was signed"
ImageOrProblem = (
    tuple[ManifestRow, bytes] | str
)  # a picture with its row of the manifest, or what is wrong with the part


def read_part(folder: StoragePath, name: str, signed: str, rows: pa.Table) -> Iterator[ImageOrProblem]:
    """What lies in a part. ``signed``: its SHA-256; ``rows``: those of the manifest whose pictures it should hold."""
    seen = 0
    try:
        with open_file(folder, name) as raw:
            found = _read_tar(raw, signed, rows) if name.endswith(".tar") else _read_parquet(raw, signed, rows)
            for one in found:
                seen += not isinstance(one, str)
                yield one if not isinstance(one, str) else f"{name}: {one}"
    except Exception:  # hostile bytes raise anything at all in whoever reads them
        yield f"{name}: cannot be read as it was written"
    if seen < len(rows):
        yield f"{name}: {len(rows) - seen:,} pictures of the manifest could not be looked at"


class HashingReader:
    """A file that is read once, from its beginning to its end, and what that comes to."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.remaining = raw.seek(0, os.SEEK_END)
        self.raw, self.sha256 = raw, hashlib.sha256()
        raw.seek(0)

    def read(self, count: int) -> bytes:
        """Just as many bytes. ValueError where there are no more than fewer."""
        if not 0 <= count <= self.remaining:
            raise ValueError("ends early")
        data = self.raw.read(count)
        self.sha256.update(data)
        self.remaining -= count
        return data

    def read_rest(self) -> Iterator[bytes]:
        while self.remaining:
            yield self.read(min(BLOCK_SIZE, self.remaining))


def _read_tar(raw: IO[bytes], signed: str, rows: pa.Table) -> Iterator[ImageOrProblem]:
    """Read once: the digest is known when all has been looked at."""
    file = HashingReader(raw)
    pictures = {row["member"]: row for row in rows.select(IMAGE_COLUMNS).to_pylist()}
    beside = {row["output_id"]: row for row in rows.select(["output_id", "label", "caption"]).to_pylist()}
    columns, seen = {"label", *passthrough_types(rows)}, set[str]()
    for name, data in _read_members(file):
        stem, suffix = os.path.splitext(name)
        if name in seen:
            yield "holds two members of one name"
        elif name in pictures:
            yield pictures[name], data
        elif stem not in beside or not _matches_row(suffix, data, beside[stem], columns):
            yield "holds a member that the manifest does not speak of"
        seen.add(name)
    if file.sha256.hexdigest() != signed:
        yield DIGEST_MISMATCH


def _read_members(file: HashingReader) -> Iterator[tuple[str, bytes]]:
    """Names and contents, in headers that say nothing else. ValueError or tarfile.HeaderError for any other tar."""
    while any(header := file.read(tarfile.BLOCKSIZE)):
        told = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        plain = tarfile.TarInfo(told.name)
        plain.size = told.size
        data, padding = file.read(told.size), file.read(-told.size % tarfile.BLOCKSIZE)
        if header != plain.tobuf(tarfile.USTAR_FORMAT) or any(padding):
            raise ValueError("says more than names")
        yield told.name, data
    if any(any(block) for block in file.read_rest()):
        raise ValueError("goes on after its end")


def _matches_row(suffix: str, data: bytes, row: ManifestRow, columns: set[str]) -> bool:
    """Whether what stands beside a picture says what the manifest says, and no more."""
    if suffix == ".json":
        told = json.loads(data)
        return set(told) <= columns and told.get("label") == row["label"]
    return suffix in SIDE_FILES and data.decode() == row["label" if suffix == ".cls" else "caption"]


def _read_parquet(raw: IO[bytes], signed: str, rows: pa.Table) -> Iterator[ImageOrProblem]:
    file = HashingReader(raw)
    for _ in file.read_rest():
        pass
    if file.sha256.hexdigest() != signed:
        yield DIGEST_MISMATCH
        return
    part = pq.ParquetFile(raw, pre_buffer=False)
    if part.metadata.num_rows != len(rows):
        yield f"has {part.metadata.num_rows:,} rows, and the manifest speaks of {len(rows):,}"
        return
    if problem := _schema_problem(part.schema_arrow, passthrough_types(rows)):
        yield problem
        return
    begin = 0
    for number in range(part.num_row_groups):
        group = part.read_row_group(number, use_threads=False)
        yield from _read_row_group(group, rows.slice(begin, len(group)))
        begin += len(group)


def _schema_problem(schema: pa.Schema, columns: Mapping[str, pa.DataType]) -> str | None:
    texts = dict.fromkeys(BASE_COLUMNS, pa.string())
    expected = texts | {"image": IMAGE_TYPE} | dict(columns)
    if [(field.name, field.type) for field in schema] != list(expected.items()):
        return "has other columns than the manifest speaks of"
    more = set(schema.metadata or {}) - ALLOWED_METADATA
    return f"holds more than its rows: {', '.join(sorted(map(repr, more)))}" if more else None


def _read_row_group(group: pa.Table, rows: pa.Table) -> Iterator[ImageOrProblem]:
    for name in ("output_id", "label", "caption"):
        if not group[name].combine_chunks().equals(rows[name].combine_chunks()):
            yield f"has another {name} than the manifest in some rows"
    image = group["image"].combine_chunks()
    paths, pictures = image.field("path").to_pylist(), image.field("bytes").to_pylist()
    told = rows.select(IMAGE_COLUMNS).to_pylist()
    if paths != [f"{row['output_id']}{SUFFIXES.get(row['format'])}" for row in told]:
        yield "has names of pictures that are not their ids"
    yield from ((row, data or b"") for row, data in zip(told, pictures, strict=True))
