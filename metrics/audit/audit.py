"""An audit: every attack on one set of evidence, each with the same pictures, features and controls.

Knows pictures and people, not releases. Each attack draws from generators of its own, so that leaving one out does not
change another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from anonymizer.errors import ModelError
from metrics.attacks import attributes, averaging, linkage, membership, parrot, reidentification
from metrics.attacks.linkage import Ranking, draw_across_people, is_detected, number_within_person
from metrics.attacks.reidentification import Faces
from metrics.audit.mechanisms import Unrelated
from metrics.audit.workbench import Workbench
from metrics.features import Embedder
from metrics.stats.intervals import Bools, Floats, Names
from metrics.stats.risk import MIN_TRIALS, Figure, FigureContext, with_note, without_values
from metrics.stats.subgroups import split_by_group, subgroup_figures

GALLERY_PHOTOS = (1, 5)  # gallery photos of each person
ALL_ATTACKERS = "every attacker"  # stands where an attack failed as a whole
MAX_UNDETECTED_SHARE = 0.5  # share of pictures without a detected face beyond which a recogniser is not heard
MAX_LOSS_IMAGES = 300  # training pictures whose denoising loss is taken; each takes twenty network calls


@dataclass
class Findings:
    """What came out: the figures, the rank distributions, and which records were found by which attack."""

    figures: list[Figure] = field(default_factory=list)
    ranks: dict[str, linkage.RankDistribution] = field(default_factory=dict)
    hits: dict[str, Bools] = field(default_factory=dict)  # (N,) for attacks that point at a record's original


def run_attacks(
    bench: Workbench, attacks: Iterable[str], progress: Callable[[int], None] = lambda done: None
) -> Findings:
    """All figures of the named attacks, in the order of ``ATTACKS``; ``progress`` hears how many more are done.

    Raises ValueError for an unknown name.
    """
    wanted = set(attacks)
    if unknown := wanted - ATTACKS.keys():
        raise ValueError(f"attacks {', '.join(sorted(unknown))}: unknown: known are {', '.join(ATTACKS)}")
    findings = Findings()
    for name, attack in ATTACKS.items():
        if name in wanted:
            bench.progress(name)
            try:
                attack(bench, findings)
            except (ValueError, ModelError) as problem:  # of one attack, which takes none of the others with it
                findings.figures.append(_not_run(name, ALL_ATTACKERS, f"failed ({problem})"))
            progress(1)
    return findings


def _run_linkage(bench: Workbench, findings: Findings) -> None:
    """Unaware: outputs against originals. Aware: outputs against the attacker's own outputs of every original."""
    evidence, truth = bench.evidence, np.arange(len(bench.evidence))
    own = bench.resample(truth, 1, "aware")[:, 0]
    for embedder in bench.embedders:
        gallery = {
            "unaware": bench.embed_originals(embedder),
            "aware": bench.embed_outputs("own outputs", own, embedder),
        }
        for attacker, candidates in gallery.items():
            ranking = linkage.link(
                bench.embed_released(embedder), candidates, truth, evidence.subjects, bench.rng(attacker)
            )
            described = FigureContext(attack="linkage", attacker=attacker, feature=embedder.versioned_name)
            _add_ranking(bench, findings, ranking, described, embedder)


def _run_averaging(bench: Workbench, findings: Findings) -> None:
    """Several outputs of one original, averaged; the gallery is all originals."""
    evidence, effort = bench.evidence, bench.effort
    if not evidence.mechanism.is_random:
        note = "every output of an original is the same: there is nothing to average"
        return findings.figures.append(_not_run("averaging", "sees k outputs", note))
    rows = draw_across_people(evidence.subjects, effort.averaged, bench.rng("averaged originals"))
    more = bench.resample(rows, effort.outputs - 1, "averaging")  # (n, K - 1, 3, S, S)
    subjects = evidence.subjects[rows]
    for embedder in bench.embedders:
        if embedder.is_face:
            continue
        again = bench.embed_outputs(f"{len(rows)} x {more.shape[1]} further outputs", more.flatten(0, 1), embedder)
        all_of = np.concatenate(
            [bench.embed_released(embedder)[rows, None], again.reshape(*more.shape[:2], -1)], axis=1
        )
        gallery, rng = bench.embed_originals(embedder), bench.rng("averaging")

        def attack(averaged: Floats, gallery: Floats = gallery, rng: np.random.Generator = rng) -> Ranking:
            return linkage.link(averaged, gallery, rows, subjects, rng)

        found = averaging.attack_averages(all_of, attack)
        described = FigureContext(attack="averaging", attacker="sees k outputs", feature=embedder.versioned_name)
        findings.figures += _withdraw_undetected(
            averaging.figures(found, bench.rng("averaging figures"), **described), embedder
        )


def _withdraw_undetected(lines: Sequence[Figure], embedder: Embedder | None) -> list[Figure]:
    """Without the share that was not detected where nothing has to be detected, and with it alone where it is large.

    Pictures on which no face is detected are not protected: a recogniser that sees few of them has nothing to say.
    """
    hidden = [line for line in lines if line.measure.startswith(linkage.NOT_DETECTED)]
    if embedder is None or not embedder.is_face:
        return [line for line in lines if line not in hidden]
    unseen = max((line.value for line in hidden if line.value is not None), default=0.0)
    if unseen <= MAX_UNDETECTED_SHARE:
        return list(lines)
    note = f"no face is detected on {unseen:.0%}: this recogniser has nothing to say"
    return [line if line in hidden else with_note(without_values(line), note) for line in lines]


def _run_parrot(bench: Workbench, findings: Findings) -> None:
    """A linker that has learnt from pairs of other people what the method leaves."""
    usable = [e for e in bench.embedders if not e.is_face]
    if not usable:
        note = "no feature of whole pictures to learn from: give one (audit.features)"
        return findings.figures.append(_not_run("parrot", "trained", note))
    evidence, pairs = bench.evidence, bench.pairs
    if len(pairs) < parrot.MIN_PAIRS:
        return findings.figures.append(
            _not_run("parrot", "trained", f"{len(pairs)} pairs, {parrot.MIN_PAIRS} are needed")
        )
    taught = [
        {e.versioned_name: bench.embed_outputs(name, pictures, e) for e in usable}
        for name, pictures in (("pairs: originals", pairs.originals), ("pairs: outputs", pairs.outputs))
    ]
    linker = parrot.train(taught[0], taught[1], bench.rng("parrot"), pairs.people)
    gallery = linker.embed_originals({e.versioned_name: bench.embed_originals(e) for e in usable})
    outputs = linker.embed_outputs({e.versioned_name: bench.embed_released(e) for e in usable})
    ranking = linkage.link(outputs, gallery, np.arange(len(evidence)), evidence.subjects, bench.rng("parrot link"))
    described = FigureContext(
        attack="parrot", attacker="trained", feature=f"learnt from {len(pairs)} pairs: {linker.chosen}"
    )
    _add_ranking(bench, findings, ranking, described)


def _run_inversion(bench: Workbench, findings: Findings) -> None:
    """Linkage of what a network restores, and, with identities, re-identification of it."""
    evidence = bench.evidence
    if len(bench.pairs) < parrot.MIN_PAIRS:
        few = f"{len(bench.pairs)} pairs, {parrot.MIN_PAIRS} are needed"
        return findings.figures.append(_not_run("inversion", "inverting", few))
    truth = np.arange(len(evidence))
    for embedder in bench.embedders:
        restored = bench.embed_outputs("restored outputs", bench.restored, embedder)
        described = FigureContext(attack="inversion", attacker="inverting", feature=embedder.versioned_name)
        ranking = linkage.link(
            restored, bench.embed_originals(embedder), truth, evidence.subjects, bench.rng("inversion link")
        )
        _add_ranking(bench, findings, ranking, described, embedder)
        if (scene := _set_up_identification(bench, embedder)) is not None:
            lines = _withdraw_undetected(
                _identification_figures(scene, scene.as_probes(restored), bench, described, GALLERY_PHOTOS[:1]),
                embedder,
            )
            findings.figures += [replace(line, measure=f"{line.measure}, whose picture") for line in lines]


def _run_reidentification(bench: Workbench, findings: Findings) -> None:
    """Whose picture is it? Unmodified pictures and a mere round trip stand beside every figure."""
    if not bench.evidence.has_identities:
        note = "no identities: say which column or folder names the person (audit.identity)"
        return findings.figures.append(_not_run("reidentification", "holds other photos", note))
    for embedder in bench.embedders:
        scene = _set_up_identification(bench, embedder)
        if scene is None:
            note = "fewer than four people have a photo to be looked for by, and another one: "
            note += (
                "give other photos of the same people (audit.others)"
                if bench.evidence.others is None
                else ("the names in audit.others are not those of audit.identity")
            )
            return findings.figures.append(_not_run("reidentification", "holds other photos", note))
        described = FigureContext(
            attack="reidentification", attacker="holds other photos", feature=embedder.versioned_name
        )
        if not scene.can_recognise:
            note = "no face is detected on the originals: this recogniser has nothing to say"
            blind = _not_run("reidentification", "holds other photos", note)
            findings.figures.append(replace(blind, feature=embedder.versioned_name))
            continue
        after = _identification_figures(
            scene, scene.as_probes(bench.embed_released(embedder)), bench, described, GALLERY_PHOTOS
        )
        raw = _identification_figures(scene, scene.unmodified, bench, described, GALLERY_PHOTOS)
        mere = _identification_figures(
            scene, scene.as_probes(bench.embed_round_trip(embedder)), bench, described, GALLERY_PHOTOS
        )
        lines = [replace(x, unmodified=a.value, round_trip=b.value) for x, a, b in zip(after, raw, mere, strict=True)]
        findings.figures += _withdraw_undetected(lines, embedder)


@dataclass(frozen=True)
class IdentificationSetup:
    """Who is looked for by which photos: ``rows`` of the evidence are probes, ``gallery`` holds other photos."""

    probe_rows: Bools
    subjects: Names
    gallery: Faces
    unmodified: Faces

    @property
    def can_recognise(self) -> bool:
        """Whether there is anything to compare: embeddings of two people on either side."""
        return all(len(np.unique(f.identities[f.seen])) > 1 for f in (self.gallery, self.unmodified))

    def as_probes(self, embeddings: Floats) -> Faces:
        return Faces(embeddings[self.probe_rows], self.subjects[self.probe_rows])


def _set_up_identification(bench: Workbench, embedder: Embedder) -> IdentificationSetup | None:
    """With other photos, every record is a probe; without, half of each person's originals are the gallery."""
    evidence = bench.evidence
    if not evidence.has_identities:
        return None
    subjects, originals = evidence.subjects, bench.embed_originals(embedder)
    if evidence.others is not None:
        pictures, names = evidence.others
        gallery = Faces(bench.embed_images("other photos", pictures, embedder), names)
        rows = np.isin(subjects, np.unique(names))
    else:
        known = _draw_half(subjects, bench.rng("gallery"))
        gallery = Faces(originals[known], subjects[known])
        rows = ~known & np.isin(subjects, np.unique(subjects[known]))
    gallery = gallery[np.isin(gallery.identities, subjects[rows])]
    if len(np.unique(gallery.identities)) < 4:
        return None
    return IdentificationSetup(rows, subjects, gallery, Faces(originals[rows], subjects[rows]))


def _draw_half(subjects: Names, rng: np.random.Generator) -> Bools:
    """Half of each person's rows, rounded down, drawn by chance."""
    _, person, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    drawn: Bools = number_within_person(subjects, rng) < (counts // 2)[person]
    return drawn


def _identification_figures(
    scene: IdentificationSetup, probes: Faces, bench: Workbench, described: FigureContext, photos: Sequence[int]
) -> list[Figure]:
    """Closed set for each number of gallery photos, then open set and verification with one photo."""
    lines: list[Figure] = []
    for count in photos:
        gallery = reidentification.enrol(scene.gallery, count, bench.rng("enrol"))
        ranking = reidentification.closed_set(probes, gallery, bench.rng("closed set"))
        shown = linkage.figures(ranking, bench.rng("closed set figures"), **described)
        if count != photos[0]:
            shown.pop()  # whether a face is detected does not depend on the gallery
        else:
            for way in (reidentification.open_set, reidentification.verification):
                accepted = way(probes, scene.unmodified, gallery, bench.rng(way.__name__))
                shown += reidentification.figures(accepted, bench.rng(f"{way.__name__} figures"), **described)[:-1]
        each = f"{count} photo{'s' if count > 1 else ''} a person"
        lines += [replace(line, measure=f"{line.measure}, {each}") for line in shown]
    return lines


def _run_membership(bench: Workbench, findings: Findings) -> None:
    """Was this photo in the release? Was it in the model's training set? Do outputs crowd around training pictures?"""
    evidence = bench.evidence
    members = evidence.subjects
    others = evidence.outsiders
    if isinstance(evidence.mechanism, Unrelated):
        note = "these outputs are pictures of the outsiders, who are not to be told from members by that"
        return findings.figures.append(_not_run("membership", "holds the original", note))
    if others is None:
        note = "no pictures that are known not to be in it: give some (audit.outsiders)"
        findings.figures.append(_not_run("membership", "holds the original", note))
    for embedder in bench.embedders:
        mine = membership.Candidates(bench.embed_originals(embedder), members)
        if others is not None:
            if not is_detected(bench.embed_released(embedder)).any():
                blind = _not_run("membership", "holds the original", "no face is detected on any output")
                findings.figures.append(replace(blind, feature=embedder.versioned_name))
                continue
            stranger = membership.Candidates(bench.embed_images("outsiders", others[0], embedder), others[1])
            scores = membership.score_release(mine, stranger, bench.embed_released(embedder))
            described = FigureContext(
                attack="membership", attacker="holds the original", feature=embedder.versioned_name
            )
            findings.figures += _with_question(
                membership.figures(scores, bench.rng("membership"), **described), "in the release"
            )
            findings.figures += _run_calibrated_membership(bench, mine, stranger, embedder)
        if evidence.training is not None and not embedder.is_face:
            known = bench.embed_images("training pictures", evidence.training, embedder)
            outputs = membership.Candidates(bench.embed_released(embedder), members)
            near = membership.score_closeness(outputs, mine, known)
            described = FigureContext(attack="membership", attacker="unaware", feature=embedder.versioned_name)
            lines = membership.figures(near, bench.rng("closeness"), **described)
            findings.figures += _with_question(
                lines, "outputs nearer to the model's training pictures than originals are"
            )
    _run_training_set_membership(bench, findings)


def _run_calibrated_membership(
    bench: Workbench, mine: membership.Candidates, strangers: membership.Candidates, embedder: Embedder
) -> list[Figure]:
    """The attacker who knows the method sets his own outputs of other people beside the release's.

    Outsiders of whom he made outputs are no non-members any more; with few others left there is nothing to measure.
    """
    rest = ~np.isin(strangers.subjects, bench.strangers[1])
    if len(np.unique(strangers.subjects[rest])) < MIN_TRIALS:
        return []
    reference = bench.embed_outputs("pairs: outputs", bench.pairs.outputs, embedder)
    if not is_detected(reference).any():
        return []
    described = FigureContext(attack="membership", attacker="aware", feature=embedder.versioned_name)
    others = membership.Candidates(strangers.embeddings[rest], strangers.subjects[rest])
    scores = membership.score_release(mine, others, bench.embed_released(embedder), reference)
    return _with_question(membership.figures(scores, bench.rng("aware membership"), **described), "in the release")


def _run_training_set_membership(bench: Workbench, findings: Findings) -> None:
    evidence = bench.evidence
    if evidence.training is None:
        note = "the model's training pictures are not at hand (audit.training)"
        return findings.figures.append(_not_run("membership", "aware", note))
    known = evidence.training[:MAX_LOSS_IMAGES]
    inside = bench.denoising_losses(f"{len(known)} training pictures", known)
    outside = bench.denoising_losses(f"originals{bench.scope}", evidence.originals)
    scores = membership.score_training_set(
        inside, outside, _number_subjects("training", len(inside)), evidence.subjects
    )
    described = FigureContext(attack="membership", attacker="aware", feature="denoising loss")
    lines = membership.figures(scores, bench.rng("training set"), **described)
    findings.figures += _with_question(lines, "in the model's training set")


def _run_attributes(bench: Workbench, findings: Findings) -> None:
    evidence = bench.evidence
    for column, values in evidence.attributes.items():
        known = np.array([value is not None and value == value for value in values])
        if len(np.unique(evidence.subjects[known])) < 2:
            findings.figures.append(_not_run("attributes", "unaware", f"{column} is known of fewer than two people"))
            continue
        labels = attributes.group_values([value for value, k in zip(values, known, strict=True) if k])
        subjects = evidence.subjects[known]
        for embedder in bench.embedders:
            if embedder.is_face:
                continue
            of_originals, of_outputs = bench.embed_originals(embedder)[known], bench.embed_released(embedder)[known]
            read = attributes.predict_attribute(
                of_originals, of_outputs, labels, subjects, bench.rng(f"attribute {column}")
            )
            by = [
                FigureContext(attack="attributes", attacker=reader, feature=embedder.versioned_name)
                for reader in ("unaware", "trained")
            ]
            usual = attributes.figures(read, "originals", column, bench.rng("attribute figures"), **by[0])
            for described in by:
                rng = bench.rng("attribute figures")
                lines = attributes.figures(read, described["attacker"], column, rng, **described)
                findings.figures += [replace(a, unmodified=b.value) for a, b in zip(lines, usual, strict=True)]


def _add_ranking(
    bench: Workbench, findings: Findings, ranking: Ranking, described: FigureContext, embedder: Embedder | None = None
) -> None:
    """Figures of a linkage, for everybody and for each subgroup; its distribution; and who was found."""
    name = f"{described['attack']}, {described['attacker']}, {described['feature']}"
    findings.figures += _withdraw_undetected(
        linkage.figures(ranking, bench.rng(f"{name} figures"), **described), embedder
    )
    findings.ranks[name], findings.hits[name] = linkage.rank_distribution(ranking), ranking.ranks == 1
    described = described | FigureContext(gallery=int(ranking.candidates.max()))
    for column, values in bench.evidence.attributes.items():
        groups = attributes.group_known_values(values)
        findings.figures += subgroup_figures(
            ranking.within(1), groups, bench.rng(f"{name} {column}"), column=column, measure="rank-1",
            controls=split_by_group(ranking.control_within(1), groups), chance=ranking.chance(1), **described,
        )  # fmt: skip


def _with_question(lines: Sequence[Figure], question: str) -> list[Figure]:
    return [replace(line, measure=f"{line.measure}: {question}") for line in lines]


def _not_run(attack: str, attacker: str, why: str) -> Figure:
    return Figure(attack=attack, attacker=attacker, measure="not run", feature="", n=0, subjects=0, note=why)


def _number_subjects(kind: str, count: int) -> Names:
    return np.array([f"{kind} {i}" for i in range(count)])


ATTACKS: Mapping[str, Callable[[Workbench, Findings], None]] = {
    "linkage": _run_linkage,
    "reidentification": _run_reidentification,
    "parrot": _run_parrot,
    "averaging": _run_averaging,
    "inversion": _run_inversion,
    "membership": _run_membership,
    "attributes": _run_attributes,
}
