"""Any number of rows in the order of one column: few in memory, many in files that have no name and hold a part each.

Digests and ids are spread evenly, so their first digits part a table into pieces that are sorted one by one: as the
pieces are of one size, all of it takes n log n time and the memory of one piece.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import IO

import pyarrow as pa

PARTITION_ROWS = 10_000  # rows that are sorted at once
MAX_PARTITIONS = 256  # pieces, each an open file


class ExternalSort(AbstractContextManager["ExternalSort"]):
    """``tables`` by ``by``, a text column; ``records``: about how many rows they have together.

    Files are made in ``folder`` (the system's place for temporary files if none is given), where nobody can open them
    and nothing is left of them when the process ends, however it does. Ordered things that were told the same
    ``records`` are parted at the same values.
    """

    def __init__(self, tables: Iterable[pa.Table], by: str, records: int, folder: str | None = None) -> None:
        pieces = min(MAX_PARTITIONS, -(-records // PARTITION_ROWS)) or 1
        self.by, self.folder = by, folder
        self._bounds = [f"{piece * 2**16 // pieces:04x}" for piece in range(1, pieces)]
        self._schema: pa.Schema | None = None
        self._held: list[pa.Table] = []
        self._files: list[tuple[IO[bytes], pa.RecordBatchStreamWriter]] = []
        self._length = 0
        self._stack = ExitStack()
        with self._stack:
            self._part(tables)
            self._stack = self._stack.pop_all()

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def tables(self) -> Iterator[pa.Table]:
        """Rows in order, a table for each piece, even where it is empty; may be asked for again."""
        if not self._files:
            yield from self._pieces(self._sorted(self._held))
        for file, _ in self._files:
            file.seek(0)
            yield self._sorted([pa.ipc.open_stream(file).read_all()])

    def keys(self) -> Iterator[str]:
        """The values of the column, in order."""
        for table in self.tables():
            yield from table[self.by].to_pylist()

    def __len__(self) -> int:
        return self._length

    def _part(self, tables: Iterable[pa.Table]) -> None:
        waiting = 0
        for table in tables:
            self._schema = table.schema
            self._held.append(table)
            waiting += len(table)
            self._length += len(table)
            if self._bounds and waiting >= PARTITION_ROWS:
                self._spill()
                waiting = 0
        if self._files:
            self._spill()
        for _, writer in self._files:
            writer.close()

    def _spill(self) -> None:
        """Put the rows that are held into the files of their pieces."""
        rows = self._sorted(self._held)
        if not self._files:
            self._files = [self._file(rows.schema) for _ in range(len(self._bounds) + 1)]
        for (_, writer), piece in zip(self._files, self._pieces(rows), strict=True):
            writer.write_table(piece)
        self._held = []

    def _pieces(self, rows: pa.Table) -> Iterator[pa.Table]:
        """Sorted rows, parted at the bounds; those without a value are behind all others."""
        keys = rows[self.by].drop_null().to_pylist()
        ends = [*(bisect_left(keys, bound) for bound in self._bounds), len(rows)]
        for begin, end in zip([0, *ends], ends, strict=False):
            yield rows.slice(begin, end - begin)

    def _sorted(self, tables: list[pa.Table]) -> pa.Table:
        if not tables:
            return (self._schema or pa.schema([(self.by, pa.string())])).empty_table()
        return pa.concat_tables(tables).combine_chunks().sort_by([(self.by, "ascending")])

    def _file(self, schema: pa.Schema) -> tuple[IO[bytes], pa.RecordBatchStreamWriter]:
        file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  (closed with all others)
        self._stack.callback(file.close)
        return file, pa.ipc.new_stream(file, schema, options=pa.ipc.IpcWriteOptions(compression="zstd"))
