"""Parquet parts that Hugging Face's datasets read as images: ``image`` is a {bytes, path} struct."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anonymizer.data.passthrough_columns import TypeInference, to_json
from anonymizer.data.sinks import base
from anonymizer.data.sinks.base import Divider, ImageLocation, ReleasedImage, make_folder
from anonymizer.errors import OutputError
from anonymizer.storage.path import translate_storage_errors

GROUP_ROWS = 256  # row groups are small, so that writing and reading need little memory
GROUP_BYTES = 32 * 2**20
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BASE_COLUMNS = {"output_id": pa.string(), "image": IMAGE_TYPE, "label": pa.string(), "caption": pa.string()}


class ParquetSink:
    """Writes ``data/part-00000.parquet`` and so on."""

    def __init__(self, columns: Mapping[str, pa.DataType] | None = None) -> None:
        self.columns = columns

    def write(self, images: Iterable[ReleasedImage], fs: Any, folder: str) -> Iterator[ImageLocation]:
        make_folder(fs, f"{folder}/data")
        columns = self.columns
        if columns is None:
            images = iter(images)
            head = list(islice(images, 1000))
            columns, images = _infer_types(head), chain(head, images)
        schema = _schema(columns)
        rows, parts = Divider(GROUP_ROWS, GROUP_BYTES), Divider(base.PART_ROWS, base.PART_BYTES)
        groups = (list(group) for _, group in groupby(images, rows.add))
        for part, part_groups in groupby(groups, lambda group: parts.add(*group)):
            file, row = f"data/part-{part:05d}.parquet", 0
            with (
                translate_storage_errors(fs),
                fs.open(f"{folder}/{file}", "wb") as raw,
                _open_writer(raw, schema) as writer,
            ):
                for group in part_groups:
                    writer.write_table(_table(group, schema))
                    for image in group:
                        yield ImageLocation(image.output_id, file, str(row))
                        row += 1


def _open_writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    texts = [name for name in schema.names if name != "image"]  # statistics of images are large and of no use
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=texts, write_statistics=texts)


def _infer_types(images: Sequence[ReleasedImage]) -> dict[str, pa.DataType]:
    """Return a type for each carried column: the common type of its values, or text."""
    inference = TypeInference(sorted({name for image in images for name in image.columns}))
    inference.update(to_json(image.columns) for image in images)
    return {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in inference.types().items()}


def _schema(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    if taken := sorted(set(BASE_COLUMNS) & set(columns)):
        raise OutputError(f"source.carry: {taken[0]!r} is a column of the release itself: rename it in the source")
    types = BASE_COLUMNS | dict(columns)
    names = {"double": "float64", "float": "float32"}  # those of Hugging Face that differ from Arrow's
    features = {name: {"dtype": names.get(str(kind), str(kind)), "_type": "Value"} for name, kind in types.items()}
    features["image"] = {"_type": "Image"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)}
    return pa.schema(list(types.items()), metadata=metadata)


def _table(images: Sequence[ReleasedImage], schema: pa.Schema) -> pa.Table:
    arrays: list[pa.Array] = [
        pa.array([image.output_id for image in images], pa.string()),
        pa.array([{"bytes": image.data, "path": f"{image.output_id}{image.suffix}"} for image in images], IMAGE_TYPE),
        pa.array([image.label for image in images], pa.string()),
        pa.array([image.caption for image in images], pa.string()),
    ]
    for field in list(schema)[len(BASE_COLUMNS) :]:
        values = [image.columns.get(field.name) for image in images]
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
