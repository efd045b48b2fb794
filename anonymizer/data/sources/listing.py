"""A CSV, TSV or JSONL file that names one image in each row, with labels, captions and other columns."""

from __future__ import annotations

import csv
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

from anonymizer.config import SourceConfig
from anonymizer.data.sources.building import (
    RowEntries,
    build_record,
    parse_json_object,
    read_file,
    row_digest,
    to_number,
    to_text_or_none,
)
from anonymizer.data.sources.column_policy import FILE_ATTRIBUTES, ColumnPolicy, Field, check_columns
from anonymizer.data.sources.files import Location, to_printable
from anonymizer.data.sources.row_files import RowFiles
from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Entry, Reason, Record


class ListingSource:
    """One row, one record; its id is listing and row, or the column ``source.id``.

    A relative path starts from the listing's folder. No path or URI may lead out of it, but to ``source.allow``.
    """

    def __init__(self, config: SourceConfig, location: Location) -> None:
        if not location.is_file:
            raise SourceError(f"source.uri {location.uri!r}: a folder: name the CSV or JSONL file in it")
        self.config, self.location = config, location
        self.policy = ColumnPolicy.from_config(config)
        self.files = RowFiles(location, config.allow)
        self.name = to_printable(location.path.rpartition("/")[2])
        self.is_json = not location.path.lower().endswith((".csv", ".tsv"))
        self._header: list[str] = []
        self._lock = Lock()  # rows are read by one thread at a time, their images concurrently

    def entries(self) -> Iterator[Entry]:
        rows, columns = RowEntries(self.config), dict[str, None]()
        self.policy.check(self._column_names())
        with self.location.open(self.location.path) as file:
            for row, (offset, values) in enumerate(self._rows(file)):
                columns.update(dict.fromkeys(values))
                image = to_text_or_none(values.get(self.config.image))
                uri, problem = self.files.resolve(image or "")
                problem = problem if image else Reason.EMPTY
                if entry := rows.build(self.name, row, offset, values, uri, row_digest(values), problem):
                    yield entry
        if rows.rows:
            check_columns(self.config, list(columns), repr(self.name))
        rows.check_any(self.location.uri)

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        self._header = []  # it may have changed
        path = self.location.path
        return read_file(
            entries,
            lambda stack: stack.enter_context(self.location.open(path)),
            self._read_record,
            self.location.concurrent_reads,
        )

    def fields(self) -> list[Field]:
        names = list(dict.fromkeys(self._column_names()))
        self.policy.check(names)
        columns = self.policy.describe(names, "column")
        return [FILE_ATTRIBUTES, *columns, *self.files.describe(self._image_names())]

    def _image_names(self) -> Iterator[str]:
        with self.location.open(self.location.path) as file:
            for _, values in self._rows(file):
                if name := to_text_or_none(values.get(self.config.image)):
                    yield name

    def _column_names(self) -> Iterator[str]:
        """Yield the columns of the header, or the keys of every row."""
        with self.location.open(self.location.path) as file:
            for _, values in self._rows(file):
                yield from values
                if not self.is_json:
                    return

    def _read_record(self, file: Any, entry: Entry) -> Record:
        row = self._planned_row(file, entry)
        record = build_record(self.config, entry, b"", row.get)
        if not self.is_json:
            record = replace(record, columns={column: to_number(value) for column, value in record.columns.items()})
        name = to_text_or_none(row.get(self.config.image)) or ""  # of the row, not of the plan
        return replace(record, data=self.files.read(name, self.config.limits.max_bytes))

    def _planned_row(self, file: Any, entry: Entry) -> dict[str, Any]:
        """Return the row of an entry. RecordError CHANGED if it is another one now."""
        try:
            with self._lock:
                _, values = next(self._rows(file, entry.offset or 0), (0, None))
        except SourceError:
            values = None
        if values is None or row_digest(values) != entry.mark:
            raise RecordError(Reason.CHANGED)
        return values

    def _rows(self, file: Any, offset: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (offset, values) of each row, from the first or from that at ``offset``. SourceError if malformed."""
        return self._json_rows(file, offset or 0) if self.is_json else self._csv_rows(file, offset)

    def _json_rows(self, file: Any, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
        offset = _seek(file, offset)
        for number, line in enumerate(self._lines(file), 1):
            if line.strip():
                try:
                    values = parse_json_object(line)
                except ValueError:
                    raise SourceError(
                        f"source.uri: line {number} of {self.name!r} is no JSON object, or has a key twice: correct it"
                    ) from None
                yield offset, values
            offset = file.tell()

    def _csv_rows(self, file: Any, offset: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
        delimiter = "\t" if self.location.path.lower().endswith(".tsv") else ","
        reader = csv.reader(self._lines(file), delimiter=delimiter, strict=True)
        try:
            header = self._header
            if offset is None or not header:
                _seek(file, 0)
                header = self._header = next(reader, [])
                self._check_header(header)
            if offset is not None:
                file.seek(offset)
            start = file.tell()
            for fields in reader:
                if fields:
                    if len(fields) != len(header):
                        raise SourceError(
                            f"source.uri: line {reader.line_num} of {self.name!r} has {len(fields)} fields, not the "
                            f"{len(header)} of the header: correct it, or quote what holds a {delimiter!r}"
                        )
                    yield start, {column: value or None for column, value in zip(header, fields, strict=True)}
                start = file.tell()
        except csv.Error as error:
            raise SourceError(f"source.uri: line {reader.line_num} of {self.name!r}: {error}: correct it") from None

    def _check_header(self, header: Sequence[str]) -> None:
        if not header:
            raise SourceError(f"source.uri: {self.name!r} has no header: its first line must name the columns")
        if self.config.image not in header:  # it may be a row of data, which no error may quote
            raise SourceError(
                f"source.image: no column {self.config.image!r} among the {len(header)} of {self.name!r}: name "
                "the column of the paths; the first line must name the columns"
            )
        check_columns(self.config, header, repr(self.name))

    def _lines(self, file: Any) -> Iterator[str]:
        """Yield the lines of a file as text, from where it stands; ``file.tell()`` is always behind the last one."""
        for number, line in enumerate(iter(file.readline, b""), 1):
            try:
                yield str(line, "utf-8")
            except UnicodeDecodeError:
                raise SourceError(
                    f"source.uri: line {number} of {self.name!r} is not UTF-8: save the file as UTF-8"
                ) from None


def _seek(file: Any, offset: int) -> int:
    """Go to an offset, at the start of the file to that after a byte order mark; return it."""
    file.seek(offset)
    if offset == 0:
        file.seek(len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0)
    return int(file.tell())
