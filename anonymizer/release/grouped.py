"""What holds within a group: members are different, and alike in everything that is published of them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.config import RunConfig
from anonymizer.config.groups import CAPTION, LABEL
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data.passthrough_columns import from_json
from anonymizer.errors import RecordError
from anonymizer.records import Entry, Reason, Record, Status, normalize_subject
from anonymizer.schema import METHOD_COLUMNS

Row = Mapping[str, Any]
MAX_NUMBER = 1e15  # beyond which fractions are lost
# What members have in common, whether they share an output or not: else a row would tell of one of them.
SHARED_COLUMNS = ("label", "caption", "carried", "attempts", "width", "height", *METHOD_COLUMNS)


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
    """Return a carried value as a number. Raises RecordError (bad_metadata) for any other, and beyond 1e15."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= MAX_NUMBER:
        raise RecordError(Reason.BAD_METADATA)
    return number


def format_range(values: Sequence[object]) -> str:
    """Return ``LOW to HIGH``, which holds n numbers; one number where all are equal.

    The ends are rounded outward, to 1, 2 or 5 times a power of ten that is an n-th of the spread or more: exact ones,
    as the source spells them, would be values of two of the originals.
    """
    numbers = sorted(map(as_number, values))
    if numbers[0] == numbers[-1]:
        return f"{numbers[0]:.12g}"
    share = (numbers[-1] - numbers[0]) / len(numbers)
    power = 10.0 ** math.floor(math.log10(share))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= share)
    low, high = math.floor(numbers[0] / step), math.ceil(numbers[-1] / step)
    return f"{low * step:.12g} to {high * step:.12g}"


def contents(
    key: CustodianKey, group: str, data_hmacs: Collection[str], outputs: Literal["one", "each"]
) -> dict[str, str]:
    """Return original -> what its output is drawn from, both as keyed digests; in an order that tells nothing of them.

    Noise and id of an output depend on it. Where each original has an output of its own, these are dealt by lot.
    """
    numbers = enumerate(key.deal(group, data_hmacs))
    return {digest: key.group_hmac(group, data_hmacs, n if outputs == "each" else 0) for n, digest in numbers}


def output_id(key: CustodianKey, content: str, fingerprint: str) -> str:
    """Return the id of an output of a group, which depends on all of its originals and on no name."""
    return key.output_id("", content, fingerprint)


def has_output(table: pa.Table) -> pa.ChunkedArray:
    """Return which rows of a ledger are of records with an output."""
    return pc.is_in(table["status"], value_set=pa.array([Status.RELEASED.value, Status.QUARANTINED.value]))


def find_fault(table: pa.Table, planned: Mapping[str, str | None], config: RunConfig) -> str | None:
    """Return what is wrong with the groups in a shard's rows of the ledger; None where nothing is.

    ``planned``: record id -> group. A shard holds all members of its groups.
    """
    in_group = table["group"].is_valid()
    expected = pa.repeat(False, len(table)) if config.boomerang.k == 1 else has_output(table)
    if not pc.all(pc.equal(in_group, expected)).as_py() and len(table):
        return "an output of no group, and groups in the settings, or the other way round"
    groups: dict[str, list[Row]] = {}
    for row in table.filter(in_group).to_pylist():
        if row["group"] != planned[row["record_id"]]:
            return "a record is in another group than planned"
        groups.setdefault(row["group"], []).append(row)
    return next(filter(None, (_fault_of_group(members, config) for members in groups.values())), None)


def _fault_of_group(members: Sequence[Row], config: RunConfig) -> str | None:
    size, groups, source = len(members), config.groups, config.source
    subjects = [row["subject"] for row in members] if groups.by_subject(source) else []
    if size < config.boomerang.k or {row["group_size"] for row in members} != {size}:
        return f"a group has other members than were in its mean, or fewer than {config.boomerang.k}"
    if len({row["source_hmac"] for row in members} - {None}) != size or not is_distinct(subjects):
        return "one original, or one person, is in a group twice"
    alike = [tuple(row[name] for name in SHARED_COLUMNS) for row in members]
    if len(set(alike)) > 1 or not is_alike([_record_of(row) for row in members], groups.columns(source)):
        return "members of a group differ in what is published of them, or in a column of groups.by"
    ids = {row["output_id"] for row in members}
    if None in ids or len(ids) != (size if groups.outputs == "each" else 1):
        return f"members of a group have other outputs than groups.outputs ({groups.outputs}) gives"
    return None


def _record_of(row: Row) -> Record:
    columns, restricted = from_json(row["carried"]), from_json(row["restricted"])
    return Record(Entry(row["record_id"], ""), b"", row["label"], row["caption"], columns, restricted)
