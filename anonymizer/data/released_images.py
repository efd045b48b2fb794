"""Released pictures, read back from whatever layout they lie in."""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import pyarrow.parquet as pq

from anonymizer.storage.path import StoragePath

Row = Mapping[str, Any]


def read_images(folder: StoragePath, rows: Iterable[Row]) -> Iterator[tuple[Row, bytes]]:
    """Encoded bytes of pictures, for rows of a manifest whose files lie in ``folder``; file by file.

    Rows of one file that stand together are read together. What cannot be read is left out.
    """
    for file, wanted in groupby(rows, lambda row: row["file"]):
        try:
            yield from _read_file(folder / file, list(wanted))
        except Exception:  # storage libraries raise errors of their own
            continue


def _read_file(place: StoragePath, rows: Iterable[Row]) -> Iterator[tuple[Row, bytes]]:
    """The encoded bytes of pictures that lie in one file."""
    if place.name.endswith(".tar"):
        members = {row["member"]: row for row in rows}
        with place.fs.open(place.path, "rb") as raw, tarfile.open(fileobj=raw, mode="r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # it would remember every member
                if member.name in members and (file := tar.extractfile(member)):
                    yield members.pop(member.name), file.read()
                    if not members:
                        return
    elif place.name.endswith(".parquet"):
        with place.fs.open(place.path, "rb") as raw:
            yield from _read_parquet(pq.ParquetFile(raw), sorted(rows, key=lambda row: int(row["member"])))
    else:
        for row in rows:
            yield row, place.read()


def _read_parquet(file: Any, rows: Iterable[Row]) -> Iterator[tuple[Row, bytes]]:
    """Reads one row group at a time, and only those that hold a wanted row."""
    group, begin, end, column = -1, 0, 0, None
    for row in rows:
        while int(row["member"]) >= end:
            group, begin, column = group + 1, end, None
            end += file.metadata.row_group(group).num_rows
        column = file.read_row_group(group, columns=["image"])["image"] if column is None else column
        yield row, column[int(row["member"]) - begin].as_py()["bytes"]
