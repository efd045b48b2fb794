"""An audit: every attack on one set of evidence, with the same images, features and controls.

Knows images and people, not releases. Each attack draws from generators of its own, so that leaving one out changes no
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from anonymizer.errors import ModelError
from metrics.attacks import attributes, averaging, linkage, membership, parrot
from metrics.attacks.linkage import Ranking, draw_across_people, is_detected
from metrics.audit.identification import GALLERY_PHOTOS, identification_figures, set_up_identification
from metrics.audit.mechanisms import Unrelated
from metrics.audit.workbench import Workbench
from metrics.features import Embedder
from metrics.stats.intervals import Bools, Floats, as_subjects
from metrics.stats.risk import MIN_TRIALS, Figure, FigureContext, not_run, with_note, without_values
from metrics.stats.subgroups import split_by_group, subgroup_figures

ALL_ATTACKERS = "every attacker"  # of an attack that failed as a whole
MAX_UNDETECTED_SHARE = 0.5  # of images without a detected face, for figures of a recogniser
MAX_LOSS_IMAGES = 300  # training images whose denoising loss is taken; each needs twenty network calls


@dataclass
class Findings:
    """The figures, the rank distributions by attack, and the records that each attack linked."""

    figures: list[Figure] = field(default_factory=list)
    ranks: dict[str, linkage.RankDistribution] = field(default_factory=dict)
    hits: dict[str, Bools] = field(default_factory=dict)  # (N,) for attacks that point at a record's original

    def skip(self, attack: str, attacker: str, note: str, feature: str = "") -> None:
        self.figures.append(not_run(note, attack=attack, attacker=attacker, feature=feature))


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
    evidence, truth = bench.evidence, np.arange(len(bench.evidence))
    own = bench.resample(truth, 1, "aware")[:, 0]
    for embedder in bench.embedders:
        galleries = {
            "unaware": bench.embed_originals(embedder),
            "aware": bench.embed_outputs("own outputs", own, embedder),
        }
        for attacker, gallery in galleries.items():
            outputs, rng = bench.embed_released(embedder), bench.rng(attacker)
            ranking = linkage.link(outputs, gallery, truth, evidence.subjects, rng)
            context = FigureContext(attack="linkage", attacker=attacker, feature=embedder.versioned_name)
            _add_ranking(bench, findings, ranking, context, embedder)


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
        findings.figures += _withdraw_undetected(lines, embedder)


def _run_parrot(bench: Workbench, findings: Findings) -> None:
    """Link with a linker that was trained on pairs of other people."""
    usable = _image_embedders(bench)
    if not usable:
        note = "no feature of whole pictures to learn from: give one (audit.features)"
        return findings.skip("parrot", "trained", note)
    evidence, pairs = bench.evidence, bench.pairs
    if len(pairs) < parrot.MIN_PAIRS:
        return findings.skip("parrot", "trained", f"{len(pairs)} pairs, {parrot.MIN_PAIRS} are needed")
    originals, outputs = (
        {e.versioned_name: bench.embed_outputs(name, images, e) for e in usable}
        for name, images in (("pairs: originals", pairs.originals), ("pairs: outputs", pairs.outputs))
    )
    linker = parrot.train(originals, outputs, bench.rng("parrot"), pairs.people)
    gallery = linker.embed_originals({e.versioned_name: bench.embed_originals(e) for e in usable})
    probes = linker.embed_outputs({e.versioned_name: bench.embed_released(e) for e in usable})
    ranking = linkage.link(probes, gallery, np.arange(len(evidence)), evidence.subjects, bench.rng("parrot link"))
    feature = f"learnt from {len(pairs)} pairs: {linker.chosen}"
    _add_ranking(bench, findings, ranking, FigureContext(attack="parrot", attacker="trained", feature=feature))


def _run_inversion(bench: Workbench, findings: Findings) -> None:
    """Link images that a network restores, and, with identities, re-identify them."""
    evidence = bench.evidence
    if len(bench.pairs) < parrot.MIN_PAIRS:
        return findings.skip("inversion", "inverting", f"{len(bench.pairs)} pairs, {parrot.MIN_PAIRS} are needed")
    truth = np.arange(len(evidence))
    for embedder in bench.embedders:
        restored = bench.embed_outputs("restored outputs", bench.restored, embedder)
        gallery, rng = bench.embed_originals(embedder), bench.rng("inversion link")
        ranking = linkage.link(restored, gallery, truth, evidence.subjects, rng)
        context = FigureContext(attack="inversion", attacker="inverting", feature=embedder.versioned_name)
        _add_ranking(bench, findings, ranking, context, embedder)
        if (setup := set_up_identification(bench, embedder)) is not None:
            lines = identification_figures(setup, setup.as_probes(restored), bench, context, GALLERY_PHOTOS[:1])
            lines = _withdraw_undetected(lines, embedder)
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
        findings.figures += _withdraw_undetected(lines, embedder)


def _run_membership(bench: Workbench, findings: Findings) -> None:
    """Test membership in the release and in the training set, and whether outputs crowd around training images."""
    evidence, attacker = bench.evidence, "holds the original"
    if isinstance(evidence.mechanism, Unrelated):
        note = "these outputs are pictures of the outsiders, who are not to be told from members by that"
        return findings.skip("membership", attacker, note)
    if evidence.outsiders is None:
        note = "no pictures that are known not to be in it: give some (audit.outsiders)"
        findings.skip("membership", attacker, note)
    for embedder in bench.embedders:
        members = membership.Candidates(bench.embed_originals(embedder), evidence.subjects)
        outputs = bench.embed_released(embedder)
        if evidence.outsiders is not None:
            if not is_detected(outputs).any():
                note = "no face is detected on any output"
                findings.skip("membership", attacker, note, embedder.versioned_name)
                continue
            images, names = evidence.outsiders
            others = membership.Candidates(bench.embed_images("outsiders", images, embedder), names)
            context = FigureContext(attack="membership", attacker=attacker, feature=embedder.versioned_name)
            scores = membership.score_release(members, others, outputs)
            lines = membership.figures(scores, bench.rng("membership"), **context)
            findings.figures += _with_question(lines, "in the release")
            lines = _run_calibrated_membership(bench, members, others, embedder)
            findings.figures += _with_question(lines, "in the release")
        if evidence.training is not None and not embedder.is_face:
            training = bench.embed_images("training pictures", evidence.training, embedder)
            released = membership.Candidates(outputs, evidence.subjects)
            scores = membership.score_closeness(released, members, training)
            context = FigureContext(attack="membership", attacker="unaware", feature=embedder.versioned_name)
            lines = membership.figures(scores, bench.rng("closeness"), **context)
            question = "outputs nearer to the model's training pictures than originals are"
            findings.figures += _with_question(lines, question)
    _run_training_set_membership(bench, findings)


def _run_calibrated_membership(
    bench: Workbench, members: membership.Candidates, others: membership.Candidates, embedder: Embedder
) -> list[Figure]:
    """Calibrate the scores by the aware attacker's own outputs of other people.

    Outsiders with such outputs are no non-members any more; with few others left there is nothing to measure.
    """
    rest = ~np.isin(others.subjects, bench.strangers[1])
    if len(np.unique(others.subjects[rest])) < MIN_TRIALS:
        return []
    reference = bench.embed_outputs("pairs: outputs", bench.pairs.outputs, embedder)
    if not is_detected(reference).any():
        return []
    others = membership.Candidates(others.embeddings[rest], others.subjects[rest])
    scores = membership.score_release(members, others, bench.embed_released(embedder), reference)
    context = FigureContext(attack="membership", attacker="aware", feature=embedder.versioned_name)
    return membership.figures(scores, bench.rng("aware membership"), **context)


def _run_training_set_membership(bench: Workbench, findings: Findings) -> None:
    evidence = bench.evidence
    if evidence.training is None:
        note = "the model's training pictures are not at hand (audit.training)"
        return findings.skip("membership", "aware", note)
    training = evidence.training[:MAX_LOSS_IMAGES]
    inside = bench.denoising_losses(f"{len(training)} training pictures", training)
    outside = bench.denoising_losses(f"originals{bench.scope}", evidence.originals)
    names = as_subjects([f"training {i}" for i in range(len(inside))])
    scores = membership.score_training_set(inside, outside, names, evidence.subjects)
    context = FigureContext(attack="membership", attacker="aware", feature="denoising loss")
    lines = membership.figures(scores, bench.rng("training set"), **context)
    findings.figures += _with_question(lines, "in the model's training set")


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


def _add_ranking(
    bench: Workbench, findings: Findings, ranking: Ranking, context: FigureContext, embedder: Embedder | None = None
) -> None:
    """Add the figures of a linkage, for everybody and by subgroup, its distribution, and the records it linked."""
    name = f"{context['attack']}, {context['attacker']}, {context['feature']}"
    lines = linkage.figures(ranking, bench.rng(f"{name} figures"), **context)
    findings.figures += _withdraw_undetected(lines, embedder)
    findings.ranks[name], findings.hits[name] = linkage.rank_distribution(ranking), ranking.ranks == 1
    context = context | FigureContext(gallery=int(ranking.candidates.max()))
    for column, values in bench.evidence.attributes.items():
        groups = attributes.group_known_values(values)
        findings.figures += subgroup_figures(
            ranking.within(1), groups, bench.rng(f"{name} {column}"), column=column, measure="rank-1",
            controls=split_by_group(ranking.control_within(1), groups), chance=ranking.chance(1), **context,
        )  # fmt: skip


def _withdraw_undetected(lines: Sequence[Figure], embedder: Embedder | None) -> list[Figure]:
    """Drop the share of undetected images where no face is needed; withdraw all other figures where it is large.

    Images without a detected face are not protected: a recogniser that detects few faces has nothing to say.
    """
    undetected = [line for line in lines if line.measure.startswith(linkage.NOT_DETECTED)]
    if embedder is None or not embedder.is_face:
        return [line for line in lines if line not in undetected]
    share = max((line.value for line in undetected if line.value is not None), default=0.0)
    if share <= MAX_UNDETECTED_SHARE:
        return list(lines)
    note = f"no face is detected on {share:.0%}: this recogniser has nothing to say"
    return [line if line in undetected else with_note(without_values(line), note) for line in lines]


def _with_question(lines: Sequence[Figure], question: str) -> list[Figure]:
    return [replace(line, measure=f"{line.measure}: {question}") for line in lines]


ATTACKS: Mapping[str, Callable[[Workbench, Findings], None]] = {
    "linkage": _run_linkage,
    "reidentification": _run_reidentification,
    "parrot": _run_parrot,
    "averaging": _run_averaging,
    "inversion": _run_inversion,
    "membership": _run_membership,
    "attributes": _run_attributes,
}
