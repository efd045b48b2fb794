"""Headline figures of an audit: per attack, those of its strongest attacker above what chance explains.

A figure is a row of ``restricted/audit/figures.parquet`` as a mapping, see ``metrics.stats.risk.Figure``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from anonymizer.config.policy import MEASURES

FigureRow = Mapping[str, Any]

TRAINING_SET = "training"  # in the names of measures about the model's training set, not about the release


def select_strongest(rows: Sequence[FigureRow], attacks: Sequence[str]) -> list[FigureRow]:
    """Return each measured attack's headline figure with the highest upper bound, highest first."""
    headlines = [select_headlines(rows, attack) for attack in attacks]
    strongest = [max(rows, key=lambda row: (risk_above_chance(row), row["high"])) for rows in headlines if rows]
    return sorted(strongest, key=risk_above_chance, reverse=True)


def select_headlines(rows: Sequence[FigureRow], attack: str) -> list[FigureRow]:
    """Return the figures of an attack over all records that measure success, unless their control always succeeds."""
    return [
        row
        for row in rows
        if row["attack"] == attack
        and row["value"] is not None
        and row["subgroup"] is None
        and row["measure"].startswith(tuple(MEASURES.values()))
        and TRAINING_SET not in row["measure"]
        and row["control"] != 1
    ]


def risk_above_chance(row: FigureRow, side: Literal["value", "low", "high"] = "high") -> float:
    """Return a figure's value or interval end above its control, or above chance if it has none, in [0, 1]."""
    risk = row["risk"] if side == "value" else row[f"risk_{side}"]
    if risk is not None:
        return float(risk)
    chance = row["chance"] or 0.0
    return max(0.0, float((row[side] - chance) / (1 - chance))) if chance < 1 else 0.0
