"""Parquet files: pictures as bytes, or as Hugging Face's {bytes, path} struct; everything else by column name."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anonymizer.config import SourceConfig
from anonymizer.data.sources.coercion import (
    check_columns,
    parse_subject,
    requested_columns,
    row_digest,
    to_json_value,
    to_text,
    to_text_or_none,
)
from anonymizer.data.sources.column_policy import (
    ALL_OTHERS,
    DROPPED,
    FILE_ATTRIBUTES,
    PICTURE,
    ColumnPolicy,
    Field,
    configured_columns,
    refuse_unclassified,
)
from anonymizer.data.sources.files import (
    PARQUET_SUFFIXES,
    Location,
    RecordIds,
    SourceFile,
    failed_record,
    list_data_files,
    to_printable,
)
from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Entry, Reason, Record

BATCH_ROWS = 16  # rows of pictures in memory at a time


class ParquetSource:
    """Files below a folder that end in .parquet, or one file; an id is file and row, or the column ``source.id``.

    A row is read only if it is the one that was planned: its id and its ``source.where`` are the same, or, where there
    are no ids to tell, the file has not been written since.
    """

    def __init__(self, config: SourceConfig, location: Location) -> None:
        self.config, self.location = config, location
        self.columns = ColumnPolicy(configured_columns(config), ALL_OTHERS in config.drop)
        self.keys = list(dict.fromkeys(key for key in (config.id, config.subject, *config.where) if key is not None))

    def entries(self) -> Iterator[Entry]:
        ids = RecordIds()
        rows = chosen = 0
        config = self.config
        refuse_unclassified(self.columns.find_unclassified(name for schema in self._schemas() for name in schema.names))
        for file, name in self._files():
            uri = self.location.to_uri(file.path)
            if file.problem is not None:
                yield Entry(ids.claim(name)[0], uri, problem=file.problem)
                continue
            with _arrow_errors(name):
                version = self.location.version(file.path)  # before the rows are read, lest they be older than it
            with self._open(file.path, name) as parquet:
                self._check(parquet.schema_arrow, name)
                people = _class_names(parquet.schema_arrow, config.subject)
                rows += parquet.metadata.num_rows
                for row, values in self._key_rows(parquet, name):
                    if any(to_text_or_none(values[column]) != wanted for column, wanted in config.where.items()):
                        continue
                    chosen += 1
                    own = to_text_or_none(values[config.id]) if config.id else f"{name}/{row}"
                    missing = Reason.BAD_METADATA if own is None else None
                    who, unreadable = (
                        parse_subject(_class_label(values[config.subject], people)) if config.subject else (None, None)
                    )
                    record_id, duplicate = ids.claim(to_printable(own) if own is not None else f"{name}/{row}")
                    found = row_digest(values) if config.id else version
                    problem = missing or duplicate or unreadable
                    yield Entry(record_id, uri, str(row), row, problem=problem, mark=found, subject=who)
        if not chosen:
            why = f"none of its {rows} rows matches source.where: check its values" if rows else "no rows in it"
            raise SourceError(f"source.uri {self.location.uri!r}: {why}")

    def fields(self) -> list[Field]:
        names, metadata, beside = dict[str, None](), dict[str, None](), dict[str, None]()
        for schema in self._schemas():
            names.update(dict.fromkeys(schema.names))
            metadata.update(dict.fromkeys(key.decode("utf-8", "replace") for key in schema.metadata or ()))
            image = schema.field(self.config.image).type
            parts = [image.field(i).name for i in range(image.num_fields)] if pa.types.is_struct(image) else []
            beside.update(dict.fromkeys(f"{self.config.image}.{part}" for part in parts if part != "bytes"))
        refuse_unclassified(self.columns.find_unclassified(names))
        return [
            FILE_ATTRIBUTES,
            *self.columns.describe(names, "column"),
            *(Field.for_column(name, DROPPED, f"beside {PICTURE}") for name in beside),
            *(Field.for_column(key, DROPPED, "metadata of the files") for key in metadata),
        ]

    def _files(self) -> Iterator[tuple[SourceFile, str]]:
        """Each file and its name; the problem that one may have is that it is no Parquet file."""
        for file in list_data_files(self.location, PARQUET_SUFFIXES):
            name = to_printable(file.relative)
            if file.problem not in (None, Reason.NOT_AN_IMAGE):
                raise SourceError(
                    f"source.uri: {name!r} cannot be read, or is a link out of the source "
                    f"({file.problem.value}): name the folder of the files themselves"
                )
            yield file, name

    def _schemas(self) -> Iterator[pa.Schema]:
        """The columns of each file, all of which have those that are asked for."""
        for file, name in self._files():
            if file.problem is None:
                with self._open(file.path, name) as parquet:
                    self._check_requested(parquet.schema_arrow, name)
                    yield parquet.schema_arrow

    def _key_rows(self, parquet: pq.ParquetFile, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Row numbers, with the values that name and choose rows, and say whose they are."""
        if not self.keys:
            yield from ((row, {}) for row in range(parquet.metadata.num_rows))
            return
        row = 0
        for batch in parquet.iter_batches(batch_size=8192, columns=self.keys):
            for values in batch.to_pylist():
                yield row, {key: values[key] for key in self.keys}
                row += 1

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        at = 0
        while at < len(entries):
            end = at + 1
            while end < len(entries) and _is_later_row(entries[end - 1], entries[end]):
                end += 1
            yield from self._read_file(entries[at:end])
            at = end

    def _read_file(self, entries: Sequence[Entry]) -> Iterator[Record]:
        """Rows of one file, in ascending order; from a bad page on, what is left of its row group is unreadable."""
        if all(entry.problem for entry in entries):  # not a Parquet file, it may be
            yield from map(failed_record, entries)
            return
        done = 0
        path = self.location.to_path(entries[0].uri)
        try:
            with self._open(path, "file") as parquet:
                schema = parquet.schema_arrow
                same = self.config.id is not None or self.location.version(path) == entries[0].mark
                if same and self._is_usable(schema):
                    names = _class_names(schema, self.config.label)
                    for entry, values in _read_rows(parquet, entries, self._columns(schema)):
                        done += 1
                        yield self._record(entry, values, names)
        except SourceError:
            yield from (failed_record(entry, Reason.UNREADABLE) for entry in entries[done:])
        else:
            yield from (failed_record(entry, Reason.CHANGED) for entry in entries[done:])

    def _record(self, entry: Entry, values: dict[str, Any] | None, names: Sequence[str] | None) -> Record:
        if entry.problem is not None or values is None:
            return failed_record(entry, Reason.UNREADABLE)
        config = self.config
        if config.id and row_digest({key: values[key] for key in self.keys}) != entry.mark:
            return failed_record(entry, Reason.CHANGED)
        try:
            data = values[config.image]
            data = data["bytes"] if isinstance(data, dict) else data
            if not data:
                raise RecordError(Reason.EMPTY)
            if len(data) > config.limits.max_bytes:
                raise RecordError(Reason.TOO_MANY_BYTES)
            label = to_text(_class_label(values[config.label], names)) if config.label else None
            caption = to_text(values[config.caption]) if config.caption else None
            columns, restricted = (
                {n: to_json_value(values[n]) for n in asked} for asked in (config.carry, config.restricted)
            )
            return Record(entry, data, label, caption, columns, restricted, entry.subject)
        except RecordError as error:
            return failed_record(entry, error.reason)

    def _columns(self, schema: pa.Schema) -> list[str]:
        struct = pa.types.is_struct(schema.field(self.config.image).type)
        image = f"{self.config.image}.bytes" if struct else self.config.image
        return list(dict.fromkeys([image, *requested_columns(self.config), *(self.keys if self.config.id else [])]))

    def _is_usable(self, schema: pa.Schema) -> bool:
        try:
            self._check(schema, "file")
        except SourceError:
            return False
        return True

    def _check(self, schema: pa.Schema, name: str) -> None:
        self._check_requested(schema, name)
        refuse_unclassified(self.columns.find_unclassified(schema.names))

    def _check_requested(self, schema: pa.Schema, name: str) -> None:
        check_columns(self.config, schema.names, repr(name))
        image = schema.field(self.config.image).type
        if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
            image = image.field("bytes").type
        if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)):
            raise SourceError(
                f"source.image: column {self.config.image!r} in {name!r} holds {image}, not pictures: name a column of "
                "bytes or of {bytes, path}; paths to pictures belong into a CSV or JSONL listing"
            )
        for column in [*requested_columns(self.config), *self.keys]:
            kind = schema.field(column).type
            if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                raise SourceError(f"source: column {column!r} in {name!r} holds {kind}: name one of text or numbers")

    @contextlib.contextmanager
    def _open(self, path: str, name: str) -> Iterator[pq.ParquetFile]:
        with _arrow_errors(name), self.location.open(path) as file:
            yield pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False)


def _read_rows(
    parquet: pq.ParquetFile, entries: Sequence[Entry], columns: list[str]
) -> Iterator[tuple[Entry, dict[str, Any] | None]]:
    """Each entry with its row's values, None where they are damaged; only the row groups that are needed."""
    waiting = list(reversed(entries))
    first = 0  # row number of the row group
    for group in range(parquet.metadata.num_row_groups):
        behind = first + parquet.metadata.row_group(group).num_rows
        if waiting and _row_number(waiting[-1]) < behind:
            at = first
            with contextlib.suppress(pa.ArrowException, OSError):
                for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                    while waiting and _row_number(waiting[-1]) < at + len(batch):
                        row = _row_number(waiting[-1]) - at
                        yield waiting.pop(), batch.slice(row, 1).to_pylist()[0]
                    at += len(batch)
                    if not waiting or _row_number(waiting[-1]) >= behind:
                        break
            while waiting and _row_number(waiting[-1]) < behind:
                yield waiting.pop(), None
        first = behind


def _is_later_row(one: Entry, other: Entry) -> bool:
    return other.uri == one.uri and _row_number(other) > _row_number(one)


def _row_number(entry: Entry) -> int:
    return entry.offset or 0


def _class_label(value: Any, names: Sequence[str] | None) -> Any:
    """The name behind the number of a class, where there are names."""
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _class_names(schema: pa.Schema, column: str | None) -> list[str] | None:
    """Names behind the numbers of a Hugging Face ClassLabel column."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


@contextlib.contextmanager
def _arrow_errors(name: str) -> Iterator[None]:
    """Arrow's errors as one line that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError):
        raise SourceError(f"source.uri: {name!r} is not a Parquet file, or is damaged: replace it") from None
