"""Small Parquet tables, whole: the ledger of a shard, a manifest."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from anonymizer.place import Place


def read(place: Place, columns: Sequence[str] | None = None) -> pa.Table:
    """The table that lies there, or some of its columns. Raises pyarrow.ArrowException or OSError if it is damaged."""
    # Without Arrow's threads: they may abort a process that ends right after they were used. ``pq.read_table`` starts
    # some whatever it is told.
    wanted = None if columns is None else list(columns)
    file = pq.ParquetFile(pa.BufferReader(place.read()), pre_buffer=False)
    if missing := set(wanted or ()) - set(file.schema_arrow.names):
        raise pa.ArrowKeyError(f"no column {', '.join(sorted(missing))}")
    table = file.read(columns=wanted, use_threads=False)
    return table if wanted is None else table.select(wanted)


def to_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    data: bytes = buffer.getvalue().to_pybytes()
    return data
