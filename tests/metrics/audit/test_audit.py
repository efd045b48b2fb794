"""The attacks of an audit on evidence with known answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from anonymizer.boomerang import Boomerang
from metrics import features
from metrics.audit import audit
from metrics.audit.findings import Findings
from metrics.audit.mechanisms import LocalSampling
from metrics.audit.workbench import Effort, Evidence, Workbench
from metrics.stats.intervals import as_subjects
from metrics.stats.risk import Figure
from tests.support.audit_evidence import ALL, PEOPLE, PHOTOS, EveryFace, people
from tests.support.ideal_gaussian import IdealGaussian

Seen = Callable[..., list[Figure]]


def attacked(outputs: torch.Tensor, originals: torch.Tensor, names: Any, *attacks: str, **more: Any) -> Findings:
    return audit.run_attacks(bench_of(outputs, originals, names, **more), attacks)


def bench_of(outputs: torch.Tensor, originals: torch.Tensor, names: Any, **more: Any) -> Workbench:
    ideal = IdealGaussian(size=16)
    method = LocalSampling(Boomerang(ideal, "ddim", 4), 0.6)
    evidence = Evidence(originals, outputs, names, has_identities=True, mechanism=method, model=ideal, **more)
    embedders = [*features.load_embedders(["pixels"]), EveryFace()]
    return Workbench(evidence, embedders, Effort(pairs=40, outputs=4, averaged=24), seed=1)


def figures(findings: Findings, attack: str, measure: str) -> list[Figure]:
    result = [f for f in findings.figures if f.attack == attack and f.measure.startswith(measure) and not f.subgroup]
    assert result
    return result


@pytest.mark.slow
def test_a_release_of_the_originals_is_found_by_every_attack() -> None:
    rng = np.random.default_rng(0)
    originals, names = people(rng)
    outsiders = torch.from_numpy(rng.uniform(-1, 1, (60, 3, 16, 16))).float(), as_subjects(range(60))
    traits = {"side": [i % 2 for i in range(len(names))]}
    lit = originals.clone()
    lit[1::2, :, :, :8] = (lit[1::2, :, :, :8] + 0.8).clamp(-1, 1)
    result = attacked(lit, lit, names, *ALL, outsiders=outsiders, attributes=traits)
    unaware = [f for f in figures(result, "linkage", "rank-1") if f.attacker == "unaware"]
    assert {f.value for f in unaware} == {1.0}
    assert all(f.risk_high == 1 and f.risk and f.risk > 0.9 for f in unaware)
    for line in figures(result, "reidentification", "rank-1"):
        assert line.value == line.unmodified and line.value and line.value > 0.9
    for attack in ("parrot", "inversion"):
        assert max(f.value or 0 for f in figures(result, attack, "rank-1")) > 0.95
    assert all(f.value == 1 for f in figures(result, "averaging", "rank-1") if f.outputs == 1)
    assert all(f.value and f.value > 0.99 for f in figures(result, "membership", "AUC"))
    for line in figures(result, "attributes", "accuracy of side"):
        assert line.value == line.unmodified and line.value and line.value > 0.9


def test_independent_pictures_are_found_by_chance_alone() -> None:
    rng = np.random.default_rng(1)
    originals, names = people(rng)
    outputs, _ = people(rng)
    outsiders = people(rng)
    traits = {"side": [i % 2 for i in range(len(names))]}
    result = attacked(
        outputs, originals, names, "linkage", "reidentification", "parrot", "membership", "attributes",
        outsiders=outsiders, attributes=traits,
    )  # fmt: skip
    checked = 0
    for line in result.figures:
        if line.value is not None and line.chance is not None and not line.subgroup:
            assert line.low is not None and line.high is not None
            assert line.low - 0.02 <= line.chance <= line.high + 0.02, line
            checked += 1
    assert checked > 20


def test_a_face_that_is_no_longer_detected_is_counted_and_not_called_safe() -> None:
    originals, names = people(np.random.default_rng(2))
    outputs = originals.clone()
    outputs[::PHOTOS] = 0.0
    result = attacked(outputs, originals, names, "linkage")
    (line,) = [f for f in result.figures if f.measure == "not detected" and f.attacker == "unaware"]
    assert line.feature == "toy faces" and line.value == pytest.approx(1 / PHOTOS)


def test_leaving_an_attack_out_changes_no_other() -> None:
    originals, names = people(np.random.default_rng(3))
    outputs, _ = people(np.random.default_rng(4))
    both = attacked(outputs, originals, names, "linkage", "reidentification", "averaging")
    one = attacked(outputs, originals, names, "averaging")
    assert one.figures == [f for f in both.figures if f.attack == "averaging"]


def test_what_cannot_be_tried_says_why_and_what_to_give() -> None:
    originals, names = people(np.random.default_rng(5))
    result = attacked(originals, originals, names, "membership")
    notes = [f.note for f in result.figures if f.measure == "not run"]
    assert notes and all(note and "audit." in note for note in notes)


def test_people_outside_are_counted_as_people_and_learnt_from_evenly() -> None:
    """Thirty people of four photos: not 120 people, and of forty photos to learn from everybody gives at least one."""
    originals, names = people(np.random.default_rng(6))
    strangers = np.random.default_rng(7).uniform(-1, 1, (30, 1, 3, 16, 16)).repeat(4, 1).reshape(-1, 3, 16, 16)
    outsiders = torch.from_numpy(strangers).float(), as_subjects(np.repeat(np.arange(30), 4))
    result = attacked(originals, originals, names, "membership", outsiders=outsiders)
    assert {f.subjects for f in figures(result, "membership", "AUC")} == {PEOPLE + 30}
    bench = bench_of(originals, originals, names, outsiders=outsiders)
    assert set(bench.strangers[1]) == set(outsiders[1]) and len(bench.strangers[1]) == 40
    assert bench.pairs.people is not None and len(bench.pairs.people) == len(bench.pairs)


def test_where_outsiders_are_few_the_attackers_invent_more() -> None:
    originals, names = people(np.random.default_rng(8))
    few = originals[:5], as_subjects(range(5))
    pictures, whose = bench_of(originals, originals, names, outsiders=few).strangers
    assert len(pictures) == len(whose) == 40 and sum(name.startswith("invented") for name in whose) == 35


def test_a_recogniser_that_sees_hardly_a_face_has_nothing_to_say() -> None:
    originals, names = people(np.random.default_rng(9))
    outputs = originals.clone()
    outputs[: len(outputs) * 3 // 4] = 0.0
    result = attacked(outputs, originals, names, "linkage", "reidentification")
    toys = [f for f in result.figures if f.feature == "toy faces" and not f.measure.startswith("not detected")]
    blind = [f for f in toys if f.attacker != "aware"]
    assert blind and all(f.value is None and f.note and "has nothing to say" in f.note for f in blind)
    assert all(f.value for f in result.figures if f.feature == "pixels" and f.measure == "rank-1")


@pytest.mark.parametrize(
    ("attack", "given", "says"),
    [
        ("attributes", {"attributes": {"side": [None] * 96}}, "fewer than two people"),
        ("reidentification", {"others": (torch.zeros(4, 3, 16, 16), as_subjects("wxyz"))}, "names in audit.others"),
    ],
)
def test_an_attack_with_nothing_to_go_by_says_so_and_stops_nothing(attack: str, given: Any, says: str) -> None:
    originals, names = people(np.random.default_rng(10))
    result = attacked(originals, originals, names, attack, "linkage", **given)
    assert [f for f in result.figures if f.attack == attack and f.measure == "not run" and says in (f.note or "")]
    assert any(f.attack == "linkage" and f.value for f in result.figures)


def test_what_an_attack_fails_with_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no such luck")

    monkeypatch.setattr(audit.linkage, "cosine_similarity", broken)
    originals, names = people(np.random.default_rng(11))
    result = attacked(originals, originals, names, "linkage", "reidentification")
    (failed,) = [f for f in result.figures if f.attack == "linkage"]
    assert (failed.attacker, failed.measure) == (audit.ALL_ATTACKERS, "not run") and "no such luck" in (
        failed.note or ""
    )
    assert any(f.attack == "reidentification" and f.value for f in result.figures)
