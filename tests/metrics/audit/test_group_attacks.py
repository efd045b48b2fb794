"""The attacks on groups within an audit, on outputs of means by a model in closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from anonymizer.boomerang import Boomerang
from metrics import features
from metrics.audit import audit
from metrics.audit.mechanisms import LocalSampling, apply
from metrics.audit.workbench import Effort, Evidence, Workbench
from metrics.stats.intervals import as_subjects
from metrics.stats.risk import Figure
from tests.support.ideal_gaussian import IdealGaussian

SPREAD, K, GROUPS = 0.4, 4, 40
MODEL = IdealGaussian(size=8, mean=0.0, spread=SPREAD)
MECHANISM = LocalSampling(Boomerang(MODEL, "sde-dpm++", 20), 0.04)


def bench_of(each: bool = False, share: float = 0.5, **more: Any) -> Workbench:
    """A release in groups of alike people; each column is ``more``."""
    rng, n = np.random.default_rng(1), K * GROUPS
    faces = share**0.5 * rng.normal(size=(GROUPS, 1, 3, 8, 8))
    faces = faces + (1 - share) ** 0.5 * rng.normal(size=(GROUPS, K, 3, 8, 8))
    originals = torch.from_numpy(SPREAD * faces).float()
    means = originals.mean(1, keepdim=True).expand(-1, K if each else 1, -1, -1, -1)
    outputs = apply(MECHANISM, means.flatten(0, 1), rng).reshape(means.shape).expand(-1, K, -1, -1, -1)
    outsiders = torch.from_numpy(rng.normal(0, SPREAD, (400, 3, 8, 8))).float()
    evidence = Evidence(
        originals.flatten(0, 1), outputs.flatten(0, 1), as_subjects(range(n)), has_identities=False,
        mechanism=MECHANISM, model=MODEL, groups=np.repeat(as_subjects([f"g{i:02d}" for i in range(GROUPS)]), K),
        outsiders=(outsiders, as_subjects([f"outsider {i}" for i in range(400)])), **more,
    )  # fmt: skip
    return Workbench(evidence, features.load_embedders(["pixels"]), Effort(40, 4, 24, matched_filter=True), seed=1)


def lines(bench: Workbench, attack: str = "groups") -> list[Figure]:
    return [f for f in audit.run_attacks(bench, [attack]).figures if f.attack == attack]


def test_members_are_told_by_one_in_k_and_the_last_one_by_who_knows_the_others() -> None:
    found = {(f.attacker, f.feature): f for f in lines(bench_of(share=0.02))}
    for feature in ("pixels", "matched filter"):
        line = found["knows the groups", feature]
        assert line.low is not None and line.high is not None and line.low <= 1 / K <= line.high
        assert line.measure == "rank-1" and line.subjects == GROUPS and line.chance == pytest.approx(1 / K)
    some, everything = found["knows some", "matched filter"], found["knows all others", "matched filter"]
    assert everything.value and some.value and everything.value > 0.8 > some.value > 1 / K
    assert everything.control is not None and everything.control < everything.value
    assert not any(attacker == "clusters outputs" for attacker, _ in found)


def test_outputs_of_each_member_are_clustered_and_averaged() -> None:
    found = lines(bench_of(each=True))
    (siblings,) = [f for f in found if f.attacker == "clusters outputs"]
    assert siblings.value and siblings.value > 0.8 and siblings.control is not None and siblings.control < 0.1
    assert {f.outputs for f in found if f.feature == "matched filter"} == {1, K}


def test_what_groups_have_in_common_is_counted() -> None:
    same = [f"kind {i // K % 2}" for i in range(K * GROUPS)]
    mixed = [f"kind {i % 2}" for i in range(K * GROUPS)]
    found = {f.measure: f for f in lines(bench_of(attributes={"same": same, "mixed": mixed}))}
    assert found["groups that share same"].value == 1 and found["groups that share mixed"].value == 0
    assert found["groups that share same"].n == GROUPS


def test_a_release_without_groups_has_no_such_figures() -> None:
    bench = bench_of()
    assert lines(Workbench(replace(bench.evidence, groups=None), bench.embedders, bench.effort, seed=1)) == []


def test_linkage_of_a_grouped_release_stays_below_one_in_k_for_every_attacker() -> None:
    for line in lines(bench_of(), "linkage"):
        if line.measure in ("rank-1", "assigned"):
            assert line.low is not None and line.low <= 1 / K, line


def test_the_attackers_own_outputs_are_of_the_means() -> None:
    bench = bench_of()
    own = bench.resample(np.arange(K), 1, "test")[:, 0]
    means = bench.evidence.originals[:K].mean(0)
    assert (own - means).square().mean() < (own - bench.evidence.originals[:K]).square().mean()
    assert bench.sources[0].numpy() == pytest.approx(means.numpy(), abs=1e-5)
