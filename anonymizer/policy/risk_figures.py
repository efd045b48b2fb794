"""Of an audit's many figures the few that answer for an attack: its strongest attacker, above what chance explains.

A figure is a line of ``restricted/audit/figures.parquet`` as a mapping; see ``metrics.risk.Figure``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from anonymizer.config.policy import MEASURES as NAMED

FigureRow = Mapping[str, Any]

MEASURE_PREFIXES = tuple(NAMED.values())
TRAINING_SET = "training"  # what is asked of the model's training set says nothing about who is in the release


def select_strongest(lines: Sequence[FigureRow], attacks: Sequence[str]) -> list[FigureRow]:
    """For each attack, of its headlines the figure with the highest upper bound; highest first.

    An attack of which nothing could be measured is left out.
    """
    found = [select_headlines(lines, attack) for attack in attacks]
    best = [max(mine, key=lambda line: (risk_above_chance(line), line["high"])) for mine in found if mine]
    return sorted(best, key=risk_above_chance, reverse=True)


def select_headlines(lines: Sequence[FigureRow], attack: str) -> list[FigureRow]:
    """The figures of one attack, on everybody, that say how far it got; not those whose control always hits."""
    return [
        line
        for line in lines
        if line["attack"] == attack
        and line["value"] is not None
        and line["subgroup"] is None
        and line["measure"].startswith(MEASURE_PREFIXES)
        and TRAINING_SET not in line["measure"]
        and line["control"] != 1
    ]


def risk_above_chance(line: FigureRow, side: Literal["value", "low", "high"] = "high") -> float:
    """A figure's value, or an end of its interval, above what its control (without one, chance) explains: in [0, 1]."""
    above = line["risk"] if side == "value" else line[f"risk_{side}"]
    if above is not None:
        return float(above)
    chance = line["chance"] or 0.0
    return max(0.0, float((line[side] - chance) / (1 - chance))) if chance < 1 else 0.0
