"""Plots of a calibration: risk of each attack, and what the pictures are good for, against level and log-SNR."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from anonymizer.policy.calibration import AttackRisk, CalibratedLevel, Calibration, Utility
from anonymizer.storage.path import StoragePath

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
HALF_STYLES = {"choosing": "-", "confirming": "--"}


def write_curves(folder: StoragePath, found: Calibration) -> None:
    """``risk.svg`` and ``utility.svg``, and the same as PNG."""
    for name, figure in (("risk", _plot_risk(found)), ("utility", _plot_utility(found))):
        for kind in ("svg", "png"):
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {"Software": None})
            (folder / f"{name}.{kind}").write(file.getvalue())


def _plot_risk(found: Calibration) -> Any:
    """One panel for each attack: both halves with their intervals."""
    figure, panels = _make_panels(len(found.attacks), "risk above chance")
    for panel, attack, colour in zip(panels, found.attacks, cycle(COLOURS), strict=False):
        for half, style in HALF_STYLES.items():
            risks = [next((r for r in getattr(one, half) if r.attack == attack), None) for one in found.levels]
            _plot_line(panel, found.levels, risks, colour, style, half)
        panel.set_title(attack)
        panel.set_ylim(-0.02, 1.02)
        panel.legend(frameon=False, fontsize=8)
    return figure


def _plot_utility(found: Calibration) -> Any:
    """One panel for each measure; its reference (a floor, another teacher) is dashed beside it."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for level in found.levels for name in level.utility):
        groups.setdefault(name.partition(", ")[0], []).append(name)
    figure, panels = _make_panels(len(groups), "")
    for panel, (title, members), colour in zip(panels, groups.items(), cycle(COLOURS), strict=False):
        for name, style in zip(members, HALF_STYLES.values(), strict=False):
            measured = [level.utility.get(name) for level in found.levels]
            _plot_line(panel, found.levels, measured, colour, style, name.partition(", ")[2] or "outputs")
        panel.set_title(title)
        if len(members) > 1:
            panel.legend(frameon=False, fontsize=8)
    return figure


def _make_panels(count: int, label: str) -> tuple[Any, Sequence[Axes]]:
    from matplotlib.figure import Figure

    across = min(3, count)
    down = -(-count // across)
    figure = Figure(figsize=(4 * across, 3.2 * down), layout="constrained")
    axes = [figure.add_subplot(down, across, i + 1) for i in range(count)]
    for panel in axes:
        panel.set_ylabel(label)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return figure, axes


def _plot_line(
    panel: Axes,
    levels: Sequence[CalibratedLevel],
    measured: Sequence[AttackRisk | Utility | None],
    colour: str,
    style: str,
    label: str,
) -> None:
    """Values over levels with their intervals, and log-SNR below the level; what was not measured is a gap."""
    value, low, high = (
        [float("nan") if one is None or (x := getattr(one, side)) is None else x for one in measured]
        for side in ("value", "low", "high")
    )
    x = [level.level for level in levels]
    panel.plot(x, value, style, color=colour, marker="o", markersize=3.5, label=label)
    panel.fill_between(x, low, high, color=colour, alpha=0.18 if style == "-" else 0.08, linewidth=0)
    panel.set_xticks(x, [f"{level.level:g}\n{level.log_snr:+.1f}" for level in levels])
    panel.tick_params(labelsize=7)
    panel.set_xlabel("level, and log-SNR below it", fontsize=8)
