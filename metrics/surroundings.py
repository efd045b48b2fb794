"""Leaks around the picture as figures: what lies beside released pictures, tried as an attacker would try it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from metrics.attacks import leaks, linkage
from metrics.attacks.linkage import Floats, Names, Numbers, Ranking
from metrics.risk import Described, Figure, figure, noted


@dataclass(frozen=True)
class Surroundings:
    """What lies around N released pictures and their originals, as plain values; row i of all is one record, in the
    order of the source.

    ``files``: encoded outputs. ``public``: all public text and names. ``names``: what names each original. ``places``
    (N,): the rows in the order of the release. ``sizes`` and ``source_sizes`` (N,): encoded
    bytes. ``shapes`` and ``source_shapes`` (N, 2): pixels. ``times`` (N,): when a file was written, none where that
    cannot be told.
    """

    files: Sequence[bytes]
    public: Sequence[str | bytes]
    names: Sequence[str]
    places: Numbers
    sizes: Floats
    source_sizes: Floats
    shapes: Numbers
    source_shapes: Numbers
    times: Floats | None = None


def figures(around: Surroundings, subjects: Names, rng: np.random.Generator) -> list[Figure]:
    """One or more figures for each kind of leak; what could not be tried says so."""
    truth = np.arange(len(subjects))
    found = leaks.metadata(around.files, subjects.tolist())
    traces = leaks.traces(around.names, around.public, subjects.tolist(), rng)
    order = leaks.order(around.places, subjects[around.places].tolist(), rng)
    lines = [
        figure(found.trials, rng, measure="files with metadata", **_by("metadata")),
        figure(traces.trials, rng, measure="records named in public", control=traces.control, **_by("names")),
        noted(
            figure(
                order.neighbours, rng, measure="neighbours in the source", control=order.control, chance=order.chance,
                **_by("order"),
            ),
            f"rank correlation with the source's order {order.correlation:+.2f} "
            f"[{order.interval.low:+.2f}, {order.interval.high:+.2f}], p = {order.p_value:.2g}",
        ),
    ]  # fmt: skip
    tried: dict[str, Ranking | None] = {
        "encoded size": leaks.by_standing(around.sizes, around.source_sizes, truth, subjects, rng),
        "width and height": leaks.by_dimensions(around.shapes, around.source_shapes, truth, subjects, rng),
        "time of writing": None
        if around.times is None
        else leaks.by_standing(around.times, truth * 1.0, truth, subjects, rng),
    }
    for name, ranking in tried.items():
        if ranking is None:
            lines.append(_not_run(name, "pictures do not lie in files of their own on a disk"))
        else:
            lines += [line for line in linkage.figures(ranking, rng, **_by(name)) if line.measure.startswith("rank")]
    lines.append(_not_run("published score", "this version does not try what the manifest's score columns give away"))
    return [replace(line, gallery=len(subjects)) for line in lines]


def _not_run(name: str, why: str) -> Figure:
    return Figure(measure="not run", n=0, subjects=0, note=why, **_by(name))


def _by(name: str) -> Described:
    return Described(attack="leaks", attacker="reads the files", feature=name)
