"""The attacks on groups within an audit of a release whose outputs are drawn of means of k originals."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from metrics.attacks import attributes, groups, linkage
from metrics.attacks.linkage import Ranking, cosine_similarity
from metrics.attacks.matched_filter import group_filter
from metrics.audit.filtering import Filtering, make_filter
from metrics.audit.findings import Findings
from metrics.audit.workbench import Workbench
from metrics.stats.intervals import Floats, Names
from metrics.stats.risk import Figure, FigureContext, make_figure

KNOWS_GROUPS, KNOWS_SOME, KNOWS_ALL, CLUSTERS = "knows the groups", "knows some", "knows all others", "clusters outputs"
SIBLINGS = "siblings found"


def run_group_attacks(bench: Workbench, findings: Findings) -> None:
    """Attack the groups of a release; without groups there is nothing to attack, and no line.

    Who knows which group an output is of is right with 1 / k by symmetry; who knows other members, more often. Controls
    of those are the same guess without an output.
    """
    names = bench.evidence.groups
    if names is None:
        return
    each = _has_several_outputs(bench, names)
    for embedder in bench.embedders:
        if embedder.is_face:
            continue
        outputs = bench.embed_released(embedder)
        context = FigureContext(attack="groups", attacker=KNOWS_GROUPS, feature=embedder.versioned_name)
        similarity = cosine_similarity(outputs, bench.embed_originals(embedder))
        ranking = groups.rank_members(similarity, names, bench.rng("members"))
        findings.figures += _rank_1(bench, ranking, context)
        if each:
            similarity = cosine_similarity(outputs, outputs)
            hits, control, chance = groups.find_siblings(similarity, names, bench.rng("siblings"))
            context |= FigureContext(attacker=CLUSTERS)
            rng = bench.rng("siblings figures")
            findings.figures.append(make_figure(hits, rng, measure=SIBLINGS, control=control, chance=chance, **context))
    if matched := make_filter(bench, findings, "groups"):
        findings.figures += _run_filter(matched, names, each)
    findings.figures += _homogeneity(bench, names)


def _has_several_outputs(bench: Workbench, names: Names) -> bool:
    """Return whether members of a group have outputs of their own."""
    outputs = bench.evidence.outputs
    return any(not (outputs[rows] == outputs[rows[0]]).all() for rows in groups.Grouping.of(names).members())


def _rank_1(bench: Workbench, ranking: Ranking, context: FigureContext) -> list[Figure]:
    """Return the rate of first guesses; trials are counted by group."""
    return linkage.figures(ranking, bench.rng("groups figures"), (1,), **context)[:1]


def _run_filter(filtering: Filtering, names: Names, each: bool) -> Iterator[Figure]:
    """Yield how often the matched filter names the member behind an output, by what else is known of the group.

    With several outputs of a group, also by all of them together.
    """
    bench, components = filtering.bench, filtering.components()
    alike, k = filtering.alike(components), int(groups.Grouping.of(names).size.min())
    views: dict[int, Floats] = {1: filtering.outputs}
    if each:
        views[k] = groups.average_by_group(filtering.outputs, names)
    for count, outputs in views.items():
        context = filtering.context("groups") | FigureContext(outputs=count)
        matched = group_filter(components, filtering.abar, k, alike, filtering.is_deterministic)
        ranking = groups.rank_members(matched.similarity(outputs, filtering.originals), names, bench.rng("members"))
        yield from _rank_1(bench, ranking, context | FigureContext(attacker=KNOWS_GROUPS))
        for attacker, known in ((KNOWS_SOME, (k - 1) // 2), (KNOWS_ALL, None)):
            if known == 0:
                continue
            ranking = groups.rank_with_known(
                components, filtering.abar, outputs, filtering.originals, names, alike, bench.rng("known"),
                is_deterministic=filtering.is_deterministic, known=known, labels=bench.evidence.published,
            )  # fmt: skip
            yield from _rank_1(bench, ranking, context | FigureContext(attacker=attacker))


def _homogeneity(bench: Workbench, names: Names) -> Iterator[Figure]:
    """Yield the share of groups whose members all have one value of a column; the control deals values by chance."""
    for column, values in bench.evidence.attributes.items():
        known, labels = attributes.known_labels(values)
        if np.unique(names[known], return_counts=True)[1].max(initial=0) < 2:
            continue
        same, dealt = groups.homogeneous_groups(labels, names[known], bench.rng(f"homogeneity {column}"))
        context = FigureContext(attack="groups", attacker=KNOWS_GROUPS, feature="the ledger")
        rng = bench.rng("homogeneity figures")
        yield make_figure(same, rng, measure=f"groups that share {column}", control=dealt, **context)
