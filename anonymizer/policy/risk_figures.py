"""Of an audit's many figures the few that answer for an attack: its strongest attacker, above what chance explains.

A figure is a line of ``restricted/audit/figures.parquet`` as a mapping; see ``metrics.risk.Figure``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from anonymizer.config.policy import MEASURES as NAMED

Line = Mapping[str, Any]

MEASURES = tuple(NAMED.values())
OF_THE_MODEL = "training"  # what is asked of the model's training set says nothing about who is in the release


def strongest(lines: Sequence[Line], attacks: Sequence[str]) -> list[Line]:
    """For each attack, of its headlines the figure with the highest upper bound; highest first.

    An attack of which nothing could be measured is left out.
    """
    found = [headlines(lines, attack) for attack in attacks]
    best = [max(mine, key=lambda line: (excess(line), line["high"])) for mine in found if mine]
    return sorted(best, key=excess, reverse=True)


def headlines(lines: Sequence[Line], attack: str) -> list[Line]:
    """The figures of one attack, on everybody, that say how far it got; not those whose control always hits."""
    return [
        line
        for line in lines
        if line["attack"] == attack
        and line["value"] is not None
        and line["subgroup"] is None
        and line["measure"].startswith(MEASURES)
        and OF_THE_MODEL not in line["measure"]
        and line["control"] != 1
    ]


def excess(line: Line, side: Literal["value", "low", "high"] = "high") -> float:
    """A figure's value, or an end of its interval, above what its control (without one, chance) explains: in [0, 1]."""
    above = line["risk"] if side == "value" else line[f"risk_{side}"]
    if above is not None:
        return float(above)
    chance = line["chance"] or 0.0
    return max(0.0, float((line[side] - chance) / (1 - chance))) if chance < 1 else 0.0
