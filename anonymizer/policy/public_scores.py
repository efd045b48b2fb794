"""What of a score may be public: nothing, a coarse bin, or, when asked for, the figure itself."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import Literal

import numpy as np
import pyarrow as pa

COLUMNS = ("clip_similarity", "lpips")
BINNED = "_bin"  # after the name of a column that holds bins
BIN = 0.1  # wide enough that a score singles nobody out, narrow enough to see a trend


def public_columns(
    rows: pa.Table, how: Literal["none", "binned", "exact"], present: Container[str]
) -> dict[str, pa.Array]:
    """Score columns for the manifest; ``present`` are those that the release has: others have no column."""
    names = [name for name in COLUMNS if name in present]
    if how == "none":
        return {}
    if how == "exact":
        return {name: rows[name] for name in names}
    return {f"{name}{BINNED}": pa.array([label(v) for v in rows[name].to_pylist()], pa.string()) for name in names}


def columns(manifest: Iterable[str]) -> dict[str, str]:
    """Which of a manifest's columns publish a score, exactly or in bins, and which score each publishes."""
    known = {public: name for name in COLUMNS for public in (name, f"{name}{BINNED}")}
    return {column: known[column] for column in manifest if column in known}


def number(published: float | str | None) -> float:
    """What a column holds, as a number: a score, or the middle of a bin from its ``label``; NaN where there is none."""
    if not isinstance(published, str):
        return math.nan if published is None else published
    low, _, high = published.partition(" to ")
    return (float(low) + float(high)) / 2


def binned(value: float) -> float:
    """The middle of the bin in which a score lies; NaN for what is not finite."""
    return number(label(value if math.isfinite(value) else None))


def label(value: float | None) -> str | None:
    """The bin of a value as text, for example ``0.6 to 0.7``; the upper end is not in it, but for a score of 1."""
    if value is None:
        return None
    step = 9 if abs(value - 1) < 1e-6 else int(np.floor(value / BIN + 1e-9))
    return f"{step * BIN:.1f} to {(step + 1) * BIN:.1f}"
