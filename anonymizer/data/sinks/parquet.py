"""Parquet parts that Hugging Face's datasets read as pictures: ``image`` is a {bytes, path} struct."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anonymizer.data import sinks
from anonymizer.data.sinks import ImageLocation, ReleasedImage
from anonymizer.data.sinks.errors import make_folder, translate_storage_errors
from anonymizer.errors import OutputError

GROUP_ROWS = 256
GROUP_BYTES = 32 * 2**20
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BASE_COLUMNS = ("output_id", "image", "label", "caption")


class ParquetSink:
    """``data/part-00000.parquet`` and so on; row groups are small, so that writing and reading stay flat in memory."""

    def __init__(self, columns: Mapping[str, pa.DataType] | None = None) -> None:
        self.columns = columns

    def write(self, images: Iterable[ReleasedImage], fs: Any, folder: str) -> Iterator[ImageLocation]:
        make_folder(fs, f"{folder}/data")
        waiting = iter(images)
        head = list(islice(waiting, 1000)) if self.columns is None else []
        schema = _schema(_infer_types(head) if self.columns is None else self.columns)
        groups = _groups(waiting, head)
        group = next(groups, None)
        part = 0
        while group is not None:
            file = f"data/part-{part:05d}.parquet"
            rows = size = 0
            with (
                translate_storage_errors(fs),
                fs.open(f"{folder}/{file}", "wb") as raw,
                _open_writer(raw, schema) as writer,
            ):
                while group is not None and (not rows or _fits(rows, size, group)):
                    writer.write_table(_table(group, schema))
                    for picture in group:
                        yield ImageLocation(picture.output_id, file, str(rows))
                        rows, size = rows + 1, size + len(picture.data)
                    group = next(groups, None)
            part += 1


def _groups(waiting: Iterator[ReleasedImage], head: list[ReleasedImage]) -> Iterator[list[ReleasedImage]]:
    head.reverse()
    group: list[ReleasedImage] = []
    size = 0
    while (picture := head.pop() if head else next(waiting, None)) is not None:
        if group and (len(group) >= GROUP_ROWS or size + len(picture.data) > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(picture)
        size += len(picture.data)
    if group:
        yield group


def _fits(rows: int, size: int, group: list[ReleasedImage]) -> bool:
    more = sum(len(picture.data) for picture in group)
    return rows + len(group) <= sinks.PART_ROWS and size + more <= sinks.PART_BYTES


def _open_writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    texts = [name for name in schema.names if name != "image"]  # statistics of pictures are of no use, and large
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=texts, write_statistics=texts)


def _infer_types(pictures: list[ReleasedImage]) -> dict[str, pa.DataType]:
    """One type for each carried column: the values' own where they agree, else text."""
    names = sorted({name for picture in pictures for name in picture.columns})
    types: dict[str, pa.DataType] = {}
    for name in names:
        try:
            found = pa.array([picture.columns.get(name) for picture in pictures]).type
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            found = pa.string()
        types[name] = pa.string() if pa.types.is_null(found) else found
    return types


def _schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    own = {"output_id": pa.string(), "image": IMAGE_TYPE, "label": pa.string(), "caption": pa.string()}
    taken = sorted(set(own) & set(columns))
    if taken:
        raise OutputError(f"source.carry: {taken[0]!r} is a column of the release itself: rename it in the source")
    features: dict[str, Any] = {name: _feature(kind) for name, kind in (own | dict(columns)).items()}
    features["image"] = {"_type": "Image"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    return pa.schema(list((own | dict(columns)).items()), metadata=metadata)


def _feature(kind: pa.DataType) -> dict[str, str]:
    names = {"double": "float64", "float": "float32"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}


def _table(pictures: list[ReleasedImage], schema: pa.Schema) -> pa.Table:
    arrays: list[pa.Array] = [
        pa.array([p.output_id for p in pictures], pa.string()),
        pa.array([{"bytes": p.data, "path": f"{p.output_id}{p.suffix}"} for p in pictures], IMAGE_TYPE),
        pa.array([p.label for p in pictures], pa.string()),
        pa.array([p.caption for p in pictures], pa.string()),
    ]
    for field in list(schema)[len(BASE_COLUMNS) :]:
        values = [p.columns.get(field.name) for p in pictures]
        if pa.types.is_string(field.type):
            values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        try:
            arrays.append(pa.array(values, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            raise OutputError(
                f"source.carry: column {field.name!r} is {field.type} at first and something else later: "
                "carry it as text, or leave it out"
            ) from None
    return pa.Table.from_arrays(arrays, schema=schema)
