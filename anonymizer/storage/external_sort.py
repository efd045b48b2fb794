"""External sort of Arrow tables by a text column, spilling to unlinked temporary files.

Digests and ids are spread evenly, so their first digits partition a table into parts of about one size, each sorted in
memory: n log n time, and the memory of one part.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import IO

import pyarrow as pa

PARTITION_ROWS = 10_000  # rows that are sorted at once
MAX_PARTITIONS = 256  # each is an open file


class ExternalSort(AbstractContextManager["ExternalSort"]):
    """``tables`` sorted by column ``by``, rows without a value last; ``records`` is their approximate total length.

    Temporary files lie in ``folder`` (the system's by default), have no name there, and vanish with the process. Sorts
    with the same ``records`` are partitioned at the same values.
    """

    def __init__(self, tables: Iterable[pa.Table], by: str, records: int, folder: str | None = None) -> None:
        count = min(MAX_PARTITIONS, -(-records // PARTITION_ROWS)) or 1
        self.by, self.folder = by, folder
        self._bounds = [f"{number * 2**16 // count:04x}" for number in range(1, count)]
        self._schema = pa.schema([(by, pa.string())])
        self._pending: list[pa.Table] = []
        self._files: list[IO[bytes]] = []
        self._writers: list[pa.RecordBatchStreamWriter] = []
        self._length = 0
        with ExitStack() as stack:
            self._stack = stack
            for table in tables:
                self.add(table)
            self._stack = stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __len__(self) -> int:
        return self._length

    def add(self, table: pa.Table) -> None:
        """Add rows; none may be added once they have been read."""
        self._schema = table.schema
        self._pending.append(table)
        self._length += len(table)
        if self._bounds and sum(map(len, self._pending)) >= PARTITION_ROWS:
            self._spill()

    def tables(self) -> Iterator[pa.Table]:
        """Yield the sorted rows, one table for each partition, even an empty one; may be called again."""
        if not self._files:
            yield from self._partition(self._sort(self._pending))
            return
        if self._pending:
            self._spill()
        while self._writers:
            self._writers.pop().close()
        for file in self._files:
            file.seek(0)
            yield self._sort([pa.ipc.open_stream(file).read_all()])

    def keys(self) -> Iterator[str]:
        """Yield the values of the column in order."""
        for table in self.tables():
            yield from table[self.by].to_pylist()

    def _spill(self) -> None:
        """Move the rows in memory to the files of their partitions."""
        rows = self._sort(self._pending)
        if not self._files:
            self._files = [self._create_file() for _ in range(len(self._bounds) + 1)]
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            self._writers = [pa.ipc.new_stream(file, rows.schema, options=options) for file in self._files]
        for writer, part in zip(self._writers, self._partition(rows), strict=True):
            writer.write_table(part)
        self._pending = []

    def _partition(self, rows: pa.Table) -> Iterator[pa.Table]:
        keys = rows[self.by].drop_null().to_pylist()
        ends = [*(bisect_left(keys, bound) for bound in self._bounds), len(rows)]
        for begin, end in zip([0, *ends], ends, strict=False):
            yield rows.slice(begin, end - begin)

    def _sort(self, tables: list[pa.Table]) -> pa.Table:
        rows = pa.concat_tables([self._schema.empty_table(), *tables])
        return rows.combine_chunks().sort_by([(self.by, "ascending")])

    def _create_file(self) -> IO[bytes]:
        file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  (closed with all others)
        self._stack.callback(file.close)
        return file
