"""Figures by subgroup, and the subgroup that could be worst.

The subgroup with the highest upper bound is reported by that bound, which needs no correction for the choice: the
highest of all upper bounds covers the truth of the worst subgroup at least as often as that subgroup's own bound does.
The chosen value and lower bound are biased upwards: conservative, and no proof that this subgroup is the worst.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import numpy as np

from metrics.stats.intervals import Names, Trials
from metrics.stats.risk import Figure, FigureContext, make_figure, with_note


def split_by_group(trials: Trials, groups: Names) -> dict[str, Trials]:
    """Return the trials of each group, by name in order; ``groups`` (N,) names the group of each trial."""
    if groups.shape != trials.hits.shape:
        raise ValueError(f"groups must be (N,) as the trials are, got {groups.shape} and {trials.hits.shape}")
    return {str(g): Trials(trials.hits[groups == g], trials.subjects[groups == g]) for g in np.unique(groups)}


def subgroup_figures(
    trials: Trials,
    groups: Names,
    rng: np.random.Generator,
    *,
    column: str,
    measure: str,
    controls: Mapping[str, Trials] | None = None,
    chance: float | None = None,
    **context: Unpack[FigureContext],
) -> list[Figure]:
    """Return a figure for each subgroup, ``column = value`` in order; ``groups`` (N,) names the group of each trial.

    ``controls``: the control's trials of each subgroup, see ``split_by_group``. Subgroups that are too small say so.
    The one with the highest upper bound (of the risk, where all have one) is noted.
    """
    figures = [
        make_figure(
            part, rng, measure=measure, control=(controls or {}).get(name), chance=chance,
            **(context | FigureContext(subgroup=f"{column} = {name}")),
        )
        for name, part in split_by_group(trials, groups).items()
    ]  # fmt: skip
    measured = [figure for figure in figures if figure.value is not None]
    if len(measured) < 2:
        return figures
    by_risk = all(figure.risk_high is not None for figure in measured)
    worst = max(measured, key=lambda figure: (figure.risk_high if by_risk else figure.high) or 0.0)
    note = f"of {len(measured)} subgroups the one that could be worst: at most {worst.high:.1%}"
    return [with_note(figure, note) if figure is worst else figure for figure in figures]
