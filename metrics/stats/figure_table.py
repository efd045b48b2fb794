"""Figures as an Arrow table, a column for each field."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields

import pyarrow as pa

from metrics.stats.risk import Figure

TYPES = {"str": pa.string(), "int": pa.int32(), "float": pa.float64()}
FIGURE_SCHEMA = pa.schema([pa.field(f.name, TYPES[str(f.type).partition(" ")[0]]) for f in fields(Figure)])


def figures_table(figures: Iterable[Figure]) -> pa.Table:
    """Return a row for each figure, by ``FIGURE_SCHEMA``."""
    return pa.Table.from_pylist([asdict(figure) for figure in figures], FIGURE_SCHEMA)
