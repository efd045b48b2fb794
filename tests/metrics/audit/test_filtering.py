"""The matched filter and one-to-one assignment within an audit, on outputs of a model in closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from anonymizer.boomerang import Boomerang
from metrics import features
from metrics.audit import audit
from metrics.audit.filtering import ATTACKER
from metrics.audit.findings import Findings
from metrics.audit.mechanisms import Blur, LocalSampling, apply
from metrics.audit.workbench import Effort, Evidence, Workbench
from metrics.stats.intervals import as_subjects
from metrics.stats.risk import Figure
from tests.support.ideal_gaussian import IdealGaussian

SPREAD = 0.4
MODEL = IdealGaussian(size=8, mean=0.0, spread=SPREAD)
EFFORT = Effort(pairs=40, outputs=4, averaged=24, matched_filter=True)


def pictures(count: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, SPREAD, (count, 3, 8, 8))).float()


def bench_of(level: float, sampler: str = "sde-dpm++", count: int = 120, **more: Any) -> Workbench:
    mechanism = LocalSampling(Boomerang(MODEL, sampler, 30), level)
    originals = pictures(count, 1)
    outputs = apply(mechanism, originals, np.random.default_rng(2))
    evidence = Evidence(originals, outputs, as_subjects(range(count)), has_identities=False, mechanism=mechanism,
                        model=MODEL, outsiders=(pictures(600, 3), as_subjects(range(1000, 1600))), **more)  # fmt: skip
    return Workbench(evidence, features.load_embedders(["pixels"]), EFFORT, seed=1)


def by_filter(findings: Findings, attack: str, measure: str) -> list[Figure]:
    lines = [f for f in findings.figures if f.attacker == ATTACKER and f.attack == attack]
    return [f for f in lines if f.measure.startswith(measure)]


def test_the_filter_links_what_the_level_leaves_and_nothing_at_level_1() -> None:
    near, far = (audit.run_attacks(bench_of(level), ["linkage"]) for level in (0.15, 1.0))
    (linked,), (assigned,) = by_filter(near, "linkage", "rank-1"), by_filter(near, "linkage", "assigned")
    assert linked.value and linked.value > 0.9 and linked.risk_low and linked.feature == "matched filter"
    assert assigned.value and assigned.value >= linked.value and assigned.gallery == 120
    for measure in ("rank-1", "assigned"):
        (line,) = by_filter(far, "linkage", measure)
        assert line.low is not None and line.chance is not None and line.low <= line.chance <= 0.05
    assert {f.measure for f in near.figures if f.feature == "pixels"} == {"rank-1", "rank-5", "assigned"}


def test_published_labels_narrow_the_candidates() -> None:
    bench = bench_of(1.0)
    labels = as_subjects([f"label {i // 4}" for i in range(120)])
    labelled = Workbench(replace(bench.evidence, published=labels), bench.embedders, EFFORT, seed=1)
    plain, narrowed = by_filter(audit.run_attacks(labelled, ["linkage"]), "linkage", "rank-1")
    assert narrowed.feature == "matched filter, of equal label"
    assert plain.value is not None and narrowed.value is not None and plain.value < 0.1 < narrowed.value
    assert narrowed.low is not None and narrowed.high is not None and narrowed.low <= 1 / 4 <= narrowed.high


def test_the_filter_knows_that_a_deterministic_sampler_keeps_more() -> None:
    bench = bench_of(0.3, "ddim")
    (right,) = by_filter(audit.run_attacks(bench, ["linkage"]), "linkage", "rank-1")
    drawing = LocalSampling(Boomerang(MODEL, "sde-dpm++", 30), 0.3)
    (drawn,) = by_filter(audit.run_attacks(bench_of(0.3), ["linkage"]), "linkage", "rank-1")
    assert isinstance(bench.evidence.mechanism, LocalSampling)
    assert bench.evidence.mechanism.is_deterministic and not drawing.is_deterministic
    assert right.value and drawn.value is not None and right.value > 2 * drawn.value


@pytest.mark.parametrize("training", [None, pictures(200, 4)])
def test_membership_is_told_by_the_likelihood_ratio(training: torch.Tensor | None) -> None:
    """Outsiders, who are candidates, are never learnt from: the outputs or training pictures are."""
    lines = by_filter(audit.run_attacks(bench_of(0.1, training=training), ["membership"]), "membership", "")
    assert [line.measure.partition(":")[0] for line in lines] == ["AUC", "TPR at FPR 0.01", "TPR at FPR 0.001"]
    area, one, tenth = lines
    assert area.value and area.value > 0.95 and area.n == 120 + 600
    assert one.value and one.control is not None and one.control <= 0.01
    assert tenth.value is None and tenth.note and "too few" in tenth.note


def test_originals_as_members_of_an_unrelated_release_are_not_told() -> None:
    bench = bench_of(0.2)
    other = replace(bench.evidence, outputs=apply(bench.evidence.mechanism, pictures(120, 9), bench.rng("x")))
    unrelated = Workbench(other, bench.embedders, EFFORT, seed=1)
    (area, *_) = by_filter(audit.run_attacks(unrelated, ["membership"]), "membership", "AUC")
    assert area.low is not None and area.high is not None and area.low <= 0.5 <= area.high


def test_more_outputs_of_one_original_add_up_for_the_filter() -> None:
    lines = by_filter(audit.run_attacks(bench_of(0.3), ["averaging"]), "averaging", "rank-1")
    assert [line.outputs for line in lines] == [1, 2, 4]
    values = [line.value or 0.0 for line in lines]
    assert values[0] < values[2]


def test_people_are_found_by_other_photos_with_the_variance_within_a_person() -> None:
    rng, people = np.random.default_rng(5), 60
    faces = rng.normal(0, SPREAD * 0.8, (people, 1, 3, 8, 8))
    photos = torch.from_numpy(faces + rng.normal(0, SPREAD * 0.6, (people, 6, 3, 8, 8))).float()
    names = as_subjects(range(people))
    bench = bench_of(0.15)
    evidence = bench.evidence
    found = replace(
        evidence, originals=photos[:, 0], outputs=apply(evidence.mechanism, photos[:, 0], rng), subjects=names,
        has_identities=True, others=(photos[:, 1:].flatten(0, 1), np.repeat(names, 5)),
    )  # fmt: skip
    result = audit.run_attacks(Workbench(found, bench.embedders, EFFORT, seed=1), ["reidentification"])
    one, five = (by_filter(result, "reidentification", f"rank-1, {unit}") for unit in ("1 photo", "5 photos"))
    (by_photo, by_mean) = five
    assert [line.feature for line in five] == ["matched filter", "matched filter, variance within people"]
    assert len(one) == 1  # one photo of each shows no variance within a person
    assert one[0].value and by_photo.value and by_mean.value
    assert by_mean.value > by_photo.value >= one[0].value > 0.1  # these people are Gaussian
    assert by_mean.unmodified and by_mean.round_trip and by_mean.unmodified > 0.9
    assert by_mean.chance == pytest.approx(1 / people)


def test_a_method_without_noise_is_not_filtered_and_says_why() -> None:
    bench = bench_of(0.5)
    blurred = bench.with_outputs(Blur(1.0), apply(Blur(1.0), bench.evidence.originals, bench.rng("blur")))
    for attack in ("linkage", "membership"):
        (line,) = by_filter(audit.run_attacks(blurred, [attack]), attack, "")
        assert line.measure == "not run" and line.note and "adds no noise of a known level" in line.note


def test_without_public_pictures_the_components_are_of_the_outputs_and_never_of_originals() -> None:
    bench = bench_of(0.1, count=300)
    own = Workbench(replace(bench.evidence, outsiders=None), bench.embedders, EFFORT, seed=1)
    (line,) = by_filter(audit.run_attacks(own, ["linkage"]), "linkage", "rank-1")
    assert line.value and line.value > 0.9
    far = bench_of(1.0, count=300)
    blind = Workbench(replace(far.evidence, outsiders=None), far.embedders, EFFORT, seed=1)
    (line,) = by_filter(audit.run_attacks(blind, ["linkage"]), "linkage", "rank-1")
    assert line.low is not None and line.low <= 1 / 300


def test_an_attacker_without_the_filter_leaves_the_other_figures_as_they_are() -> None:
    bench = bench_of(0.5)
    without = Workbench(bench.evidence, bench.embedders, replace(EFFORT, matched_filter=False), seed=1)
    both = audit.run_attacks(bench, ["linkage"]).figures
    assert audit.run_attacks(without, ["linkage"]).figures == [f for f in both if f.attacker != ATTACKER]
