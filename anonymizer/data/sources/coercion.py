"""Values that are carried along: plain, valid text or numbers, or the record says that they cannot be read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from difflib import get_close_matches
from hashlib import blake2b

from anonymizer.config import SourceConfig
from anonymizer.data.sources.files import to_printable
from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Reason
from anonymizer.schema import COLUMNS, PRIVATE_COLUMNS

# Columns of the manifest and of the released files themselves, which a carried column must not replace.
RESERVED_COLUMNS = frozenset(["image", *(column.name for column in COLUMNS)]) | PRIVATE_COLUMNS


def to_json_value(value: object) -> str | int | float | bool | None:
    """The value as JSON knows it; dates and decimals as text. RecordError BAD_METADATA for anything else."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # half a surrogate pair, as JSON can spell it
            raise RecordError(Reason.BAD_METADATA) from None
        return value
    if isinstance(value, bool | float) or value is None:
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    raise RecordError(Reason.BAD_METADATA)


def to_text(value: object) -> str | None:
    """The value as text: true and false as JSON spells them."""
    value = to_json_value(value)
    return value if value is None or isinstance(value, str) else json.dumps(value)


def to_text_or_none(value: object) -> str | None:
    """The value as text; None too for what cannot be read as one."""
    try:
        return to_text(value)
    except RecordError:
        return None


def parse_subject(value: object) -> tuple[str | None, Reason | None]:
    """Whose picture it is, as text; BAD_METADATA if that cannot be read, for then nobody could be erased by it."""
    name = to_text_or_none(value)
    return name, Reason.BAD_METADATA if name is None and value is not None else None


def row_digest(values: Mapping[str, object]) -> str:
    """A digest by which a row is known again: names and values, in order; nested values count as empty."""
    row = [(name, to_text_or_none(value)) for name, value in values.items()]
    return blake2b(json.dumps(row).encode(), digest_size=8).hexdigest()


def requested_columns(config: SourceConfig) -> list[str]:
    """Names that are read for each record besides its picture."""
    names = (config.label, config.caption, *config.carry, *config.restricted)
    return list(dict.fromkeys(name for name in names if name))


def check_carry(config: SourceConfig) -> None:
    """SourceError if a carried column would replace one of the release's own."""
    for name in config.carry:
        if name in RESERVED_COLUMNS:
            hint = f"use source.{name}" if name in ("label", "caption") else "rename it in the source, or leave it out"
            raise SourceError(f"source.carry: {name!r} is a column of the release itself: {hint}")


def check_columns(config: SourceConfig, available: Sequence[str], file: str) -> None:
    """SourceError if a column that the configuration names is not there, or twice; ``where`` says in which file."""
    found = Counter(available)
    asked: Iterable[tuple[str, str | None]] = [
        ("image", config.image),
        ("id", config.id),
        ("label", config.label),
        ("caption", config.caption),
        ("subject", config.subject),
        *(("carry", name) for name in config.carry),
        *(("restricted", name) for name in config.restricted),
        *(("where", name) for name in config.where),
    ]
    for field, name in asked:
        if name is None or found[name] == 1:
            continue
        if found[name] > 1:
            raise SourceError(f"source.{field}: {found[name]} columns {name!r} in {file}: rename all but one")
        near = ", ".join(repr(to_printable(column)) for column in get_close_matches(name, found, n=3, cutoff=0.6))
        hint = f"did you mean {near}?" if near else "check its spelling"
        raise SourceError(f"source.{field}: no column {name!r} among the {len(available)} of {file}: {hint}")
