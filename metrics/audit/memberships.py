"""Membership within an audit: in the release, by nearness and by likelihood ratios, and in the model's training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from metrics.attacks import membership
from metrics.attacks.linkage import is_detected
from metrics.audit import filtering
from metrics.audit.findings import Findings
from metrics.audit.mechanisms import Unrelated
from metrics.audit.workbench import Workbench
from metrics.features import Embedder
from metrics.stats.intervals import as_subjects
from metrics.stats.risk import MIN_TRIALS, Figure, FigureContext

MAX_LOSS_IMAGES = 300  # training images whose denoising loss is taken; each needs twenty network calls


def run_membership(bench: Workbench, findings: Findings) -> None:
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
    if evidence.outsiders is not None and (matched := filtering.make_filter(bench, findings, "membership")):
        findings.figures += _with_question(filtering.membership_figures(matched), "in the release")
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


def _with_question(lines: Sequence[Figure], question: str) -> list[Figure]:
    return [replace(line, measure=f"{line.measure}: {question}") for line in lines]
