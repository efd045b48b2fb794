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
from metrics.attacks.linkage import Bools, Floats, Names, Ranking, detected, spread, turns
from metrics.attacks.reidentification import Faces
from metrics.audit.mechanisms import Unrelated
from metrics.audit.workbench import Workbench
from metrics.features import Embedder
from metrics.stats.risk import FEWEST, Described, Figure, noted, silenced
from metrics.stats.subgroups import by_subgroup, split

PHOTOS = (1, 5)  # gallery photos of each person
EVERY = "every attacker"  # stands where an attack failed as a whole
MOST_UNSEEN = 0.5  # share of pictures without a detected face beyond which a recogniser is not heard
MOST_LOSSES = 300  # training pictures whose denoising loss is taken; each takes twenty network calls


@dataclass
class Findings:
    """What came out: the figures, the rank distributions, and which records were found by which attack."""

    figures: list[Figure] = field(default_factory=list)
    ranks: dict[str, linkage.Distribution] = field(default_factory=dict)
    found: dict[str, Bools] = field(default_factory=dict)  # (N,) for attacks that point at a record's original


def examine(bench: Workbench, attacks: Iterable[str], progress: Callable[[int], None] = lambda done: None) -> Findings:
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
                findings.figures.append(_not_run(name, EVERY, f"failed ({problem})"))
            progress(1)
    return findings


def _linkage(bench: Workbench, findings: Findings) -> None:
    """Unaware: outputs against originals. Aware: outputs against the attacker's own outputs of every original."""
    evidence, truth = bench.evidence, np.arange(len(bench.evidence))
    own = bench.again(truth, 1, "aware")[:, 0]
    for embedder in bench.embedders:
        gallery = {"unaware": bench.originals(embedder), "aware": bench.made("own outputs", own, embedder)}
        for attacker, candidates in gallery.items():
            ranking = linkage.link(bench.outputs(embedder), candidates, truth, evidence.subjects, bench.rng(attacker))
            described = Described(attack="linkage", attacker=attacker, feature=embedder.reported)
            _ranking(bench, findings, ranking, described, embedder)


def _averaging(bench: Workbench, findings: Findings) -> None:
    """Several outputs of one original, averaged; the gallery is all originals."""
    evidence, effort = bench.evidence, bench.effort
    if not evidence.method.is_random:
        note = "every output of an original is the same: there is nothing to average"
        return findings.figures.append(_not_run("averaging", "sees k outputs", note))
    rows = spread(evidence.subjects, effort.averaged, bench.rng("averaged originals"))
    more = bench.again(rows, effort.outputs - 1, "averaging")  # (n, K - 1, 3, S, S)
    subjects = evidence.subjects[rows]
    for embedder in bench.embedders:
        if embedder.is_face:
            continue
        again = bench.made(f"{len(rows)} x {more.shape[1]} further outputs", more.flatten(0, 1), embedder)
        all_of = np.concatenate([bench.outputs(embedder)[rows, None], again.reshape(*more.shape[:2], -1)], axis=1)
        gallery, rng = bench.originals(embedder), bench.rng("averaging")

        def attack(averaged: Floats, gallery: Floats = gallery, rng: np.random.Generator = rng) -> Ranking:
            return linkage.link(averaged, gallery, rows, subjects, rng)

        found = averaging.averaging(all_of, attack)
        described = Described(attack="averaging", attacker="sees k outputs", feature=embedder.reported)
        findings.figures += _telling(averaging.figures(found, bench.rng("averaging figures"), **described), embedder)


def _telling(lines: Sequence[Figure], embedder: Embedder | None) -> list[Figure]:
    """Without the share that was not detected where nothing has to be detected, and with it alone where it is large.

    Pictures on which no face is detected are not protected: a recogniser that sees few of them has nothing to say.
    """
    hidden = [line for line in lines if line.measure.startswith(linkage.NOT_DETECTED)]
    if embedder is None or not embedder.is_face:
        return [line for line in lines if line not in hidden]
    unseen = max((line.value for line in hidden if line.value is not None), default=0.0)
    if unseen <= MOST_UNSEEN:
        return list(lines)
    note = f"no face is detected on {unseen:.0%}: this recogniser has nothing to say"
    return [line if line in hidden else noted(silenced(line), note) for line in lines]


def _parrot(bench: Workbench, findings: Findings) -> None:
    """A linker that has learnt from pairs of other people what the method leaves."""
    usable = [e for e in bench.embedders if not e.is_face]
    if not usable:
        note = "no feature of whole pictures to learn from: give one (audit.features)"
        return findings.figures.append(_not_run("parrot", "trained", note))
    evidence, pairs = bench.evidence, bench.pairs
    if len(pairs) < parrot.FEWEST:
        return findings.figures.append(_not_run("parrot", "trained", f"{len(pairs)} pairs, {parrot.FEWEST} are needed"))
    taught = [
        {e.reported: bench.made(name, pictures, e) for e in usable}
        for name, pictures in (("pairs: originals", pairs.originals), ("pairs: outputs", pairs.outputs))
    ]
    linker = parrot.train(taught[0], taught[1], bench.rng("parrot"), pairs.people)
    gallery = linker.embed_originals({e.reported: bench.originals(e) for e in usable})
    outputs = linker.embed_outputs({e.reported: bench.outputs(e) for e in usable})
    ranking = linkage.link(outputs, gallery, np.arange(len(evidence)), evidence.subjects, bench.rng("parrot link"))
    described = Described(
        attack="parrot", attacker="trained", feature=f"learnt from {len(pairs)} pairs: {linker.chosen}"
    )
    _ranking(bench, findings, ranking, described)


def _inversion(bench: Workbench, findings: Findings) -> None:
    """Linkage of what a network restores, and, with identities, re-identification of it."""
    evidence = bench.evidence
    if len(bench.pairs) < parrot.FEWEST:
        few = f"{len(bench.pairs)} pairs, {parrot.FEWEST} are needed"
        return findings.figures.append(_not_run("inversion", "inverting", few))
    truth = np.arange(len(evidence))
    for embedder in bench.embedders:
        restored = bench.made("restored outputs", bench.restored, embedder)
        described = Described(attack="inversion", attacker="inverting", feature=embedder.reported)
        ranking = linkage.link(
            restored, bench.originals(embedder), truth, evidence.subjects, bench.rng("inversion link")
        )
        _ranking(bench, findings, ranking, described, embedder)
        if (scene := _scene(bench, embedder)) is not None:
            lines = _telling(_people(scene, scene.probes(restored), bench, described, PHOTOS[:1]), embedder)
            findings.figures += [replace(line, measure=f"{line.measure}, whose picture") for line in lines]


def _reidentification(bench: Workbench, findings: Findings) -> None:
    """Whose picture is it? Unmodified pictures and a mere round trip stand beside every figure."""
    if not bench.evidence.identified:
        note = "no identities: say which column or folder names the person (audit.identity)"
        return findings.figures.append(_not_run("reidentification", "holds other photos", note))
    for embedder in bench.embedders:
        scene = _scene(bench, embedder)
        if scene is None:
            note = "fewer than four people have a photo to be looked for by, and another one: "
            note += (
                "give other photos of the same people (audit.others)"
                if bench.evidence.others is None
                else ("the names in audit.others are not those of audit.identity")
            )
            return findings.figures.append(_not_run("reidentification", "holds other photos", note))
        described = Described(attack="reidentification", attacker="holds other photos", feature=embedder.reported)
        if not scene.recognises:
            note = "no face is detected on the originals: this recogniser has nothing to say"
            blind = _not_run("reidentification", "holds other photos", note)
            findings.figures.append(replace(blind, feature=embedder.reported))
            continue
        after = _people(scene, scene.probes(bench.outputs(embedder)), bench, described, PHOTOS)
        raw = _people(scene, scene.unmodified, bench, described, PHOTOS)
        mere = _people(scene, scene.probes(bench.round_trip(embedder)), bench, described, PHOTOS)
        lines = [replace(x, unmodified=a.value, round_trip=b.value) for x, a, b in zip(after, raw, mere, strict=True)]
        findings.figures += _telling(lines, embedder)


@dataclass(frozen=True)
class Scene:
    """Who is looked for by which photos: ``rows`` of the evidence are probes, ``gallery`` holds other photos."""

    rows: Bools
    subjects: Names
    gallery: Faces
    unmodified: Faces

    @property
    def recognises(self) -> bool:
        """Whether there is anything to compare: embeddings of two people on either side."""
        return all(len(np.unique(f.identities[f.seen])) > 1 for f in (self.gallery, self.unmodified))

    def probes(self, embeddings: Floats) -> Faces:
        return Faces(embeddings[self.rows], self.subjects[self.rows])


def _scene(bench: Workbench, embedder: Embedder) -> Scene | None:
    """With other photos, every record is a probe; without, half of each person's originals are the gallery."""
    evidence = bench.evidence
    if not evidence.identified:
        return None
    subjects, originals = evidence.subjects, bench.originals(embedder)
    if evidence.others is not None:
        pictures, names = evidence.others
        gallery = Faces(bench.embedded("other photos", pictures, embedder), names)
        rows = np.isin(subjects, np.unique(names))
    else:
        known = _half(subjects, bench.rng("gallery"))
        gallery = Faces(originals[known], subjects[known])
        rows = ~known & np.isin(subjects, np.unique(subjects[known]))
    gallery = gallery[np.isin(gallery.identities, subjects[rows])]
    if len(np.unique(gallery.identities)) < 4:
        return None
    return Scene(rows, subjects, gallery, Faces(originals[rows], subjects[rows]))


def _half(subjects: Names, rng: np.random.Generator) -> Bools:
    """Half of each person's rows, rounded down, drawn by chance."""
    _, person, counts = np.unique(subjects, return_inverse=True, return_counts=True)
    drawn: Bools = turns(subjects, rng) < (counts // 2)[person]
    return drawn


def _people(scene: Scene, probes: Faces, bench: Workbench, described: Described, photos: Sequence[int]) -> list[Figure]:
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


def _membership(bench: Workbench, findings: Findings) -> None:
    """Was this photo in the release? Was it in the model's training set? Do outputs crowd around training pictures?"""
    evidence = bench.evidence
    members = evidence.subjects
    others = evidence.outsiders
    if isinstance(evidence.method, Unrelated):
        note = "these outputs are pictures of the outsiders, who are not to be told from members by that"
        return findings.figures.append(_not_run("membership", "holds the original", note))
    if others is None:
        note = "no pictures that are known not to be in it: give some (audit.outsiders)"
        findings.figures.append(_not_run("membership", "holds the original", note))
    for embedder in bench.embedders:
        mine = membership.Candidates(bench.originals(embedder), members)
        if others is not None:
            if not detected(bench.outputs(embedder)).any():
                blind = _not_run("membership", "holds the original", "no face is detected on any output")
                findings.figures.append(replace(blind, feature=embedder.reported))
                continue
            stranger = membership.Candidates(bench.embedded("outsiders", others[0], embedder), others[1])
            scores = membership.released_set(mine, stranger, bench.outputs(embedder))
            described = Described(attack="membership", attacker="holds the original", feature=embedder.reported)
            findings.figures += _named(
                membership.figures(scores, bench.rng("membership"), **described), "in the release"
            )
            findings.figures += _calibrated(bench, mine, stranger, embedder)
        if evidence.training is not None and not embedder.is_face:
            known = bench.embedded("training pictures", evidence.training, embedder)
            outputs = membership.Candidates(bench.outputs(embedder), members)
            near = membership.closeness(outputs, mine, known)
            described = Described(attack="membership", attacker="unaware", feature=embedder.reported)
            lines = membership.figures(near, bench.rng("closeness"), **described)
            findings.figures += _named(lines, "outputs nearer to the model's training pictures than originals are")
    _trained_on(bench, findings)


def _calibrated(
    bench: Workbench, mine: membership.Candidates, strangers: membership.Candidates, embedder: Embedder
) -> list[Figure]:
    """The attacker who knows the method sets his own outputs of other people beside the release's.

    Outsiders of whom he made outputs are no non-members any more; with few others left there is nothing to measure.
    """
    rest = ~np.isin(strangers.subjects, bench.strangers[1])
    if len(np.unique(strangers.subjects[rest])) < FEWEST:
        return []
    reference = bench.made("pairs: outputs", bench.pairs.outputs, embedder)
    if not detected(reference).any():
        return []
    described = Described(attack="membership", attacker="aware", feature=embedder.reported)
    others = membership.Candidates(strangers.embeddings[rest], strangers.subjects[rest])
    scores = membership.released_set(mine, others, bench.outputs(embedder), reference)
    return _named(membership.figures(scores, bench.rng("aware membership"), **described), "in the release")


def _trained_on(bench: Workbench, findings: Findings) -> None:
    evidence = bench.evidence
    if evidence.training is None:
        note = "the model's training pictures are not at hand (audit.training)"
        return findings.figures.append(_not_run("membership", "aware", note))
    known = evidence.training[:MOST_LOSSES]
    inside = bench.losses(f"{len(known)} training pictures", known)
    outside = bench.losses(f"originals{bench.who}", evidence.originals)
    scores = membership.training_set(inside, outside, _numbered("training", len(inside)), evidence.subjects)
    described = Described(attack="membership", attacker="aware", feature="denoising loss")
    lines = membership.figures(scores, bench.rng("training set"), **described)
    findings.figures += _named(lines, "in the model's training set")


def _attributes(bench: Workbench, findings: Findings) -> None:
    evidence = bench.evidence
    for column, values in evidence.attributes.items():
        known = np.array([value is not None and value == value for value in values])
        if len(np.unique(evidence.subjects[known])) < 2:
            findings.figures.append(_not_run("attributes", "unaware", f"{column} is known of fewer than two people"))
            continue
        labels = attributes.groups([value for value, k in zip(values, known, strict=True) if k])
        subjects = evidence.subjects[known]
        for embedder in bench.embedders:
            if embedder.is_face:
                continue
            of_originals, of_outputs = bench.originals(embedder)[known], bench.outputs(embedder)[known]
            read = attributes.read(of_originals, of_outputs, labels, subjects, bench.rng(f"attribute {column}"))
            by = [
                Described(attack="attributes", attacker=reader, feature=embedder.reported)
                for reader in ("unaware", "trained")
            ]
            usual = attributes.figures(read, "originals", column, bench.rng("attribute figures"), **by[0])
            for described in by:
                rng = bench.rng("attribute figures")
                lines = attributes.figures(read, described["attacker"], column, rng, **described)
                findings.figures += [replace(a, unmodified=b.value) for a, b in zip(lines, usual, strict=True)]


def _ranking(
    bench: Workbench, findings: Findings, ranking: Ranking, described: Described, embedder: Embedder | None = None
) -> None:
    """Figures of a linkage, for everybody and for each subgroup; its distribution; and who was found."""
    name = f"{described['attack']}, {described['attacker']}, {described['feature']}"
    findings.figures += _telling(linkage.figures(ranking, bench.rng(f"{name} figures"), **described), embedder)
    findings.ranks[name], findings.found[name] = linkage.distribution(ranking), ranking.ranks == 1
    described = described | Described(gallery=int(ranking.candidates.max()))
    for column, values in bench.evidence.attributes.items():
        groups = attributes.groups_or_unknown(values)
        findings.figures += by_subgroup(
            ranking.within(1), groups, bench.rng(f"{name} {column}"), column=column, measure="rank-1",
            controls=split(ranking.control_within(1), groups), chance=ranking.chance(1), **described,
        )  # fmt: skip


def _named(lines: Sequence[Figure], question: str) -> list[Figure]:
    return [replace(line, measure=f"{line.measure}: {question}") for line in lines]


def _not_run(attack: str, attacker: str, why: str) -> Figure:
    return Figure(attack=attack, attacker=attacker, measure="not run", feature="", n=0, subjects=0, note=why)


def _numbered(kind: str, count: int) -> Names:
    return np.array([f"{kind} {i}" for i in range(count)])


ATTACKS: Mapping[str, Callable[[Workbench, Findings], None]] = {
    "linkage": _linkage,
    "reidentification": _reidentification,
    "parrot": _parrot,
    "averaging": _averaging,
    "inversion": _inversion,
    "membership": _membership,
    "attributes": _attributes,
}
