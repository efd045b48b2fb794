"""Figures of the leaks around released images: metadata, names, order, sizes, times and published scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from metrics.attacks import leaks, linkage
from metrics.audit.published_scores import PublishedScores
from metrics.stats.intervals import Floats, Names, Numbers, Trials
from metrics.stats.risk import Figure, FigureContext, make_figure, not_run, with_note


@dataclass(frozen=True)
class SideChannels:
    """Plain values around N released images and their originals; row i of all is one record, in source order."""

    files: Sequence[bytes]  # encoded outputs
    public: Sequence[str | bytes]  # all public text and names
    names: Sequence[str]  # of each original
    release_order: Numbers  # (N,): the rows in the order of the release
    sizes: Floats  # (N,): encoded bytes
    source_sizes: Floats
    shapes: Numbers  # (N, 2): pixels
    source_shapes: Numbers
    times: Floats | None = None  # (N,): when a file was written
    published: PublishedScores | str = "no score is published"  # or why it was not attacked


def side_channel_figures(channels: SideChannels, subjects: Names, rng: np.random.Generator) -> list[Figure]:
    """Return one or more figures for each kind of leak, and a note for each that could not be attacked."""
    truth, order = np.arange(len(subjects)), channels.release_order
    metadata = leaks.scan_metadata(channels.files, subjects.tolist())
    traces = leaks.find_names(channels.names, channels.public, subjects.tolist(), rng)
    moved = leaks.compare_order(order, subjects[order].tolist(), rng)
    lines = [
        make_figure(metadata.trials, rng, measure="files with metadata", **_context("metadata")),
        make_figure(traces.trials, rng, measure="records named in public", control=traces.control, **_context("names")),
        with_note(
            make_figure(
                moved.neighbours, rng, measure="neighbours in the source", control=moved.control, chance=moved.chance,
                **_context("order"),
            ),
            f"rank correlation with the source's order {moved.correlation:+.2f} "
            f"[{moved.interval.low:+.2f}, {moved.interval.high:+.2f}], p = {moved.p_value:.2g}",
        ),
    ]  # fmt: skip
    rankings = {
        "encoded size": leaks.link_by_rank(channels.sizes, channels.source_sizes, truth, subjects, rng),
        "width and height": leaks.link_by_dimensions(channels.shapes, channels.source_shapes, truth, subjects, rng),
    }
    if channels.times is not None:
        rankings["time of writing"] = leaks.link_by_rank(channels.times, truth * 1.0, truth, subjects, rng)
    for name, ranking in rankings.items():
        figures = linkage.figures(ranking, rng, **_context(name))
        lines += [figure for figure in figures if figure.measure.startswith("rank")]
    if channels.times is None:
        note = "pictures do not lie in files of their own on a disk"
        lines.append(not_run(note, **_context("time of writing")))
    lines = [replace(line, gallery=len(subjects)) for line in lines]
    return lines + published_score_figures(channels.published, subjects, rng)


def published_score_figures(
    published: PublishedScores | str, subjects: Names, rng: np.random.Generator
) -> list[Figure]:
    """Attack each published score, and all of them together; candidates are the originals of the scored records.

    An attacker who can compute a score links many outputs without the manifest, as the most alike. So ``rank-1`` counts
    only those linked with the published score and not without it; its control counts those linked without it and not
    with it, as chance does both alike. All that are linked with it have a figure of their own, as in any linkage.
    """
    if isinstance(published, str):
        return [not_run(published, **_context("published score"))]
    people = subjects[published.rows]
    if len(np.unique(people)) < 2:
        note = "one person alone: there is nobody to be told from"
        return [not_run(note, **_context("published score"))]
    columns_by_name = {f"published {column}": [column] for column in published.scores}
    if len(columns_by_name) > 1:
        columns_by_name["all published scores"] = list(published.scores)
    lines: list[Figure] = []
    for name, columns in columns_by_name.items():
        similarity = np.asarray(sum(published.similarity[column] for column in columns))
        pairs, truth = [published.scores[column] for column in columns], np.arange(len(people))
        informed = leaks.link_by_scores(pairs, truth, people, rng, similarity)
        uninformed = linkage.link_by_similarity(similarity, truth, people, rng)
        with_it, without = informed.within(1), uninformed.within(1)
        gained, lost = Trials(with_it.hits & ~without.hits, people), Trials(without.hits & ~with_it.hits, people)
        gain = make_figure(gained, rng, measure="rank-1, by what is published alone", control=lost, **_context(name))
        rates = f"rank-1 with it {with_it.rate:.1%}, without it {without.rate:.1%}"
        whole = make_figure(
            with_it, rng, measure="with what is published, rank-1", control=informed.control_within(1),
            chance=informed.chance(1), **_context(name),
        )  # fmt: skip
        lines += [replace(line, gallery=len(people)) for line in (with_note(gain, rates), whole)]
    return lines


def _context(feature: str) -> FigureContext:
    return FigureContext(attack="leaks", attacker="reads the files", feature=feature)
