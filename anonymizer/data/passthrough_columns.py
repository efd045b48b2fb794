"""Columns that are carried from the source: one JSON text in the ledger, columns of their own in the manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import pyarrow as pa

JSON_TYPES = (str, int, float, bool, type(None))


def to_json(columns: Mapping[str, object]) -> str | None:
    """The ledger's text; values that JSON does not know are written as text. None where nothing is carried."""
    if not columns:
        return None
    plain = {name: value if isinstance(value, JSON_TYPES) else _to_text(value) for name, value in columns.items()}
    return json.dumps(plain, ensure_ascii=False, sort_keys=True)


def from_json(text: str | None) -> dict[str, object]:
    return dict(json.loads(text)) if text else {}


class TypeInference:
    """The type of each carried column, told from all its values, which are seen once and in any order.

    It is the values' own where they agree (whole numbers and others are numbers), else text.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._seen: dict[str, dict[type, tuple[Any, Any]]] = {name: {} for name in names}

    def update(self, texts: Iterable[str | None]) -> None:
        for text in texts:
            row = from_json(text)
            for name, seen in self._seen.items():
                if (value := row.get(name)) is not None:
                    low, high = seen.get(type(value), (value, value))
                    seen[type(value)] = (min(low, value), max(high, value))  # type: ignore[type-var]

    def types(self) -> dict[str, pa.DataType]:
        return {name: _infer_type(seen) for name, seen in self._seen.items()}


def to_arrays(texts: Sequence[str | None], types: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
    """Name -> column, of the types that ``Kinds`` told."""
    rows = [from_json(text) for text in texts]
    return {name: _to_array([row.get(name) for row in rows], kind) for name, kind in types.items()}


def _to_text(value: object) -> str:
    return value.isoformat() if isinstance(value, (date, datetime)) else str(value)


def _infer_type(seen: Mapping[type, tuple[Any, Any]]) -> pa.DataType:
    """``seen``: the least and the greatest value of each Python type."""
    low, high = seen.get(int, (0, 0))
    least, most = (-(2**53), 2**53) if float in seen else (-(2**63), 2**63 - 1)  # that are exact
    exact = least <= low and high <= most
    for kinds, found in (((), pa.null()), ((bool,), pa.bool_()), ((str,), pa.string())):
        if set(seen) == set(kinds):
            return found
    if exact and set(seen) <= {int, float}:
        return pa.float64() if float in seen else pa.int64()
    return pa.string()


def _to_array(values: Sequence[object], kind: pa.DataType) -> pa.Array:
    texts = pa.types.is_string(kind)
    return pa.array([None if v is None else str(v) for v in values] if texts else values, kind)
