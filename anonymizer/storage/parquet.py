"""Parquet tables: small ones whole, such as a shard's ledger; of any length, a column or some rows at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from anonymizer.storage.path import StoragePath

READ_BUFFER_BYTES = 2**20  # bytes of a column that are read at once
ROW_GROUP_ROWS = 2**14  # rows of a row group
BATCH_ROWS = 4096  # rows that are Python objects at once


class TableLike(Protocol):
    """What a ``pa.Table`` in memory and a ``Stored`` one have in common."""

    @property
    def schema(self) -> pa.Schema: ...
    @property
    def column_names(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, name: str) -> pa.ChunkedArray: ...
    def select(self, columns: Sequence[str]) -> TableLike: ...
    def to_batches(self, max_chunksize: int) -> Iterable[pa.RecordBatch]: ...


class ParquetTable:
    """A table that stays where it is: each column, and each batch of rows, is read when it is asked for.

    Without Arrow's threads: they may abort a process that ends right after they were used, and ``pq.read_table`` starts
    some whatever it is told. Raises pyarrow.ArrowException or OSError where the file is damaged.
    """

    def __init__(self, source: Any) -> None:
        self._file = pq.ParquetFile(source, pre_buffer=False, buffer_size=READ_BUFFER_BYTES)
        self.schema: pa.Schema = self._file.schema_arrow

    @property
    def column_names(self) -> list[str]:
        names: list[str] = self.schema.names
        return names

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self._file.read(columns=[name], use_threads=False)[name]

    def select(self, columns: Sequence[str]) -> ParquetTable:
        """The same table with fewer columns, in this order. KeyError where it has no such column."""
        if missing := set(columns) - set(self.schema.names):
            raise pa.ArrowKeyError(f"no column {', '.join(sorted(missing))}")
        fewer = copy.copy(self)
        fewer.schema = pa.schema([self.schema.field(name) for name in columns], self.schema.metadata)
        return fewer

    def to_batches(self, max_chunksize: int) -> Iterator[pa.RecordBatch]:
        names = self.column_names
        for batch in self._file.iter_batches(max_chunksize, columns=names, use_threads=False):
            yield batch.select(names)

    def read(self) -> pa.Table:
        """All of it."""
        return self._file.read(columns=self.column_names, use_threads=False).select(self.column_names)


def open_table(place: StoragePath) -> ParquetTable:
    """The table that lies there. Raises pyarrow.ArrowException or OSError if it is damaged."""
    return ParquetTable(pa.OSFile(place.path) if place.is_local else place.fs.open(place.path, "rb"))


def read(place: StoragePath, columns: Sequence[str] | None = None) -> pa.Table:
    """The table that lies there, or some of its columns. Raises pyarrow.ArrowException or OSError if it is damaged."""
    table = ParquetTable(pa.BufferReader(place.read()))
    return (table if columns is None else table.select(columns)).read()


def read_metadata(place: StoragePath) -> Mapping[bytes, bytes]:
    """What stands beside the schema of the table that lies there. Raises as ``read`` does."""
    return pq.read_schema(pa.BufferReader(place.read())).metadata or {}


def to_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    data: bytes = buffer.getvalue().to_pybytes()
    return data


class Writer:
    """Writes a table batch by batch, in row groups of one size, whatever the batches are."""

    def __init__(self, file: Any, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self.schema = schema

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush(1)
        self._writer.close()

    def write(self, rows: pa.Table) -> None:
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= ROW_GROUP_ROWS:
            self._flush(ROW_GROUP_ROWS)

    def _flush(self, least: int) -> None:
        """Row groups of what waits, while there are ``least`` rows."""
        rows = pa.concat_tables([self.schema.empty_table(), *self._waiting])
        at = 0
        while len(rows) - at >= least:
            self._writer.write_table(rows.slice(at, ROW_GROUP_ROWS))
            at += ROW_GROUP_ROWS
        self._waiting = [rows.slice(at)]
