"""The worst subgroup: who is found more often than others.

Where the highest is reported, its upper bound counts. It needs no correction for having been chosen: the highest of
all upper bounds lies above the truth of whichever is really the highest at least as often as that one's own bound does.
The chosen value and lower bound are biased upwards, which overstates the risk: conservative for whoever publishes, and
no proof that the chosen one is the strongest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Unpack

import numpy as np
import numpy.typing as npt

from metrics.stats.risk import Figure, FigureContext, Trials, make_figure, with_note


def split_by_group(trials: Trials, groups: npt.NDArray[np.str_]) -> dict[str, Trials]:
    """The trials of each group, by name in order; ``groups`` (N,) says which group each trial belongs to."""
    if groups.shape != trials.hits.shape:
        raise ValueError(f"groups must be (N,) as the trials are, got {groups.shape} and {trials.hits.shape}")
    return {str(g): Trials(trials.hits[groups == g], trials.subjects[groups == g]) for g in np.unique(groups)}


def subgroup_figures(
    trials: Trials,
    groups: npt.NDArray[np.str_],
    rng: np.random.Generator,
    *,
    column: str,
    measure: str,
    controls: Mapping[str, Trials] | None = None,
    chance: float | None = None,
    **described: Unpack[FigureContext],
) -> list[Figure]:
    """A figure for each subgroup, ``column = value`` in order; ``groups`` (N,) says whose trial is whose.

    ``controls`` are the control's trials of each subgroup, see ``split``. Subgroups that are too small say so. The one
    that could be worst, by its upper bound, is noted.
    """
    lines = [
        make_figure(
            mine,
            rng,
            measure=measure,
            control=(controls or {}).get(name),
            chance=chance,
            **(described | FigureContext(subgroup=f"{column} = {name}")),
        )
        for name, mine in split_by_group(trials, groups).items()
    ]
    measured = [line for line in lines if line.value is not None]
    if len(measured) < 2:
        return lines
    worst = _highest_upper_bound(measured)
    note = f"of {len(measured)} subgroups the one that could be worst: at most {worst.high:.1%}"
    return [with_note(line, note) if line is worst else line for line in lines]


def _highest_upper_bound(lines: Sequence[Figure]) -> Figure:
    above = all(line.risk_high is not None for line in lines)
    return max(lines, key=lambda line: (line.risk_high if above else line.high) or 0.0)
