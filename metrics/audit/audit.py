"""An audit: every attack on one set of evidence, with the same images, features and controls.

Knows images and people, not releases. Each attack draws from generators of its own, so that leaving one out changes no
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np

from anonymizer.errors import ModelError
from metrics.attacks import attributes, averaging, linkage, parrot
from metrics.attacks.linkage import Ranking, draw_across_people
from metrics.attacks.matched_filter import FILTER_NAME
from metrics.audit import filtering
from metrics.audit.findings import Findings, withdraw_undetected
from metrics.audit.group_attacks import run_group_attacks
from metrics.audit.identification import GALLERY_PHOTOS, identification_figures, set_up_identification
from metrics.audit.memberships import run_membership
from metrics.audit.workbench import Workbench
from metrics.features import Embedder
from metrics.stats.intervals import Floats
from metrics.stats.risk import FigureContext
from metrics.stats.subgroups import split_by_group, subgroup_figures

ALL_ATTACKERS = "every attacker"  # of an attack that failed as a whole


def run_attacks(
    bench: Workbench, attacks: Iterable[str], progress: Callable[[int], None] = lambda done: None
) -> Findings:
    """Run the named attacks in the order of ``ATTACKS``; ``progress`` receives 1 after each.

    An attack that fails leaves a note and does not stop the others. Raises ValueError for an unknown name.
    """
    selected = set(attacks)
    if unknown := selected - ATTACKS.keys():
        raise ValueError(f"attacks {', '.join(sorted(unknown))}: unknown: known are {', '.join(ATTACKS)}")
    findings = Findings()
    for name, attack in ATTACKS.items():
        if name in selected:
            bench.progress(name)
            try:
                attack(bench, findings)
            except (ValueError, ModelError) as problem:
                findings.skip(name, ALL_ATTACKERS, f"failed ({problem})")
            progress(1)
    return findings


def _run_linkage(bench: Workbench, findings: Findings) -> None:
    """Link outputs with originals (unaware), and with the attacker's own outputs of every original (aware)."""
    own = bench.resample(np.arange(len(bench.evidence)), 1, "aware")[:, 0]
    for embedder in bench.embedders:
        galleries = {
            "unaware": bench.embed_originals(embedder),
            "aware": bench.embed_outputs("own outputs", own, embedder),
        }
        for attacker, gallery in galleries.items():
            similarity = linkage.cosine_similarity(bench.embed_released(embedder), gallery)
            context = FigureContext(attack="linkage", attacker=attacker, feature=embedder.versioned_name)
            _add_link(bench, findings, similarity, attacker, context, embedder)
    if matched := filtering.make_filter(bench, findings, "linkage"):
        similarity = filtering.linkage_similarity(matched)
        _add_link(bench, findings, similarity, "filter", matched.context("linkage"))
        if (labels := bench.evidence.published) is not None:
            context = matched.context("linkage") | FigureContext(feature=f"{FILTER_NAME}, of equal label")
            _add_link(bench, findings, linkage.among_equals(similarity, labels), "filter, labels", context)


def _run_averaging(bench: Workbench, findings: Findings) -> None:
    """Link the average of several outputs of one original; the gallery is all originals."""
    evidence, effort = bench.evidence, bench.effort
    if not evidence.mechanism.is_random:
        note = "every output of an original is the same: there is nothing to average"
        return findings.skip("averaging", "sees k outputs", note)
    rows = draw_across_people(evidence.subjects, effort.averaged, bench.rng("averaged originals"))
    more = bench.resample(rows, effort.outputs - 1, "averaging")  # (n, K - 1, 3, S, S)
    name, subjects = f"{len(rows)} x {more.shape[1]} further outputs", evidence.subjects[rows]
    for embedder in _image_embedders(bench):
        further = bench.embed_outputs(name, more.flatten(0, 1), embedder).reshape(*more.shape[:2], -1)
        embeddings = np.concatenate([bench.embed_released(embedder)[rows, None], further], axis=1)
        gallery, rng = bench.embed_originals(embedder), bench.rng("averaging")

        def attack(averaged: Floats, gallery: Floats = gallery, rng: np.random.Generator = rng) -> Ranking:
            return linkage.link(averaged, gallery, rows, subjects, rng)

        rankings = averaging.attack_averages(embeddings, attack)
        context = FigureContext(attack="averaging", attacker="sees k outputs", feature=embedder.versioned_name)
        lines = averaging.figures(rankings, bench.rng("averaging figures"), **context)
        findings.figures += withdraw_undetected(lines, embedder)
    if matched := filtering.make_filter(bench, findings, "averaging"):
        rankings = filtering.averaged_rankings(matched, rows, more, name)
        lines = averaging.figures(rankings, bench.rng("averaging figures"), **matched.context("averaging"))
        findings.figures += withdraw_undetected(lines, None)


def _run_parrot(bench: Workbench, findings: Findings) -> None:
    """Link with a linker that was trained on pairs of other people."""
    usable = _image_embedders(bench)
    if not usable:
        note = "no feature of whole pictures to learn from: give one (audit.features)"
        return findings.skip("parrot", "trained", note)
    pairs = bench.pairs
    if len(pairs) < parrot.MIN_PAIRS:
        return findings.skip("parrot", "trained", f"{len(pairs)} pairs, {parrot.MIN_PAIRS} are needed")
    originals, outputs = (
        {e.versioned_name: bench.embed_outputs(name, images, e) for e in usable}
        for name, images in (("pairs: originals", pairs.originals), ("pairs: outputs", pairs.outputs))
    )
    linker = parrot.train(originals, outputs, bench.rng("parrot"), pairs.people)
    gallery = linker.embed_originals({e.versioned_name: bench.embed_originals(e) for e in usable})
    probes = linker.embed_outputs({e.versioned_name: bench.embed_released(e) for e in usable})
    feature = f"learnt from {len(pairs)} pairs: {linker.chosen}"
    context = FigureContext(attack="parrot", attacker="trained", feature=feature)
    _add_link(bench, findings, linkage.cosine_similarity(probes, gallery), "parrot link", context)


def _run_inversion(bench: Workbench, findings: Findings) -> None:
    """Link images that a network restores, and, with identities, re-identify them."""
    if len(bench.pairs) < parrot.MIN_PAIRS:
        return findings.skip("inversion", "inverting", f"{len(bench.pairs)} pairs, {parrot.MIN_PAIRS} are needed")
    for embedder in bench.embedders:
        restored = bench.embed_outputs("restored outputs", bench.restored, embedder)
        similarity = linkage.cosine_similarity(restored, bench.embed_originals(embedder))
        context = FigureContext(attack="inversion", attacker="inverting", feature=embedder.versioned_name)
        _add_link(bench, findings, similarity, "inversion link", context, embedder)
        if (setup := set_up_identification(bench, embedder)) is not None:
            lines = identification_figures(setup, setup.as_probes(restored), bench, context, GALLERY_PHOTOS[:1])
            lines = withdraw_undetected(lines, embedder)
            findings.figures += [replace(line, measure=f"{line.measure}, whose picture") for line in lines]


def _run_reidentification(bench: Workbench, findings: Findings) -> None:
    """Re-identify outputs, and for comparison unmodified images and a mere round trip."""
    attack, attacker = "reidentification", "holds other photos"
    if not bench.evidence.has_identities:
        note = "no identities: say which column or folder names the person (audit.identity)"
        return findings.skip(attack, attacker, note)
    for embedder in bench.embedders:
        setup = set_up_identification(bench, embedder)
        if setup is None:
            hint = (
                "give other photos of the same people (audit.others)"
                if bench.evidence.others is None
                else "the names in audit.others are not those of audit.identity"
            )
            note = f"fewer than four people have a photo to be looked for by, and another one: {hint}"
            return findings.skip(attack, attacker, note)
        if not setup.can_recognise:
            note = "no face is detected on the originals: this recogniser has nothing to say"
            findings.skip(attack, attacker, note, embedder.versioned_name)
            continue
        context = FigureContext(attack=attack, attacker=attacker, feature=embedder.versioned_name)
        released, raw, round_trip = (
            identification_figures(setup, probes, bench, context)
            for probes in (
                setup.as_probes(bench.embed_released(embedder)),
                setup.unmodified,
                setup.as_probes(bench.embed_round_trip(embedder)),
            )
        )
        lines = [
            replace(line, unmodified=a.value, round_trip=b.value)
            for line, a, b in zip(released, raw, round_trip, strict=True)
        ]
        findings.figures += withdraw_undetected(lines, embedder)
    if matched := filtering.make_filter(bench, findings, attack):
        findings.figures += filtering.identification_figures(matched)


def _run_attributes(bench: Workbench, findings: Findings) -> None:
    """Infer each attribute from outputs, and for comparison from originals."""
    evidence = bench.evidence
    for column, values in evidence.attributes.items():
        known, labels = attributes.known_labels(values)
        subjects = evidence.subjects[known]
        if len(np.unique(subjects)) < 2:
            findings.skip("attributes", "unaware", f"{column} is known of fewer than two people")
            continue
        for embedder in _image_embedders(bench):
            originals, outputs = bench.embed_originals(embedder)[known], bench.embed_released(embedder)[known]
            rng = bench.rng(f"attribute {column}")
            predictions = attributes.predict_attribute(originals, outputs, labels, subjects, rng)
            by_reader = {}
            for reader in ("originals", "unaware", "trained"):
                context = FigureContext(attack="attributes", attacker=reader, feature=embedder.versioned_name)
                rng = bench.rng("attribute figures")
                by_reader[reader] = attributes.figures(predictions, reader, column, rng, **context)
            reference = by_reader.pop("originals")
            for lines in by_reader.values():
                pairs = zip(lines, reference, strict=True)
                findings.figures += [replace(line, unmodified=raw.value) for line, raw in pairs]


def _image_embedders(bench: Workbench) -> list[Embedder]:
    return [embedder for embedder in bench.embedders if not embedder.is_face]


def _add_link(
    bench: Workbench,
    findings: Findings,
    similarity: linkage.Similarity,
    purpose: str,
    context: FigureContext,
    embedder: Embedder | None = None,
) -> None:
    """Link output i with original i, row by row and one-to-one; ``purpose`` names the generator.

    Add the figures for everybody and by subgroup, the distribution of ranks, and the records that came first.
    """
    truth, subjects = np.arange(len(bench.evidence)), bench.evidence.subjects
    ranking = linkage.rank(similarity, truth, subjects, bench.rng(purpose))
    name = f"{context['attack']}, {context['attacker']}, {context['feature']}"
    lines = linkage.figures(ranking, bench.rng(f"{name} figures"), **context)
    assigned = linkage.assigned_figure(similarity, truth, subjects, bench.rng(f"{name} assigned"), **context)
    findings.figures += withdraw_undetected([*lines, assigned], embedder)
    findings.ranks[name], findings.hits[name] = linkage.rank_distribution(ranking), ranking.ranks == 1
    context = context | FigureContext(gallery=similarity.candidates)
    for column, values in bench.evidence.attributes.items():
        groups = attributes.group_known_values(values)
        findings.figures += subgroup_figures(
            ranking.within(1), groups, bench.rng(f"{name} {column}"), column=column, measure="rank-1",
            controls=split_by_group(ranking.control_within(1), groups), chance=ranking.chance(1), **context,
        )  # fmt: skip


ATTACKS: Mapping[str, Callable[[Workbench, Findings], None]] = {
    "linkage": _run_linkage,
    "reidentification": _run_reidentification,
    "parrot": _run_parrot,
    "averaging": _run_averaging,
    "inversion": _run_inversion,
    "membership": run_membership,
    "attributes": _run_attributes,
    "groups": run_group_attacks,
}
