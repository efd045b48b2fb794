"""A CSV, TSV or JSONL file that names one picture in each row, with labels, captions and other columns beside it."""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

from anonymizer.config import SourceConfig
from anonymizer.data.sources.coercion import (
    check_columns,
    parse_subject,
    row_digest,
    to_json_value,
    to_text,
    to_text_or_none,
)
from anonymizer.data.sources.column_policy import (
    ALL_OTHERS,
    FILE_ATTRIBUTES,
    ColumnPolicy,
    Field,
    configured_columns,
    refuse_unclassified,
)
from anonymizer.data.sources.files import Location, RecordIds, failed_record, read_each, read_uri, to_printable
from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Entry, Reason, Record

# File systems that a row may name; others (archives, caches, references) could lead anywhere.
ALLOWED_PROTOCOLS = {
    "file",
    "local",
    "memory",
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "adl",
    "hdfs",
    "http",
    "https",
}


class ListingSource:
    """One row, one record; its id is listing and row, or the column ``source.id``.

    A relative path is meant from the listing's folder and must stay inside it; an absolute path or a URI is taken at
    its word.
    """

    def __init__(self, config: SourceConfig, location: Location) -> None:
        if not location.is_file:
            raise SourceError(f"source.uri {location.uri!r}: a folder: name the CSV or JSONL file in it")
        self.config, self.location = config, location
        self.columns = ColumnPolicy(configured_columns(config), ALL_OTHERS in config.drop)
        self.name = to_printable(location.path.rpartition("/")[2])
        self.folder = location.path.rpartition("/")[0]
        self._header: list[str] = []
        self._lock = Lock()  # one thread at a time reads a row; their pictures are read side by side
        self.is_json = not location.path.lower().endswith((".csv", ".tsv"))

    def entries(self) -> Iterator[Entry]:
        ids = RecordIds()
        config = self.config
        row, keys = -1, dict[str, None]()
        refuse_unclassified(self.columns.find_unclassified(self._column_names()))
        with self.location.open(self.location.path) as file:
            for row, (offset, values) in enumerate(self._rows(file)):
                keys.update(dict.fromkeys(values))
                if any(to_text_or_none(values.get(column)) != wanted for column, wanted in config.where.items()):
                    continue
                own = to_text_or_none(values.get(config.id)) if config.id else f"{self.name}/{row}"
                image = to_text_or_none(values.get(config.image))
                problem = Reason.BAD_METADATA if not own else Reason.EMPTY if not image else None
                record_id, duplicate = ids.claim(to_printable(own) if own else f"{self.name}/{row}")
                uri, outside = self._resolve(image or "")
                who, unreadable = parse_subject(values.get(config.subject)) if config.subject else (None, None)
                problem = problem or outside or duplicate or unreadable
                yield Entry(record_id, uri, str(row), offset, problem=problem, mark=row_digest(values), subject=who)
        if row >= 0:
            check_columns(config, list(keys), repr(self.name))
        if not len(ids):
            why = f"none of its {row + 1} rows matches source.where: check its values" if row >= 0 else "no rows in it"
            raise SourceError(f"source.uri {self.location.uri!r}: {why}")

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        if not entries:
            return
        try:
            file = self.location.open(self.location.path)
        except Exception:  # storage libraries raise errors of their own
            yield from (failed_record(entry, Reason.UNREADABLE) for entry in entries)
            return
        self._header = []  # as it is now
        with file:
            yield from read_each(entries, lambda entry: self._read_record(file, entry), self.location.concurrent_reads)

    def fields(self) -> list[Field]:
        names = list(dict.fromkeys(self._column_names()))
        refuse_unclassified(self.columns.find_unclassified(names))
        return [FILE_ATTRIBUTES, *self.columns.describe(names, "column")]

    def _column_names(self) -> Iterator[str]:
        """The columns of the header, or the keys of every row."""
        with self.location.open(self.location.path) as file:
            for _, values in self._rows(file):
                yield from values
                if not self.is_json:
                    return

    def _read_record(self, file: Any, entry: Entry) -> Record:
        config, values = self.config, self._planned_row(file, entry)
        label = to_text(values.get(config.label)) if config.label else None
        caption = to_text(values.get(config.caption)) if config.caption else None
        columns, restricted = (
            {name: to_json_value(values.get(name)) for name in names} for names in (config.carry, config.restricted)
        )
        return Record(entry, self._read_image(entry), label, caption, columns, restricted, entry.subject)

    def _planned_row(self, file: Any, entry: Entry) -> dict[str, Any]:
        """The row of an entry; RecordError CHANGED if another one stands there now."""
        try:
            with self._lock:
                _, values = next(self._rows(file, entry.offset or 0), (0, None))
        except SourceError:
            values = None
        if values is None or row_digest(values) != entry.mark:
            raise RecordError(Reason.CHANGED)
        return values

    def _read_image(self, entry: Entry) -> bytes:
        most = self.config.limits.max_bytes
        if entry.uri.startswith(self.location.to_uri(self.folder).rstrip("/") + "/"):
            return self.location.read(self.location.to_path(entry.uri), most)
        return read_uri(entry.uri, most)

    def _resolve(self, image: str) -> tuple[str, Reason | None]:
        """Where a row's picture lies, and whether it may be read."""
        protocol, separator, _ = image.partition("://")
        if separator:
            known = protocol.lower() in ALLOWED_PROTOCOLS and "::" not in image
            return image, None if known else Reason.OUTSIDE_SOURCE
        path = posixpath.normpath(posixpath.join(self.folder, image))
        inside = posixpath.isabs(image) or path.startswith(self.folder.rstrip("/") + "/")
        bad = not inside or "\0" in image
        return self.location.to_uri(path), Reason.OUTSIDE_SOURCE if bad else None

    def _rows(self, file: Any, offset: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """(offset, values) of each row, from the first one or from the one at ``offset``; SourceError if malformed."""
        lines = _Lines(file, self.name)
        if self.is_json:
            yield from self._json_rows(lines, offset)
        else:
            yield from self._csv_rows(lines, offset)

    def _json_rows(self, lines: _Lines, offset: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
        lines.seek(offset or 0)
        while True:
            start, line = lines.offset, next(lines, None)
            if line is None:
                return
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                values = None
            if not isinstance(values, dict):
                raise SourceError(f"source.uri: line {lines.number} of {self.name!r} is not a JSON object: correct it")
            yield start, values

    def _csv_rows(self, lines: _Lines, offset: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
        delimiter = "\t" if self.location.path.lower().endswith(".tsv") else ","
        try:
            header = self._header
            if offset is None or not header:
                lines.seek(0)
                header = self._header = next(csv.reader(lines, delimiter=delimiter, strict=True), [])
                if not header:
                    raise SourceError(f"source.uri: {self.name!r} has no header: its first line must name the columns")
                if self.config.image not in header:  # perhaps it is no header but data, which no error may name
                    raise SourceError(
                        f"source.image: no column {self.config.image!r} among the {len(header)} of {self.name!r}: name "
                        "the column of the paths; the first line must name the columns"
                    )
                check_columns(self.config, header, repr(self.name))
            if offset is not None:
                lines.seek(offset)
            start = lines.offset
            for fields in csv.reader(lines, delimiter=delimiter, strict=True):
                if fields:
                    if len(fields) != len(header):
                        raise SourceError(
                            f"source.uri: line {lines.number} of {self.name!r} has {len(fields)} fields, not the "
                            f"{len(header)} of the header: correct it, or quote what holds a {delimiter!r}"
                        )
                    yield start, {k: v or None for k, v in zip(header, fields, strict=True)}
                start = lines.offset
        except csv.Error as error:
            raise SourceError(f"source.uri: line {lines.number} of {self.name!r}: {error}: correct it") from None


class _Lines:
    """Lines of a UTF-8 file as text, with the byte offset of the next one."""

    def __init__(self, file: Any, name: str) -> None:
        self.file, self.name = file, name
        self.offset = 0
        self.number = 0

    def seek(self, offset: int) -> None:
        self.file.seek(offset)
        self.offset = offset
        if offset == 0:
            if self.file.read(3) == b"\xef\xbb\xbf":  # a byte order mark
                self.offset = 3
            self.file.seek(self.offset)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self.file.readline()
        if not line:
            raise StopIteration
        self.offset += len(line)
        self.number += 1
        try:
            return str(line, "utf-8")
        except UnicodeDecodeError:
            raise SourceError(
                f"source.uri: line {self.number} of {self.name!r} is not UTF-8: save the file as UTF-8"
            ) from None
