"""Build the entries and records of a source: plain values, unique ids, selected rows, carried columns, failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import date, datetime, time
from decimal import Decimal
from hashlib import blake2b
from math import isfinite
from typing import Any

from anonymizer.config import SourceConfig
from anonymizer.data.sources.files import to_printable
from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Entry, Reason, Record, normalize_subject
from anonymizer.storage.prefetch import prefetch_map

NO_CLASS = -1  # of Hugging Face's ClassLabel


def to_json_value(value: object) -> str | int | float | bool | None:
    """Return the value as JSON has it, dates and decimals as text, NaN as null.

    RecordError BAD_METADATA for any other type.
    """
    if isinstance(value, float | Decimal) and value != value:  # NaN: how tables of numbers spell a missing value
        return None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # an unpaired surrogate, which JSON can spell
            raise RecordError(Reason.BAD_METADATA) from None
        return value
    if isinstance(value, bool | float) or value is None:
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    raise RecordError(Reason.BAD_METADATA)


def to_text(value: object) -> str | None:
    """Return the value as text, true and false as JSON spells them. RecordError as ``to_json_value``."""
    value = to_json_value(value)
    return value if value is None or isinstance(value, str) else json.dumps(value)


def to_number(value: object) -> object:
    """Return the number that a text spells, where text and number stand for one another; else the value itself.

    ``007``, ``1.50`` and ``1e5`` stay text. For formats that have no numbers, such as CSV.
    """
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                if str(number := kind(value)) == value and isfinite(number) and -(2**63) <= number < 2**63:
                    return number
    return value


def to_text_or_none(value: object) -> str | None:
    """Return the value as text; None also if it cannot be read as text."""
    try:
        return to_text(value)
    except RecordError:
        return None


def row_digest(values: Mapping[str, object]) -> str:
    """Return a digest of a row, by which a changed row is noticed: names and values in order, nested values as null."""
    row = [(name, to_text_or_none(value)) for name, value in values.items()]
    return blake2b(json.dumps(row).encode(), digest_size=8).hexdigest()


def parse_json_object(text: str | bytes) -> dict[str, Any]:
    """Return a JSON object. ValueError for anything else, and for one with a key twice: which is meant is unknown."""
    try:
        values = json.loads(text, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError("not an object")
    return values


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(values := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return values


class RecordIds:
    """Gives each record a unique id; a second claim to an id gets '%#2' appended, and a problem.

    ``to_printable`` never leaves a '%#' in a text, so no other record can have the id of a duplicate.
    """

    def __init__(self) -> None:
        self._claims: dict[str, int] = {}

    def claim(self, record_id: str) -> tuple[str, Reason | None]:
        count = self._claims[record_id] = self._claims.get(record_id, 0) + 1
        return (record_id, None) if count == 1 else (f"{record_id}%#{count}", Reason.DUPLICATE_ID)

    def __len__(self) -> int:
        return len(self._claims)


class RowEntries:
    """Builds the entries of a table's rows, and counts the rows that ``source.where`` selects."""

    def __init__(self, config: SourceConfig) -> None:
        self.config, self.ids = config, RecordIds()
        self.rows = self.selected = 0

    def build(
        self,
        file: str,
        row: int,
        offset: int,
        values: Mapping[str, Any],
        uri: str,
        mark: str,
        problem: Reason | None = None,
        class_names: Sequence[str] | None = None,
    ) -> Entry | None:
        """Return the entry of a row, named by ``source.id`` or by file and row; None if the row is not selected."""
        config = self.config
        self.rows += 1
        if any(to_text_or_none(values.get(column)) != value for column, value in config.where.items()):
            return None
        self.selected += 1
        default_id = f"{file}/{row}"
        own_id = to_text_or_none(values.get(config.id)) if config.id else default_id
        record_id, duplicate = self.ids.claim(to_printable(own_id) if own_id else default_id)
        try:
            subject = to_text(class_label(values.get(config.subject), class_names)) if config.subject else None
            bad = find_subject_problem(config, subject)
        except RecordError as error:
            subject, bad = None, error.reason
        problem = (None if own_id else Reason.BAD_METADATA) or problem or duplicate or bad
        return Entry(record_id, uri, str(row), offset, problem=problem, mark=mark, subject=subject)

    def check_any(self, uri: str) -> None:
        """Raise SourceError if no row was selected."""
        if not self.selected:
            reason = f"none of its {self.rows} rows matches source.where: check its values"
            raise SourceError(f"source.uri {uri!r}: {reason if self.rows else 'no rows in it'}")


def class_label(value: Any, class_names: Sequence[str] | None) -> Any:
    """Return the name of a class by its number, where there are names; None for -1, which stands for no class.

    RecordError BAD_METADATA for any other number without a name.
    """
    if not class_names or not isinstance(value, int) or value == NO_CLASS:
        return None if class_names and value == NO_CLASS else value
    if not 0 <= value < len(class_names):
        raise RecordError(Reason.BAD_METADATA)
    return class_names[value]


def find_subject_problem(config: SourceConfig, subject: str | None) -> Reason | None:
    """Return NO_SUBJECT for a record that could not be erased by person, where ``source.subject`` asks for one."""
    return Reason.NO_SUBJECT if config.subject is not None and not normalize_subject(subject or "") else None


def folder_values(config: SourceConfig, path: str) -> tuple[str | None, str | None]:
    """Return label and subject of a file where its folder is one; None at the top of the source."""
    folder = to_printable(path.rpartition("/")[0], safe="%") or None
    return folder if config.label == "folder" else None, folder if config.subject == "folder" else None


def requested_columns(config: SourceConfig) -> list[str]:
    """Return the columns that are read for each record besides its image."""
    names = (config.label, config.caption, *config.carry, *config.restricted)
    return list(dict.fromkeys(name for name in names if name))


def build_record(
    config: SourceConfig,
    entry: Entry,
    data: bytes,
    value_of: Callable[[str], object],
    class_names: Sequence[str] | None = None,
) -> Record:
    """Return a record with the columns that the configuration asks for. RecordError BAD_METADATA for a bad value."""
    return Record(
        entry,
        data,
        to_text(class_label(value_of(config.label), class_names)) if config.label else entry.label,
        to_text(value_of(config.caption)) if config.caption else None,
        {name: to_json_value(value_of(name)) for name in config.carry},
        {name: to_json_value(value_of(name)) for name in config.restricted},
        entry.subject,
    )


def failed_record(entry: Entry, problem: Reason | None = None) -> Record:
    """Return the record of an unusable entry, for the reason known at planning or else for this one."""
    return Record(entry, label=entry.label, subject=entry.subject, problem=entry.problem or problem)


def read_or_fail(entry: Entry, read: Callable[[Entry], Record]) -> Record:
    """Return the record that ``read`` returns, or a failed one if it raises."""
    if entry.problem is not None:
        return failed_record(entry)
    try:
        return read(entry)
    except RecordError as error:
        return failed_record(entry, error.reason)
    except Exception:  # storage libraries raise errors of their own; one unreadable record is one failed row
        return failed_record(entry, Reason.UNREADABLE)


def read_file(
    entries: Sequence[Entry],
    open_file: Callable[[ExitStack], Any],
    read: Callable[[Any, Entry], Record],
    concurrency: int = 0,
) -> Iterator[Record]:
    """Yield the records of one file, as ``read_each``; if it cannot be opened, all are UNREADABLE."""
    if all(entry.problem for entry in entries):  # perhaps it is no file of this format
        yield from map(failed_record, entries)
        return
    with ExitStack() as stack:
        try:
            file = open_file(stack)
        except Exception as error:  # storage libraries raise errors of their own
            problem = error.reason if isinstance(error, RecordError) else Reason.UNREADABLE
            yield from (failed_record(entry, problem) for entry in entries)
            return
        yield from read_each(entries, lambda entry: read(file, entry), concurrency)


def read_each(entries: Iterable[Entry], read: Callable[[Entry], Record], concurrency: int = 0) -> Iterator[Record]:
    """Yield a record for each entry, in order; ``concurrency`` threads hide the latency of a remote store."""
    if concurrency == 0:
        yield from (read_or_fail(entry, read) for entry in entries)
        return
    with ThreadPoolExecutor(concurrency, "reader") as pool:
        yield from prefetch_map(lambda entry: read_or_fail(entry, read), entries, pool, concurrency + 1)
