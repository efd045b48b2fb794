"""Parquet tables: small ones in memory; of any length, a column or a batch of rows at a time."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from anonymizer.storage.path import StoragePath

READ_BUFFER_BYTES = 2**20  # of a column that is read at once
ROW_GROUP_ROWS = 2**14
BATCH_ROWS = 4096  # rows that are Python objects at once


class TableLike(Protocol):
    """The common part of ``pa.Table`` and ``ParquetTable``."""

    @property
    def schema(self) -> pa.Schema: ...
    @property
    def column_names(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, name: str) -> pa.ChunkedArray: ...
    def select(self, columns: Sequence[str]) -> TableLike: ...
    def to_batches(self, max_chunksize: int) -> Iterable[pa.RecordBatch]: ...


class ParquetTable:
    """A table that stays in its file: columns and batches of rows are read on demand, without Arrow's threads.

    These may abort a process that ends right after they were used, and ``pq.read_table`` always starts some. Raises
    pyarrow.ArrowException or OSError if the file is damaged.
    """

    def __init__(self, source: Any) -> None:
        self._file = pq.ParquetFile(source, pre_buffer=False, buffer_size=READ_BUFFER_BYTES)
        self.schema: pa.Schema = self._file.schema_arrow

    @property
    def column_names(self) -> list[str]:
        return list(self.schema.names)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self._file.read(columns=[name], use_threads=False)[name]

    def select(self, columns: Sequence[str]) -> ParquetTable:
        """Return the same table with fewer columns, in this order. KeyError for a missing column."""
        if missing := set(columns) - set(self.schema.names):
            raise pa.ArrowKeyError(f"no column {', '.join(sorted(missing))}")
        selected = copy.copy(self)
        selected.schema = pa.schema([self.schema.field(name) for name in columns], self.schema.metadata)
        return selected

    def to_batches(self, max_chunksize: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of at most ``max_chunksize`` rows."""
        for batch in self._file.iter_batches(max_chunksize, columns=self.column_names, use_threads=False):
            yield batch.select(self.column_names)

    def read(self) -> pa.Table:
        return self._file.read(columns=self.column_names, use_threads=False).select(self.column_names)


def open_table(path: StoragePath) -> ParquetTable:
    """Open the table at ``path``. Raises pyarrow.ArrowException or OSError if it is damaged."""
    return ParquetTable(pa.OSFile(path.path) if path.is_local else path.fs.open(path.path, "rb"))


def read(path: StoragePath, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table at ``path``, or some of its columns. Raises as ``open_table`` does."""
    table = ParquetTable(pa.BufferReader(path.read()))
    return (table if columns is None else table.select(columns)).read()


def read_metadata(path: StoragePath) -> Mapping[bytes, bytes]:
    """Return the metadata of the schema of the table at ``path``. Raises as ``open_table`` does."""
    return pq.read_schema(pa.BufferReader(path.read())).metadata or {}


def to_bytes(table: pa.Table, file_metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the table as a Parquet file; ``file_metadata`` stands at its end and is no part of the schema."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata(dict(file_metadata or {}))
    return bytes(buffer.getvalue())


class HashedFile:
    """A file that is being written from its begin to its end, and the SHA-256 of what was written to it."""

    def __init__(self, file: Any) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def write(self, data: Any) -> Any:
        self.sha256.update(data)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class Writer:
    """Write tables to one Parquet file, in row groups of ``ROW_GROUP_ROWS`` whatever the tables' lengths."""

    def __init__(self, file: Any, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._pending = schema.empty_table()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._flush(min_rows=1)
        self._writer.close()

    def write(self, rows: pa.Table) -> None:
        self._pending = pa.concat_tables([self._pending, rows])
        self._flush(min_rows=ROW_GROUP_ROWS)

    def _flush(self, min_rows: int) -> None:
        while len(self._pending) >= min_rows:
            self._writer.write_table(self._pending.slice(0, ROW_GROUP_ROWS))
            self._pending = self._pending.slice(ROW_GROUP_ROWS)
