"""Coerce the values of a source to plain JSON values and valid text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date, datetime, time
from decimal import Decimal
from hashlib import blake2b

from anonymizer.errors import RecordError
from anonymizer.records import Reason


def to_json_value(value: object) -> str | int | float | bool | None:
    """Return the value as JSON has it, dates and decimals as text. RecordError BAD_METADATA for any other type."""
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
