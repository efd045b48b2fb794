"""What of a score may be public: nothing, a coarse bin, or, when asked for, the figure itself."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import Literal

import numpy as np
import pyarrow as pa

from anonymizer.schema import BIN_SUFFIX, SCORE_COLUMNS

BIN_WIDTH = 0.1  # wide enough that a score singles nobody out, narrow enough to see a trend


def to_public_columns(
    rows: pa.Table, how: Literal["none", "binned", "exact"], present: Container[str]
) -> dict[str, pa.Array]:
    """Score columns for the manifest; ``present`` are those that the release has: others have no column."""
    names = [name for name in SCORE_COLUMNS if name in present]
    if how == "none":
        return {}
    if how == "exact":
        return {name: rows[name] for name in names}
    return {
        f"{name}{BIN_SUFFIX}": pa.array([bin_label(v) for v in rows[name].to_pylist()], pa.string()) for name in names
    }


def find_score_columns(manifest: Iterable[str]) -> dict[str, str]:
    """Which of a manifest's columns publish a score, exactly or in bins, and which score each publishes."""
    known = {public: name for name in SCORE_COLUMNS for public in (name, f"{name}{BIN_SUFFIX}")}
    return {column: known[column] for column in manifest if column in known}


def to_number(published: float | str | None) -> float:
    """What a column holds, as a number: a score, or the middle of a bin from its ``label``; NaN where there is none."""
    if not isinstance(published, str):
        return math.nan if published is None else published
    low, _, high = published.partition(" to ")
    return (float(low) + float(high)) / 2


def bin_center(value: float) -> float:
    """The middle of the bin in which a score lies; NaN for what is not finite."""
    return to_number(bin_label(value if math.isfinite(value) else None))


def bin_label(value: float | None) -> str | None:
    """The bin of a value as text, for example ``0.6 to 0.7``; the upper end is not in it, but for a score of 1."""
    if value is None:
        return None
    step = 9 if abs(value - 1) < 1e-6 else int(np.floor(value / BIN_WIDTH + 1e-9))
    return f"{step * BIN_WIDTH:.1f} to {(step + 1) * BIN_WIDTH:.1f}"
