"""The ceilings of a release: from a sample of its originals, in the space that its model noises."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from anonymizer.backbones import Backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import RunConfig
from anonymizer.config.groups import LABEL
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import ConfigError, SourceError
from anonymizer.grouping.groups import group_records
from anonymizer.policy.ceilings import find_exceeded, published_columns, upper_end
from anonymizer.records import CeilingRate, Ceilings, MembershipCeiling, Plan, normalize_subject
from anonymizer.release import assumptions, audit_sample
from anonymizer.release.audit_sample import ImageSet
from metrics.stats.ceilings import Candidates, compute_ceilings, place
from metrics.stats.intervals import Floats, Names, Numbers, as_subjects

NOT_ENOUGH = "source: the pictures that were drawn are of one person, equal, or too few alike for a group"
OTHER_PHOTOS = "source.subject: people have photos that were not looked at (set metrics.gallery to more)"
BATCH = 32
MAX_NUMBERS = 2**28  # of decoded originals held at once: 1 GiB


def add_ceilings(config: RunConfig, backbone: Backbone, key: CustodianKey, plan: Plan) -> Plan:
    """Return a plan with its ceilings, or with the reasons why none holds.

    Raises ConfigError where ``policy.ceilings`` is not kept and no waiver sets the rule aside.
    """
    plan = replace(plan, no_ceiling=tuple(assumptions.find_broken(config, key, plan)))
    if not plan.no_ceiling:
        rng = np.random.default_rng(list(key.derive("ceilings", plan.fingerprint.encode())))
        try:
            images, is_sample = draw_originals(config, backbone, rng)
            candidates = place_images(images, backbone, is_sample=is_sample, published=published_values(config, images))
            groups, outputs = _group(config, candidates, rng), outputs_of(config)
            abar = float(Boomerang(backbone).abar[plan.t_boom])
            ceilings = compute_ceilings(candidates, abar, rng, k=config.boomerang.k, outputs=outputs, groups=groups)
            caveats = assumptions.list_caveats(config, key)
            if is_sample and len(np.unique(candidates.subjects)) < len(candidates):
                caveats = (*caveats, OTHER_PHOTOS)
            plan = replace(plan, ceilings=replace(round_up(ceilings), caveats=caveats))
        except (ValueError, SourceError):  # the latter where none that was drawn can be decoded: each becomes a row
            plan = replace(plan, no_ceiling=(NOT_ENOUGH,))
    _refuse_exceeded(config, plan)
    return plan


def outputs_of(config: RunConfig) -> int:
    """Return how many outputs of each original, or of each group, a release has."""
    return config.boomerang.k if config.boomerang.k > 1 and config.groups.outputs == "each" else 1


def draw_originals(config: RunConfig, backbone: Backbone, rng: np.random.Generator) -> tuple[ImageSet, bool]:
    """Return originals of a run's source, drawn by chance, and whether there may be more than were drawn."""
    columns = {"carry": (*config.source.carry, *config.source.restricted), "restricted": ()}
    source = config.source.model_copy(update=columns)
    limit = max(2, min(config.metrics.gallery, MAX_NUMBERS // (3 * backbone.size**2)))
    images, drawn = audit_sample.draw_and_count(source, backbone.size, limit, rng)
    return images, drawn == limit


def place_images(
    images: ImageSet, backbone: Backbone, *, is_sample: bool, published: Names | None = None
) -> Candidates:
    """Return originals in the space that is noised. Raises ValueError where they are of fewer than two people.

    A record without a name counts as a person.
    """
    names = [normalize_subject(name or "") for name in images.subjects]
    people = as_subjects([name or f"record {r}" for name, r in zip(names, images.record_ids, strict=True)])
    return place(encode(backbone, images.images), people, is_sample=is_sample, published=published)


def published_values(config: RunConfig, images: ImageSet) -> Names | None:
    """Return (N,) what is published of each original beside its picture: label and carried columns; None for nothing.

    So are columns that are equal within a group, which who knows other members knows. Captions, and ranges of columns
    that differ within a group, are a caveat instead.
    """
    columns = dict.fromkeys([*published_columns(config), *config.groups.columns(config.source)])
    rows = ({**row, LABEL: label} for label, row in zip(images.labels, images.columns, strict=True))
    return as_subjects([repr([row.get(name) for name in columns]) for row in rows]) if columns else None


def _group(config: RunConfig, candidates: Candidates, rng: np.random.Generator) -> list[Numbers]:
    """Return groups of k within the sample, as the release's are formed; none for k = 1.

    Those of the whole release are of people who are more alike, and recognised no more often.
    """
    if config.boomerang.k == 1:
        return []
    strata = None  # all that is published, and not generalised, is equal within a group
    if candidates.published is not None:
        _, strata = np.unique(candidates.published, return_inverse=True)
    _, people = np.unique(candidates.subjects, return_inverse=True)
    numbers = np.array([f"{i:012d}".encode() for i in range(len(candidates))])
    tags = people[:, None] if config.groups.by_subject(config.source) else None
    grouping = group_records(candidates.points, numbers, config.boomerang.k, rng, strata=strata, tags=tags)
    return list(grouping.groups)


def encode(backbone: Backbone, images: torch.Tensor) -> Floats:
    """Return images (N, 3, S, S) as they are noised, as rows (N, D) of float32."""
    with torch.inference_mode():
        parts = [backbone.encode(part.to(backbone.device)).flatten(1).float().cpu() for part in images.split(BATCH)]
    return torch.cat(parts).numpy()


def round_up(ceilings: Ceilings) -> Ceilings:
    """Return ceilings in four digits, none lower than it was: published figures are no exact ones of a pair."""

    def up(value: float) -> float:
        return math.ceil(value * 1e4 - 1e-9) / 1e4

    def rounded(rate: CeilingRate) -> CeilingRate:
        low = math.floor(rate.low * 1e4) / 1e4
        return replace(rate, value=up(rate.value), low=low, high=up(rate.high))

    def rounded_pairs(pairs: MembershipCeiling) -> MembershipCeiling:
        return MembershipCeiling(up(pairs.nearest), up(pairs.median), up(pairs.worst))

    return replace(
        ceilings,
        linkage_rank1=rounded(ceilings.linkage_rank1),
        linkage_rank5=rounded(ceilings.linkage_rank5),
        linkage_assigned=rounded(ceilings.linkage_assigned),
        knows_others=ceilings.knows_others and rounded(ceilings.knows_others),
        membership_tpr_at_1=rounded_pairs(ceilings.membership_tpr_at_1),
        membership_tpr_at_01=rounded_pairs(ceilings.membership_tpr_at_01),
    )


def _refuse_exceeded(config: RunConfig, plan: Plan) -> None:
    waived = {waiver.rule for waiver in config.policy.waivers}
    for name in find_exceeded(config.policy.ceilings, plan.ceilings):
        if f"ceilings.{name}" in waived:
            continue
        rule = f"policy.ceilings.{name}: at most {config.policy.ceilings[name]:g} asked for"
        if plan.ceilings is None:
            raise ConfigError(f"{rule}, and no ceiling holds ({'; '.join(plan.no_ceiling)}): change these settings")
        if plan.ceilings.caveats:
            raise ConfigError(f"{rule}, and ceilings do not cover {'; '.join(plan.ceilings.caveats)}: change that")
        raise ConfigError(
            f"{rule}, and at level {plan.level:g} attackers may reach {upper_end(plan.ceilings, name):.3g}: raise "
            "boomerang.level"
        )
