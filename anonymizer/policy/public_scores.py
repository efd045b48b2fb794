"""Publication of scores in a manifest: not at all, as coarse bins, or exactly."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import Literal

import pyarrow as pa

from anonymizer.schema import BIN_SUFFIX, SCORE_COLUMNS

BIN_WIDTH = 0.1  # wide enough that a score singles nobody out, narrow enough to see a trend


def to_public_columns(
    rows: pa.Table, mode: Literal["none", "binned", "exact"], present: Container[str]
) -> dict[str, pa.Array]:
    """Return the manifest's score columns from ledger rows; scores that are not ``present`` get no column."""
    names = [name for name in SCORE_COLUMNS if name in present and mode != "none"]
    if mode == "exact":
        return {name: rows[name] for name in names}
    return {
        f"{name}{BIN_SUFFIX}": pa.array([bin_label(v) for v in rows[name].to_pylist()], pa.string()) for name in names
    }


def find_score_columns(names: Iterable[str]) -> dict[str, str]:
    """Return the columns of a manifest that publish a score, exactly or binned, with the name of the score."""
    scores = {public: name for name in SCORE_COLUMNS for public in (name, f"{name}{BIN_SUFFIX}")}
    return {column: scores[column] for column in names if column in scores}


def to_number(value: float | str | None) -> float:
    """Return a published value as a number: a score, the centre of a bin from its label, or NaN for None."""
    if not isinstance(value, str):
        return math.nan if value is None else value
    low, _, high = value.partition(" to ")
    return (float(low) + float(high)) / 2


def bin_center(value: float) -> float:
    """Return the centre of the bin that a score lies in; NaN if it is not finite."""
    return to_number(bin_label(value if math.isfinite(value) else None))


def bin_label(value: float | None) -> str | None:
    """Return the half-open bin of a score as text, for example ``0.6 to 0.7``; 1 lies in the last bin below it."""
    if value is None:
        return None
    step = 9 if abs(value - 1) < 1e-6 else math.floor(value / BIN_WIDTH + 1e-9)
    return f"{step * BIN_WIDTH:.1f} to {(step + 1) * BIN_WIDTH:.1f}"
