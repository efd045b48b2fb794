"""Columns that are carried from the source: one JSON text in the ledger, columns of their own in the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date, datetime

import pyarrow as pa

# Columns that say which original a picture is from, or how; no manifest has one, and nothing of the name is carried.
PRIVATE = frozenset(
    ["record_id", "source_uri", "source_hmac", "subject", "restricted", "carried", "reason", "status", "attempts",
     "shard", "started", "seconds", "code_version", "earlier", "kept", "identity_distance", "identity_distance_bin",
     "faces", "seed", "embedding"]
)  # fmt: skip

PLAIN = (str, int, float, bool, type(None))


def to_json(columns: Mapping[str, object]) -> str | None:
    """The ledger's text; values that JSON does not know are written as text. None where nothing is carried."""
    if not columns:
        return None
    plain = {name: value if isinstance(value, PLAIN) else _text(value) for name, value in columns.items()}
    return json.dumps(plain, ensure_ascii=False, sort_keys=True)


def from_json(text: str | None) -> dict[str, object]:
    return dict(json.loads(text)) if text else {}


def to_arrays(texts: Sequence[str | None], names: Sequence[str]) -> dict[str, pa.Array]:
    """Name -> column, of one type throughout: the values' own where they agree, else text."""
    rows = [from_json(text) for text in texts]
    return {name: _array([row.get(name) for row in rows]) for name in names}


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, (date, datetime)) else str(value)


def _array(values: Sequence[object]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if v is None else str(v) for v in values], pa.string())
