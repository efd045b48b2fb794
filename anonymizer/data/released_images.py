"""Read released images back from any layout: folder, tar or Parquet."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anonymizer.storage import parquet
from anonymizer.storage.path import StoragePath

Row = Mapping[str, Any]


def read_images(folder: StoragePath, rows: Iterable[Row]) -> Iterator[tuple[Row, bytes]]:
    """Yield the encoded images of manifest rows whose files lie in ``folder``, file by file.

    Consecutive rows of one file are read together. Images that cannot be read are left out.
    """
    for file, file_rows in groupby(rows, lambda row: row["file"]):
        try:
            yield from _read_file(folder / file, list(file_rows))
        except Exception:  # storage libraries raise errors of their own
            continue


def find_rows(manifest: StoragePath, output_ids: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a manifest with some ids, in its order."""
    ids = pa.array(output_ids, pa.string())
    for batch in parquet.open_table(manifest).to_batches(parquet.BATCH_ROWS):
        yield from batch.filter(pc.is_in(batch["output_id"], value_set=ids)).to_pylist()


def _read_file(path: StoragePath, rows: list[Row]) -> Iterator[tuple[Row, bytes]]:
    if path.name.endswith(".tar"):
        members = {row["member"]: row for row in rows}
        with path.fs.open(path.path, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # TarFile stores every member
                if member.name in members and (file := tar.extractfile(member)):
                    yield members.pop(member.name), file.read()
                    if not members:
                        return
    elif path.name.endswith(".parquet"):
        with path.fs.open(path.path, "rb") as raw:
            yield from _read_parquet(pq.ParquetFile(raw), sorted(rows, key=lambda row: int(row["member"])))
    else:
        for row in rows:
            yield row, path.read()


def _read_parquet(file: Any, rows: Iterable[Row]) -> Iterator[tuple[Row, bytes]]:
    """Read one row group at a time, and only those that hold a requested row."""
    group, begin, end, column = -1, 0, 0, None
    for row in rows:
        number = int(row["member"])
        while number >= end:
            group, begin, column = group + 1, end, None
            end += file.metadata.row_group(group).num_rows
        column = file.read_row_group(group, columns=["image"])["image"] if column is None else column
        yield row, column[number - begin].as_py()["bytes"]
