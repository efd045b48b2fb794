"""Plots of a calibration: risk of each attack, and utility of the images, against level and log-SNR."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from anonymizer.policy.calibration import AttackRisk, CalibratedLevel, Calibration, Utility
from anonymizer.storage.path import StoragePath

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
LINE_STYLES = ("-", "--")  # choosing and confirming half; a measure and its reference


def write_curves(folder: StoragePath, calibration: Calibration) -> None:
    """Write ``risk`` and ``utility`` as SVG and as PNG."""
    from matplotlib import style

    with style.context("default"):  # not as a matplotlibrc in the working directory has it, which may run LaTeX
        for name, figure in (("risk", _plot_risk(calibration)), ("utility", _plot_utility(calibration))):
            for kind, date in (("svg", {"Date": None}), ("png", {"Software": None})):
                file = io.BytesIO()
                figure.savefig(file, format=kind, dpi=150, metadata=date)
                (folder / f"{name}.{kind}").write(file.getvalue())


def _plot_risk(calibration: Calibration) -> Figure:
    """Draw one panel for each attack: both halves with their intervals."""
    figure, panels = _make_panels(calibration.attacks, "risk above chance")
    for panel, attack, colour in zip(panels, calibration.attacks, cycle(COLOURS), strict=False):
        for half, style in zip(("choosing", "confirming"), LINE_STYLES, strict=True):
            risks = [{r.attack: r for r in getattr(level, half)}.get(attack) for level in calibration.levels]
            _plot_line(panel, calibration.levels, risks, colour, style, half)
        panel.set_ylim(-0.02, 1.02)
        panel.legend(frameon=False, fontsize=8)
    return figure


def _plot_utility(calibration: Calibration) -> Figure:
    """Draw one panel for each measure, with its reference, such as a floor, as a dashed line."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for level in calibration.levels for name in level.utility):
        groups.setdefault(name.partition(", ")[0], []).append(name)
    figure, panels = _make_panels(groups, "")
    for panel, names, colour in zip(panels, groups.values(), cycle(COLOURS), strict=False):
        for name, style in zip(names, LINE_STYLES, strict=False):
            values = [level.utility.get(name) for level in calibration.levels]
            _plot_line(panel, calibration.levels, values, colour, style, name.partition(", ")[2] or "outputs")
        if len(names) > 1:
            panel.legend(frameon=False, fontsize=8)
    return figure


def _make_panels(titles: Iterable[str], label: str) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    titles = list(titles)
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained")
    panels = [figure.add_subplot(rows, columns, i + 1, title=title, ylabel=label) for i, title in enumerate(titles)]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return figure, panels


def _plot_line(
    panel: Axes,
    levels: Sequence[CalibratedLevel],
    measured: Sequence[AttackRisk | Utility | None],
    colour: str,
    style: str,
    label: str,
) -> None:
    """Draw values over levels with their intervals; unmeasured levels are gaps."""
    value, low, high = (
        [float("nan") if m is None or (x := getattr(m, side)) is None else x for m in measured]
        for side in ("value", "low", "high")
    )
    x = [level.level for level in levels]
    panel.plot(x, value, style, color=colour, marker="o", markersize=3.5, label=label)
    panel.fill_between(x, low, high, color=colour, alpha=0.18 if style == "-" else 0.08, linewidth=0)
    panel.set_xticks(x, [f"{level.level:g}\n{level.log_snr:+.1f}" for level in levels])
    panel.tick_params(labelsize=7)
    panel.set_xlabel("level, and log-SNR below it", fontsize=8)
