"""Small Parquet tables, whole: the ledger of a shard, a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from anonymizer.place import Place


def read(place: Place, columns: Sequence[str] | None = None) -> pa.Table:
    """The table that lies there, or some of its columns. Raises pyarrow.ArrowException or OSError if it is damaged."""
    # Without Arrow's threads: they may abort a process that ends right after they were used.
    wanted = None if columns is None else list(columns)
    return pq.read_table(pa.BufferReader(place.read()), columns=wanted, use_threads=False, pre_buffer=False)


def metadata(place: Place) -> Mapping[bytes, bytes]:
    """What stands beside the schema of the table that lies there. Raises as ``read`` does."""
    return pq.read_schema(pa.BufferReader(place.read())).metadata or {}


def to_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    data: bytes = buffer.getvalue().to_pybytes()
    return data
