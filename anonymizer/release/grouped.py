"""What holds within a group: members are different, and alike in everything that is published of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anonymizer.config.groups import CAPTION, LABEL
from anonymizer.errors import RecordError
from anonymizer.records import Reason, Record, normalize_subject


def column_value(record: Record, name: str) -> object:
    """Return a record's value of a column of ``groups.by``; None where it has none."""
    own = {LABEL: record.label, CAPTION: record.caption}.get(name)
    return record.columns.get(name, record.restricted.get(name)) if own is None else own


def is_alike(records: Sequence[Record], names: Sequence[str]) -> bool:
    """Return whether records are equal in each of some columns."""
    return all(column_value(record, name) == column_value(records[0], name) for record in records for name in names)


def is_distinct(subjects: Sequence[str | None]) -> bool:
    """Return whether people, by their names in the source, are all named and different."""
    names = {normalize_subject(name) for name in subjects if name is not None}
    return len(names) == len(subjects)


def as_number(value: object) -> float:
    """Return a carried value as a number. Raises RecordError (bad_metadata) for any other."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise RecordError(Reason.BAD_METADATA)
    return number


def format_range(values: Sequence[object]) -> str:
    """Return ``LOW-HIGH`` of values that are numbers, as the source writes them; one value where all are equal."""
    low, high = min(values, key=as_number), max(values, key=as_number)
    return str(low) if as_number(low) == as_number(high) else f"{low}-{high}"
