"""Check of tar and Parquet parts: the images they hold, in order, and that they hold nothing else.

A part must be byte for byte in the form that the sinks write: any other header, column or trailing byte could carry
information.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from io import BufferedReader

import pyarrow as pa
import pyarrow.parquet as pq

from anonymizer.attest.verify.image import IMAGE_COLUMNS, ManifestRow
from anonymizer.attest.verify.inventory import open_file
from anonymizer.attest.verify.manifest import SUFFIXES, passthrough_types
from anonymizer.data.sinks.parquet import BASE_COLUMNS, IMAGE_TYPE
from anonymizer.storage.path import StoragePath

BLOCK_SIZE = 2**20
ALLOWED_METADATA = {b"huggingface"}  # the types of the columns
SIDE_FILES = (".json", ".cls", ".txt")
# Values among others of other types are text in a manifest as Python writes them, in Parquet parts as JSON does.
JSON_WORDS = {"true": "True", "false": "False", "NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}
MAX_SIDE_BYTES = 2**24  # of a label, a caption, or the columns of one image
DIGEST_MISMATCH = "is not what was signed"
ImageOrProblem = tuple[ManifestRow, bytes] | str  # an encoded image with its row, or a problem of its part


def read_part(folder: StoragePath, name: str, sha256: str, rows: pa.Table) -> Iterator[ImageOrProblem]:
    """Yield the images of a part with the signed digest ``sha256``; ``rows`` are the manifest's rows about it."""
    images = 0
    try:
        with open_file(folder, name) as raw:
            for item in (_read_tar if name.endswith(".tar") else _read_parquet)(raw, sha256, rows):
                images += not isinstance(item, str)
                yield f"{name}: {item}" if isinstance(item, str) else item
    except Exception:  # hostile bytes can raise any error in a reader
        yield f"{name}: cannot be read as it was written"
    if images < len(rows):
        yield f"{name}: {len(rows) - images:,} pictures of the manifest could not be looked at"


class HashingReader:
    """A file that is read once from start to end, and hashed on the way."""

    def __init__(self, raw: BufferedReader) -> None:
        self.remaining = raw.seek(0, os.SEEK_END)
        self.raw, self.sha256 = raw, hashlib.sha256()
        raw.seek(0)

    def read(self, size: int) -> bytes:
        """Return exactly ``size`` bytes. Raises ValueError if fewer are left."""
        if not 0 <= size <= self.remaining:
            raise ValueError("ends early")
        data = self.raw.read(size)
        self.sha256.update(data)
        self.remaining -= size
        return data


def _read_tar(raw: BufferedReader, sha256: str, rows: pa.Table) -> Iterator[ImageOrProblem]:
    """Yield images in one pass; a wrong digest is known, and yielded, last."""
    file = HashingReader(raw)
    images = {row["member"]: row for row in rows.select(IMAGE_COLUMNS).to_pylist()}
    types = {"label": pa.string(), **passthrough_types(rows)}
    texts = {row["output_id"]: row for row in rows.select(["output_id", "caption", *types]).to_pylist()}
    names = set[str]()
    for name, data in _read_members(file, {name: row["bytes"] for name, row in images.items()}):
        stem, suffix = os.path.splitext(name)
        if name in names:
            yield "holds two members of one name"
        elif name in images:
            yield images[name], data
        elif stem not in texts or not _matches_row(suffix, data, texts[stem], types):
            yield "holds a member that the manifest does not speak of"
        names.add(name)
    if file.sha256.hexdigest() != sha256:
        yield DIGEST_MISMATCH


def _read_members(file: HashingReader, sizes: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents; ``sizes`` are those of images.

    Raises ValueError or tarfile.HeaderError unless headers hold a name and a size only, that of the manifest.
    """
    while any(header := file.read(tarfile.BLOCKSIZE)):
        info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
        plain = tarfile.TarInfo(info.name)
        plain.size = info.size
        if info.size > sizes.get(info.name, MAX_SIDE_BYTES):  # before it is read
            raise ValueError("holds a member that is too large")
        data, padding = file.read(info.size), file.read(-info.size % tarfile.BLOCKSIZE)
        if header != plain.tobuf(tarfile.USTAR_FORMAT) or any(padding):
            raise ValueError("says more than names")
        yield info.name, data
    while file.remaining:
        if any(file.read(min(BLOCK_SIZE, file.remaining))):
            raise ValueError("goes on after its end")


def _matches_row(suffix: str, data: bytes, row: ManifestRow, types: Mapping[str, pa.DataType]) -> bool:
    """Return whether a side file of an image repeats its manifest row and adds nothing."""
    if suffix == ".json":
        values = json.loads(data)
        is_canonical = data == json.dumps(values, ensure_ascii=False, sort_keys=True).encode()
        is_same = all(_convert(values.get(name), kind) == _convert(row[name], kind) for name, kind in types.items())
        return is_canonical and set(values) <= set(types) and is_same
    return suffix in SIDE_FILES and data.decode() == row["label" if suffix == ".cls" else "caption"]


def _convert(value: object, kind: pa.DataType) -> object:
    """Return a value as a column of this type holds it in the manifest, and NaN, which equals nothing, as text."""
    if pa.types.is_string(kind) and value is not None:
        return JSON_WORDS.get(str(value), str(value))
    value = pa.scalar(value, kind).as_py()
    return "NaN" if value != value else value


def _read_parquet(raw: BufferedReader, sha256: str, rows: pa.Table) -> Iterator[ImageOrProblem]:
    if hashlib.file_digest(raw, "sha256").hexdigest() != sha256:
        yield DIGEST_MISMATCH
        return
    part = pq.ParquetFile(raw, pre_buffer=False)
    if part.metadata.num_rows != len(rows):
        yield f"has {part.metadata.num_rows:,} rows, and the manifest speaks of {len(rows):,}"
        return
    if problem := _schema_problem(part.schema_arrow, passthrough_types(rows)):
        yield problem
        return
    start = 0
    for number in range(part.num_row_groups):
        group = part.read_row_group(number, use_threads=False)
        yield from _read_row_group(group, rows.slice(start, len(group)))
        start += len(group)


def _schema_problem(schema: pa.Schema, passthrough: Mapping[str, pa.DataType]) -> str | None:
    expected = dict.fromkeys(BASE_COLUMNS, pa.string()) | {"image": IMAGE_TYPE} | dict(passthrough)
    if [(field.name, field.type) for field in schema] != list(expected.items()):
        return "has other columns than the manifest speaks of"
    extra = set(schema.metadata or {}) - ALLOWED_METADATA
    return f"holds more than its rows: {', '.join(sorted(map(repr, extra)))}" if extra else None


def _read_row_group(group: pa.Table, rows: pa.Table) -> Iterator[ImageOrProblem]:
    types = {"output_id": pa.string(), "label": pa.string(), "caption": pa.string(), **passthrough_types(rows)}
    for name, kind in types.items():
        cells, expected = group[name].to_pylist(), rows[name].to_pylist()
        if [_convert(cell, kind) for cell in cells] != [_convert(cell, kind) for cell in expected]:
            yield f"has another {name} than the manifest in some rows"
    image, images = group["image"].combine_chunks(), rows.select(IMAGE_COLUMNS).to_pylist()
    if image.field("path").to_pylist() != [f"{row['output_id']}{SUFFIXES.get(row['format'])}" for row in images]:
        yield "has names of pictures that are not their ids"
    yield from ((row, data or b"") for row, data in zip(images, image.field("bytes").to_pylist(), strict=True))
