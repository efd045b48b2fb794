"""Columns that are carried from the source: one JSON text in the ledger, columns of their own in the manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa


def to_json(columns: Mapping[str, object]) -> str | None:
    """Return the text for the ledger; None if there are no columns."""
    return json.dumps(columns, ensure_ascii=False, sort_keys=True, default=str) if columns else None


def from_json(text: str | None) -> dict[str, object]:
    """Return the columns in a text of the ledger."""
    return dict(json.loads(text)) if text else {}


class TypeInference:
    """Infers the type of each carried column from all its values, in one pass and in any order.

    It is the common type of the values, where integers and floats have one; else text.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._types: dict[str, set[type]] = {name: set() for name in names}
        self._ranges = dict.fromkeys(names, (0, 0))  # of integers

    def update(self, texts: Iterable[str | None]) -> None:
        for text in texts:
            row = from_json(text)
            for name, types in self._types.items():
                if (value := row.get(name)) is not None:
                    types.add(type(value))
                    if type(value) is int:
                        low, high = self._ranges[name]
                        self._ranges[name] = min(low, value), max(high, value)

    def types(self) -> dict[str, pa.DataType]:
        return {name: _common_type(types, *self._ranges[name]) for name, types in self._types.items()}


def to_arrays(texts: Sequence[str | None], types: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
    """Return the columns by name, of the inferred types."""
    rows = [from_json(text) for text in texts]
    columns = {name: [row.get(name) for row in rows] for name in types}
    for name, kind in types.items():
        if pa.types.is_string(kind):
            columns[name] = [None if value is None else str(value) for value in columns[name]]
    return {name: pa.array(values, types[name]) for name, values in columns.items()}


def _common_type(types: set[type], low: int, high: int) -> pa.DataType:
    """Return the Arrow type of Python types, with the range of the integers among them."""
    for single, kind in ((set(), pa.null()), ({bool}, pa.bool_()), ({str}, pa.string())):
        if types == single:
            return kind
    if types == {int} and low >= -(2**63) and high < 2**63:
        return pa.int64()
    if types != {int} and types <= {int, float} and low >= -(2**53) and high <= 2**53:  # exact as floats
        return pa.float64()
    return pa.string()
