"""The matched filter within an audit: linkage, averaging, re-identification and membership by likelihood ratios.

Components are those of public pictures of the kind (outsiders, the model's training pictures), in the space that is
noised, or, where these are few, of the released outputs themselves, which link as well; never of the originals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from anonymizer.backbones.protocol import Backbone
from metrics.attacks import linkage, membership, reidentification
from metrics.attacks.averaging import OUTPUT_COUNTS, AveragedRankings
from metrics.attacks.linkage import Similarity, rank
from metrics.attacks.matched_filter import (
    FILTER_NAME,
    Components,
    MatchedFilter,
    between_shares,
    fit_components,
    group_filter,
    matched_filter,
)
from metrics.attacks.membership import MembershipScores
from metrics.attacks.reidentification import Faces
from metrics.audit.findings import Findings
from metrics.audit.identification import GALLERY_PHOTOS, IdentificationSetup, set_up_identification
from metrics.audit.mechanisms import BATCH, LocalSampling
from metrics.audit.workbench import Workbench
from metrics.features import Rows
from metrics.stats.intervals import Floats, Names, Numbers
from metrics.stats.risk import Figure, FigureContext

ATTACKER = "filtering"
PersonScores = Callable[[Floats], Floats]
MAX_NUMBERS = 2**28  # of them all: 20,000 pictures of 64 x 64, 300 of 512 x 512


@dataclass(frozen=True)
class NoisedSpace:
    """The space that a model noises, as rows (B, D); not of unit norm, and compared by the filter only."""

    model: Backbone
    name = versioned_name = FILTER_NAME
    is_face = False

    @torch.inference_mode()
    def embed(self, images: torch.Tensor) -> Rows:
        parts = images.float().split(BATCH)
        z0 = torch.cat([self.model.encode(part.to(self.model.device)).float().cpu() for part in parts])
        return np.asarray(z0.flatten(1).numpy())


def why_not(bench: Workbench) -> str | None:
    """Return why the filter cannot be made for the bench's mechanism; None where it can."""
    if isinstance(bench.evidence.mechanism, LocalSampling):
        return None
    return f"{bench.evidence.mechanism.name} adds no noise of a known level: there is nothing to match"


class Filtering:
    """The filter of one bench, whose mechanism adds noise of a known level, and the rows that it compares."""

    def __init__(self, bench: Workbench) -> None:
        mechanism = bench.evidence.mechanism
        if not isinstance(mechanism, LocalSampling):
            raise ValueError(f"mechanism must be a LocalSampling, got {mechanism.name}")
        self.bench, self.space = bench, NoisedSpace(bench.evidence.model)
        self.abar, self.is_deterministic = mechanism.abar, mechanism.is_deterministic

    @property
    def originals(self) -> Floats:
        return self.bench.embed_originals(self.space)

    @property
    def outputs(self) -> Floats:
        return self.bench.embed_released(self.space)

    def context(self, attack: str) -> FigureContext:
        return FigureContext(attack=attack, attacker=ATTACKER, feature=FILTER_NAME)

    def components(self, *, with_outsiders: bool = True) -> Components:
        """Return the components of outsiders and training pictures, or of the released outputs where these are few.

        Few is below ``effort.pairs``. Where outsiders are candidates themselves they are left out.
        """
        evidence, parts = self.bench.evidence, []
        if evidence.training is not None:
            parts.append(evidence.training)
        if with_outsiders and evidence.outsiders is not None:
            parts.append(evidence.outsiders[0])
        if sum(map(len, parts)) < self.bench.effort.pairs:
            return fit_components(self._distinct_outputs())
        public, model = torch.cat(parts), evidence.model
        width = model.channels * (model.size // model.scale) ** 2
        step = -(-len(public) * width // MAX_NUMBERS)  # bounds memory
        name = f"public pictures{'' if with_outsiders else ' without outsiders'}"
        return self.bench.components(name, public[::step], self.space)

    def _distinct_outputs(self) -> Floats:
        """Return the outputs without NaN, those of a group that are equal once."""
        outputs, groups = self.outputs, self.bench.evidence.groups
        if groups is not None:
            pairs = np.stack([np.unique(groups, return_inverse=True)[1], outputs[:, 0]], axis=1)
            outputs = outputs[np.sort(np.unique(pairs, axis=0, return_index=True)[1])]
        return outputs[np.isfinite(outputs).all(axis=1)]

    def make(self, components: Components, between: Floats | None = None, photos: int = 1) -> MatchedFilter:
        """Return the filter for candidates that are originals, or means of other photos of a person.

        Where outputs are drawn of groups, the candidate is one of as many as the smaller half of the groups have.
        """
        if (groups := self.bench.evidence.groups) is None:
            return matched_filter(components, self.abar, self.is_deterministic, between, photos)
        k = int(np.median(np.unique(groups, return_counts=True)[1]))
        return group_filter(components, self.abar, k, self.alike(components), self.is_deterministic)

    def alike(self, components: Components) -> Floats:
        """Return the share (R,) of each component's variance that lies between groups; 0 where they are too few to say.

        The attacker who holds the originals can group them alike, if not in the same way.
        """
        groups = self.bench.evidence.groups
        shares = None if groups is None else between_shares(components, self.originals, groups)
        return np.zeros_like(components.variances) if shares is None else shares


def make_filter(bench: Workbench, findings: Findings, attack: str) -> Filtering | None:
    """Return the matched filter where it takes part; for a mechanism that it does not fit, note the reason."""
    if not bench.effort.matched_filter:
        return None
    if (reason := why_not(bench)) is not None:
        findings.skip(attack, ATTACKER, reason, FILTER_NAME)
        return None
    return Filtering(bench)


def linkage_similarity(filtering: Filtering) -> Similarity:
    """Compare outputs with originals."""
    return filtering.make(filtering.components()).similarity(filtering.outputs, filtering.originals)


def averaged_rankings(filtering: Filtering, rows: Numbers, more: torch.Tensor, name: str) -> AveragedRankings:
    """Rank originals by the mean of k outputs: those of ``rows`` (n,) and ``more`` (n, K - 1, 3, S, S)."""
    bench = filtering.bench
    further = bench.embed_outputs(name, more.flatten(0, 1), filtering.space).reshape(*more.shape[:2], -1)
    outputs = np.concatenate([filtering.outputs[rows, None], further], axis=1)
    the_filter, subjects = filtering.make(filtering.components()), bench.evidence.subjects[rows]

    def rank_mean(k: int) -> linkage.Ranking:
        similarity = the_filter.similarity(outputs[:, :k].mean(1), filtering.originals)
        return rank(similarity, rows, subjects, bench.rng("filter, averaging"))

    return AveragedRankings({k: rank_mean(k) for k in OUTPUT_COUNTS if k <= outputs.shape[1]})


def identification_figures(filtering: Filtering) -> list[Figure]:
    """Return closed-set figures by other photos of the same people, for each number of them, in two ways.

    By the photo that explains an output best, as if it were the original; and, where photos of enough people show the
    variance within a person (outsiders with several photos, or the gallery), by the mean photo and that variance.
    """
    bench = filtering.bench
    setup = set_up_identification(bench, filtering.space)
    if setup is None:
        return []
    figures: list[Figure] = []
    for count in GALLERY_PHOTOS:
        gallery = reidentification.enrol(setup.gallery, count, bench.rng("enrol"))
        unit = f"{count} photo{'s' if count > 1 else ''} a person"
        for name, scores in _person_scores(filtering, gallery).items():
            lines = _compare_people(filtering, setup, scores, np.unique(gallery.identities), name)
            figures += [replace(line, measure=f"{line.measure}, {unit}") for line in lines]
    return figures


def _person_scores(filtering: Filtering, gallery: Faces) -> dict[str, PersonScores]:
    """Return, by name, functions of probes (N, D) that give the scores (N, P) of the gallery's people, sorted."""
    components = filtering.components()
    gallery = gallery[np.argsort(gallery.identities, kind="stable")]
    people, starts, counts = np.unique(gallery.identities, return_index=True, return_counts=True)
    plain = filtering.make(components)

    def by_photo(probes: Floats) -> Floats:
        return np.asarray(np.logaddexp.reduceat(plain.scores(probes, gallery.embeddings), starts, axis=1))

    ways: dict[str, PersonScores] = {FILTER_NAME: by_photo}
    photos, names = [gallery.embeddings], [gallery.identities]
    if (outsiders := filtering.bench.evidence.outsiders) is not None:
        photos.append(filtering.bench.embed_images("outsiders", outsiders[0], filtering.space))
        names.append(outsiders[1])
    between = between_shares(components, np.concatenate(photos), np.concatenate(names))
    if between is not None:
        means = np.add.reduceat(gallery.embeddings, starts) / counts[:, None].astype(gallery.embeddings.dtype)

        def by_mean(probes: Floats) -> Floats:
            scores = np.empty((len(probes), len(people)))
            for n in np.unique(counts):
                the_filter = filtering.make(components, between, int(n))
                scores[:, counts == n] = the_filter.scores(probes, means[counts == n])
            return scores

        ways[f"{FILTER_NAME}, variance within people"] = by_mean
    return ways


def _compare_people(
    filtering: Filtering, setup: IdentificationSetup, scores: PersonScores, people: Names, name: str
) -> list[Figure]:
    """Return rank-1 and rank-5, with the same for originals as they are and after a mere round trip."""
    bench = filtering.bench
    context = filtering.context("reidentification") | FigureContext(feature=name)

    def figures_of(rows: Floats) -> list[Figure]:
        probes = setup.as_probes(rows)
        similarity = linkage.similarity_matrix(scores(probes.embeddings))
        truth = np.searchsorted(people, probes.identities)
        ranking = rank(similarity, truth, probes.identities, bench.rng("filter, closed set"))
        return linkage.figures(ranking, bench.rng("closed set figures"), **context)[:-1]

    round_trip = bench.embed_round_trip(filtering.space)
    lines = (figures_of(rows) for rows in (filtering.outputs, filtering.originals, round_trip))
    return [replace(a, unmodified=b.value, round_trip=c.value) for a, b, c in zip(*lines, strict=True)]


def membership_figures(filtering: Filtering) -> list[Figure]:
    """Return how well the likelihood ratio tells originals from outsiders, who had no part in the components."""
    bench, evidence, outputs = filtering.bench, filtering.bench.evidence, filtering.outputs
    outputs = outputs[np.isfinite(outputs).all(axis=1)]
    if evidence.outsiders is None or not len(outputs):
        return []
    the_filter = filtering.make(filtering.components(with_outsiders=False))
    images, names = evidence.outsiders
    others = bench.embed_images("outsiders", images, filtering.space)
    members, strangers = (the_filter.evidence(outputs, rows) for rows in (filtering.originals, others))
    scores = MembershipScores(members, strangers, evidence.subjects, names)
    return membership.figures(scores, bench.rng("filter, membership"), **filtering.context("membership"))
