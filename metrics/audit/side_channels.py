"""Leaks around the picture as figures: what lies beside released pictures, tried as an attacker would try it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from metrics.attacks import leaks, linkage
from metrics.attacks.linkage import Ranking
from metrics.audit.published_scores import PublishedScores
from metrics.stats.intervals import Floats, Names, Numbers, Trials
from metrics.stats.risk import Figure, FigureContext, make_figure, with_note


@dataclass(frozen=True)
class SideChannels:
    """What lies around N released pictures and their originals, as plain values; row i of all is one record, in the
    order of the source.

    ``files``: encoded outputs. ``public``: all public text and names. ``names``: what names each original. ``places``
    (N,): the rows in the order of the release. ``sizes`` and ``source_sizes`` (N,): encoded
    bytes. ``shapes`` and ``source_shapes`` (N, 2): pixels. ``times`` (N,): when a file was written, none where that
    cannot be told. ``published``: the scores in the manifest and what an attacker computes, or why that was not
    tried.
    """

    files: Sequence[bytes]
    public: Sequence[str | bytes]
    names: Sequence[str]
    release_order: Numbers
    sizes: Floats
    source_sizes: Floats
    shapes: Numbers
    source_shapes: Numbers
    times: Floats | None = None
    published: PublishedScores | str = "no score is published"


def side_channel_figures(around: SideChannels, subjects: Names, rng: np.random.Generator) -> list[Figure]:
    """One or more figures for each kind of leak; what could not be tried says so."""
    truth = np.arange(len(subjects))
    found = leaks.scan_metadata(around.files, subjects.tolist())
    traces = leaks.find_names(around.names, around.public, subjects.tolist(), rng)
    order = leaks.compare_order(around.release_order, subjects[around.release_order].tolist(), rng)
    lines = [
        make_figure(found.trials, rng, measure="files with metadata", **_context("metadata")),
        make_figure(traces.trials, rng, measure="records named in public", control=traces.control, **_context("names")),
        with_note(
            make_figure(
                order.neighbours, rng, measure="neighbours in the source", control=order.control, chance=order.chance,
                **_context("order"),
            ),
            f"rank correlation with the source's order {order.correlation:+.2f} "
            f"[{order.interval.low:+.2f}, {order.interval.high:+.2f}], p = {order.p_value:.2g}",
        ),
    ]  # fmt: skip
    tried: dict[str, Ranking | None] = {
        "encoded size": leaks.link_by_rank(around.sizes, around.source_sizes, truth, subjects, rng),
        "width and height": leaks.link_by_dimensions(around.shapes, around.source_shapes, truth, subjects, rng),
        "time of writing": None
        if around.times is None
        else leaks.link_by_rank(around.times, truth * 1.0, truth, subjects, rng),
    }
    for name, ranking in tried.items():
        if ranking is None:
            lines.append(_not_run(name, "pictures do not lie in files of their own on a disk"))
        else:
            lines += [
                line for line in linkage.figures(ranking, rng, **_context(name)) if line.measure.startswith("rank")
            ]
    lines = [replace(line, gallery=len(subjects)) for line in lines]
    return lines + published_score_figures(around.published, subjects, rng)


def published_score_figures(
    published: PublishedScores | str, subjects: Names, rng: np.random.Generator
) -> list[Figure]:
    """Each published score, and all of them together; candidates are the originals of the records that were scored.

    Who can compute a score finds many originals without being told it: they are the most alike. So ``rank-1`` counts
    only who is found by what is published and not without it, and its control who is found without it and not with it,
    as chance does both alike. What is found with it in all stands beside, as any linkage does.
    """
    if isinstance(published, str):
        return [_not_run("published score", published)]
    who = subjects[published.rows]
    if len(np.unique(who)) < 2:
        return [_not_run("published score", "one person alone: there is nobody to be told from")]
    tried = {f"published {column}": [column] for column in published.scores}
    if len(tried) > 1:
        tried["all published scores"] = list(published.scores)
    lines: list[Figure] = []
    for name, columns in tried.items():
        likeness = np.asarray(sum(published.similarity[column] for column in columns))
        pairs, truth = [published.scores[column] for column in columns], np.arange(len(who))
        told = leaks.link_by_scores(pairs, truth, who, rng, likeness)
        untold = linkage.link_by_similarity(likeness, truth, who, rng)
        with_it, without = told.within(1), untold.within(1)
        more, less = (Trials(a.hits & ~b.hits, who) for a, b in ((with_it, without), (without, with_it)))
        alone = make_figure(more, rng, measure="rank-1, by what is published alone", control=less, **_context(name))
        rates = f"rank-1 with it {with_it.rate:.1%}, without it {without.rate:.1%}"
        whole = make_figure(
            with_it, rng, measure="with what is published, rank-1", control=told.control_within(1),
            chance=told.chance(1), **_context(name),
        )  # fmt: skip
        lines += [replace(line, gallery=len(who)) for line in (with_note(alone, rates), whole)]
    return lines


def _not_run(name: str, why: str) -> Figure:
    return Figure(measure="not run", n=0, subjects=0, note=why, **_context(name))


def _context(name: str) -> FigureContext:
    return FigureContext(attack="leaks", attacker="reads the files", feature=name)
