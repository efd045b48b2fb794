"""Leaks around the picture as figures: what lies beside released pictures, tried as an attacker would try it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

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
    cannot be told. ``scores``: published scores (N,), or the middles of their bins, and the attacker's own (N, N).
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
    scores: tuple[Floats, Floats] | None = field(default=None)


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
        "published score": None if around.scores is None else leaks.by_score(*around.scores, truth, subjects, rng),
    }
    for name, ranking in tried.items():
        if ranking is None:
            line = Figure(measure="not run", n=0, subjects=0, note="nothing of the kind is published", **_by(name))
            lines.append(line)
        else:
            lines += [line for line in linkage.figures(ranking, rng, **_by(name)) if line.measure.startswith("rank")]
    return [replace(line, gallery=len(subjects)) for line in lines]


def _by(name: str) -> Described:
    return Described(attack="leaks", attacker="reads the files", feature=name)
