"""Parquet files: images as bytes or as Hugging Face's {bytes, path} struct; everything else by column name."""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anonymizer.config import SourceConfig
from anonymizer.data.sources.building import (
    NO_CLASS,
    RowEntries,
    build_record,
    failed_record,
    read_or_fail,
    requested_columns,
    row_digest,
)
from anonymizer.data.sources.column_policy import DROPPED, FILE_ATTRIBUTES, PICTURE, ColumnPolicy, Field, check_columns
from anonymizer.data.sources.files import PARQUET_SUFFIXES, Location, SourceFile, list_data_files, to_printable
from anonymizer.data.sources.row_files import RowFiles
from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Entry, Reason, Record

BATCH_ROWS = 16  # rows of images in memory at a time
BAD_CELL = object()  # a value that Python has none for
# Text that is no UTF-8, a time beyond the calendar, a time zone that there is not.
CELL_ERRORS = (ValueError, OverflowError, LookupError, pa.ArrowException)


class ParquetSource:
    """Files below a folder that end in .parquet, or one file; an id is file and row, or the column ``source.id``.

    A row is read only if it is still the planned one: with the same id and ``source.where``, or, without ids, in a file
    that has not been written since.
    """

    def __init__(self, config: SourceConfig, location: Location) -> None:
        self.config, self.location = config, location
        self.policy = ColumnPolicy.from_config(config)
        self.files = RowFiles(location, config.allow)
        self.key_columns = list(
            dict.fromkeys(key for key in (config.id, config.subject, *config.where) if key is not None)
        )

    def entries(self) -> Iterator[Entry]:
        rows = RowEntries(self.config)
        self.policy.check(name for schema in self._schemas() for name in schema.names)
        for file, name in self._files():
            uri = self.location.to_uri(file.path)
            if file.problem is not None:
                yield Entry(rows.ids.claim(name)[0], uri, problem=file.problem)
                continue
            with _arrow_errors(name):
                version = self.location.version(file.path)  # read before the rows, so that it is not newer than they
            with self._open(file.path, name) as parquet:
                self._check(parquet.schema_arrow, name)
                subjects = _class_names(parquet.schema_arrow, self.config.subject)
                for row, values in enumerate(self._key_rows(parquet)):
                    mark = row_digest(values) if self.config.id else version
                    if entry := rows.build(name, row, row, values, uri, mark, class_names=subjects):
                        yield entry
        rows.check_any(self.location.uri)

    def fields(self) -> list[Field]:
        names, metadata, parts = dict[str, None](), dict[str, None](), dict[str, None]()
        paths = list(self.files.describe(self._paths()))
        image = self.config.image
        for schema in self._schemas():
            names.update(dict.fromkeys(schema.names))
            metadata.update(dict.fromkeys(key.decode("utf-8", "replace") for key in schema.metadata or ()))
            kind = schema.field(image).type
            if pa.types.is_struct(kind):
                parts.update(dict.fromkeys(f"{image}.{part.name}" for part in kind if part.name != "bytes"))
        self.policy.check(names)
        return [
            FILE_ATTRIBUTES,
            *self.policy.describe(names, "column"),
            *(Field.for_column(part, DROPPED, f"beside {PICTURE}") for part in parts),
            *(Field.for_column(key, DROPPED, "metadata of the files") for key in metadata),
            *paths,
        ]

    def _paths(self) -> Iterator[str]:
        """Yield the paths in row groups of which some pictures, by their statistics, are no bytes."""
        for file, name in self._files():
            if file.problem is None:
                with self._open(file.path, name) as parquet:
                    self._check(parquet.schema_arrow, name)
                    for group in _groups_without_bytes(parquet, self.config.image):
                        table = parquet.read_row_group(group, columns=[f"{self.config.image}.path"])
                        yield from filter(None, (row["path"] for row in table[self.config.image].to_pylist() if row))

    def _files(self) -> Iterator[tuple[SourceFile, str]]:
        """Yield each file and its name; its problem can only be that it is no Parquet file."""
        for file in list_data_files(self.location, PARQUET_SUFFIXES):
            name = to_printable(file.relative)
            if file.problem not in (None, Reason.NOT_AN_IMAGE):
                raise SourceError(
                    f"source.uri: {name!r} cannot be read, or is a link out of the source "
                    f"({file.problem.value}): name the folder of the files themselves"
                )
            yield file, name

    def _schemas(self) -> Iterator[pa.Schema]:
        """Yield the schema of each file, after checking the columns that the configuration uses."""
        for file, name in self._files():
            if file.problem is None:
                with self._open(file.path, name) as parquet:
                    self._check(parquet.schema_arrow, name)
                    yield parquet.schema_arrow

    def _key_rows(self, parquet: pq.ParquetFile) -> Iterator[dict[str, Any]]:
        """Yield for each row the values that name it, select it and tell its subject."""
        if not self.key_columns:
            yield from ({} for _ in range(parquet.metadata.num_rows))
            return
        for batch in parquet.iter_batches(batch_size=8192, columns=self.key_columns):
            for row in _to_rows(batch.select(self.key_columns)):
                yield {name: None if value is BAD_CELL else value for name, value in row.items()}

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        begin = 0
        for end in range(1, len(entries) + 1):
            if end == len(entries) or not _is_later_row(entries[end - 1], entries[end]):
                yield from self._read_file(entries[begin:end])
                begin = end

    def _read_file(self, entries: Sequence[Entry]) -> Iterator[Record]:
        """Yield ascending rows of one file; after a damaged page, the rest of its row group is unreadable."""
        if all(entry.problem for entry in entries):  # perhaps not a Parquet file
            yield from map(failed_record, entries)
            return
        done, problem = 0, Reason.CHANGED
        path = self.location.to_path(entries[0].uri)
        try:
            with self._open(path, "file") as parquet:
                schema = parquet.schema_arrow
                is_planned = self.config.id is not None or self.location.version(path) == entries[0].mark
                if is_planned and self._is_usable(schema):
                    classes = {c: names for c in requested_columns(self.config) if (names := _class_names(schema, c))}
                    for entry, values in _read_rows(parquet, entries, self._columns(schema)):
                        done += 1
                        yield read_or_fail(entry, partial(self._build, values=values, classes=classes))
        except SourceError:
            problem = Reason.UNREADABLE
        except RecordError as error:  # of the whole file
            problem = error.reason
        yield from (failed_record(entry, problem) for entry in entries[done:])

    def _build(self, entry: Entry, values: dict[str, Any] | None, classes: Mapping[str, Sequence[str]]) -> Record:
        if values is None:
            raise RecordError(Reason.UNREADABLE)
        if any(value is BAD_CELL for value in values.values()):
            raise RecordError(Reason.BAD_METADATA)
        if self.config.id and row_digest({key: values[key] for key in self.key_columns}) != entry.mark:
            raise RecordError(Reason.CHANGED)
        max_bytes, data = self.config.limits.max_bytes, values[self.config.image]
        if isinstance(data, dict):  # {bytes, path}: the path counts where there are no bytes
            path, data = data.get("path"), data["bytes"]
            data = self.files.read(path, max_bytes) if data is None and path else data
        if not data:
            raise RecordError(Reason.EMPTY)
        if len(data) > max_bytes:
            raise RecordError(Reason.TOO_MANY_BYTES)
        values |= {column: None for column in classes if values[column] == NO_CLASS}
        return build_record(self.config, entry, data, values.__getitem__, classes.get(self.config.label or ""))

    def _columns(self, schema: pa.Schema) -> list[str]:
        image, kind = self.config.image, schema.field(self.config.image).type
        images = [image]
        if pa.types.is_struct(kind):
            images = [f"{image}.{name}" for name in ("bytes", "path") if _is_part(kind, name)]
        return list(
            dict.fromkeys([*images, *requested_columns(self.config), *(self.key_columns if self.config.id else [])])
        )

    def _is_usable(self, schema: pa.Schema) -> bool:
        try:
            self._check(schema, "file")
        except SourceError:
            return False
        return not self.policy.find_unclassified(schema.names)

    def _check(self, schema: pa.Schema, name: str) -> None:
        check_columns(self.config, schema.names, repr(name))
        image = schema.field(self.config.image).type
        has_paths = pa.types.is_struct(image) and _is_part(image, "path")
        if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
            image = image.field("bytes").type
        if not _is_binary(image) and not (has_paths and pa.types.is_null(image)):
            raise SourceError(
                f"source.image: column {self.config.image!r} in {name!r} holds {image}, not pictures: name a column of "
                "bytes or of {bytes, path}; paths to pictures belong into a CSV or JSONL listing"
            )
        for column in [*requested_columns(self.config), *self.key_columns]:
            kind = schema.field(column).type
            if pa.types.is_nested(kind) or _is_binary(kind):
                raise SourceError(f"source: column {column!r} in {name!r} holds {kind}: name one of text or numbers")

    @contextlib.contextmanager
    def _open(self, path: str, name: str) -> Iterator[pq.ParquetFile]:
        with _arrow_errors(name), self.location.open(path) as file:
            yield pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)


def _is_part(kind: pa.DataType, name: str) -> bool:
    """Return whether a struct has bytes, or a path as text."""
    index = kind.get_field_index(name)
    return index >= 0 and (name == "bytes" or _is_text(kind.field(index).type))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _groups_without_bytes(parquet: pq.ParquetFile, image: str) -> Iterator[int]:
    """Yield the row groups in which bytes are missing where a path could stand in for them."""
    kind = parquet.schema_arrow.field(image).type
    if not pa.types.is_struct(kind) or not _is_part(kind, "path"):
        return
    if pa.types.is_null(kind.field("bytes").type):
        yield from range(parquet.metadata.num_row_groups)
        return
    for group in range(parquet.metadata.num_row_groups):
        row_group = parquet.metadata.row_group(group)
        columns = (row_group.column(index) for index in range(row_group.num_columns))
        if any(c.path_in_schema == f"{image}.bytes" and c.statistics and c.statistics.null_count for c in columns):
            yield group


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _read_rows(
    parquet: pq.ParquetFile, entries: Sequence[Entry], columns: list[str]
) -> Iterator[tuple[Entry, dict[str, Any] | None]]:
    """Yield each entry with its row's values, None if damaged; reads only the row groups that hold an entry."""
    waiting, end = deque(entries), 0
    for group in range(parquet.metadata.num_row_groups):
        begin, end = end, end + parquet.metadata.row_group(group).num_rows
        rows: deque[Entry] = deque()
        while waiting and _row_number(waiting[0]) < end:
            rows.append(waiting.popleft())
        if not rows:
            continue
        with contextlib.suppress(pa.ArrowException, OSError):
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                while rows and _row_number(rows[0]) < begin + len(batch):
                    entry = rows.popleft()
                    yield entry, next(_to_rows(batch.slice(_row_number(entry) - begin, 1)))
                begin += len(batch)
                if not rows:
                    break
        yield from ((entry, None) for entry in rows)


def _to_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the values of each row; ``BAD_CELL`` where one is none of its type, or of Python's."""
    try:
        yield from batch.to_pylist()
    except CELL_ERRORS:
        for row in range(len(batch)):
            yield {name: _to_value(column[row]) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _to_value(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except CELL_ERRORS:
        return BAD_CELL


def _is_later_row(first: Entry, second: Entry) -> bool:
    return second.uri == first.uri and _row_number(second) > _row_number(first)


def _row_number(entry: Entry) -> int:
    return entry.offset or 0


def _class_names(schema: pa.Schema, column: str | None) -> list[str] | None:
    """Return the names of the classes of a Hugging Face ClassLabel column, by number."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


@contextlib.contextmanager
def _arrow_errors(name: str) -> Iterator[None]:
    """Raise errors of Arrow as one SourceError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError):
        raise SourceError(f"source.uri: {name!r} is not a Parquet file, or is damaged: replace it") from None
