"""Gates on records and releases: bounds on scores, counts, audits and their waivers."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.config import AuditConfig, PolicyConfig, build
from anonymizer.config.base import AUDIT_FEATURES, MATCHED_FILTER
from anonymizer.crypto import signing
from anonymizer.errors import ConfigError, GateError, OutputError
from anonymizer.policy.attackers import Attackers
from anonymizer.policy.gates import AuditResult, evaluate_release, gate, nearest
from anonymizer.records import Reason, Scores, Status, Summary
from metrics.features import LOADERS
from tests.support.releases import (
    people,
    run,
    settings,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())


def config_of(policy: dict[str, Any], **sections: Any) -> Any:
    return settings("in", "out", policy=policy, metrics={"identity": "dlib"}, **sections)


def test_the_nearest_of_several_pairs_counts_for_each_score_and_a_lacking_one_fails_closed() -> None:
    pairs = [Scores(0.2, 0.3, 0.9, 1), Scores(0.7, 0.8, 0.4, 1)]
    assert nearest(pairs) == Scores(0.7, 0.3, 0.4, 1)
    assert nearest([*pairs, Scores(None, 0.1, math.nan, 0)]).clip_similarity is None
    assert math.isnan(nearest([*pairs, Scores(0.9, 0.1, math.nan, 0)]).identity_distance or 0)
    assert nearest([*pairs, Scores(0.9, 0.1, 0.1, 0)]).faces == 0
    assert nearest([Scores(), Scores()]) == Scores()


GOOD = Scores(clip_similarity=0.5, lpips=0.5, identity_distance=0.5, faces=1)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({}, None),
        ({"clip_similarity": {"max": 0.5}, "lpips": {"min": 0.5}}, None),  # ends belong to what may leave
        ({"clip_similarity": {"max": 0.49}}, Reason.TOO_CLOSE),
        ({"clip_similarity": {"min": 0.51}}, Reason.TOO_FAR),
        ({"lpips": {"min": 0.51}}, Reason.TOO_CLOSE),
        ({"lpips": {"max": 0.49}}, Reason.TOO_FAR),
        ({"identity_distance": {"min": 0.6}}, Reason.TOO_CLOSE),
        ({"identity_distance": {"max": 0.4}}, Reason.TOO_FAR),
        ({"faces": {"min": 2}}, Reason.TOO_FAR),
        ({"faces": {"min": 1, "max": 1}}, None),
        ({"lpips": {"max": 0.1}, "clip_similarity": {"max": 0.1}}, Reason.TOO_CLOSE),  # what is closer counts first
    ],
)
def test_scores_out_of_bounds_are_quarantined(bounds: Any, reason: Reason | None) -> None:
    decision = gate(GOOD, config_of({"scores": bounds}))
    assert (decision.status, decision.reason) == (Status.QUARANTINED if reason else Status.RELEASED, reason)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["clip_similarity", "lpips"])
def test_an_output_without_a_requested_score_is_quarantined(name: str, missing: float | None) -> None:
    scores = Scores(**{"clip_similarity": 0.5, "lpips": 0.5, "identity_distance": 0.5, "faces": 1, name: missing})  # type: ignore[arg-type]
    for bounds in ({}, {name: {"min": -9}}):
        assert gate(scores, config_of({"scores": bounds})).reason is Reason.NOT_SCORED


def test_an_output_without_a_face_is_quarantined_if_the_policy_bounds_faces() -> None:
    nobody = Scores(0.5, 0.5, identity_distance=float("nan"), faces=0)
    for bounds in ({"faces": {"max": 3}}, {"identity_distance": {"min": 0.1}}, {"identity_distance": {"max": 2}}):
        assert gate(nobody, config_of({"scores": bounds})).reason is Reason.NO_FACE
    assert gate(nobody, config_of({"scores": {"lpips": {"min": 0.1}}})).status is Status.RELEASED
    original_without = Scores(0.5, 0.5, identity_distance=float("nan"), faces=1)
    assert gate(original_without, config_of({"scores": {"identity_distance": {"min": 0.1}}})).reason is Reason.NO_FACE
    never_looked = Scores(0.5, 0.5)
    assert gate(never_looked, config_of({"scores": {"faces": {"min": 1}}})).reason is Reason.NOT_SCORED


@given(
    st.floats(-2, 2) | st.none() | st.just(float("nan")), st.floats(-2, 2), st.floats(-2, 2),
    st.sampled_from(["clip_similarity", "lpips"]),
)  # fmt: skip
def test_released_scores_lie_within_their_bounds(value: float | None, low: float, high: float, name: str) -> None:
    low, high = min(low, high), max(low, high)
    scores = Scores(**{"clip_similarity": 0.5, "lpips": 0.5, name: value})  # type: ignore[arg-type]
    decision = gate(scores, settings("in", "out", policy={"scores": {name: {"min": low, "max": high}}}))
    assert (decision.status is Status.RELEASED) == (value is not None and low <= value <= high)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_an_empty_bound_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.scores\.lpips\.min: .*finite"):
        settings("in", "out", f"policy.scores={{lpips: {{min: {value}}}}}")


def test_a_policy_stays_what_it_was_when_the_run_began(tmp_path: Path) -> None:
    """Dropping a rule would force a release without a record; a waiver names who sets it aside."""
    source = people(tmp_path / "in", 3)
    with pytest.raises(GateError):
        run(settings(source, tmp_path / "out", policy={"min_released": 4}))
    with pytest.raises(OutputError, match=r"was begun with policy\.min_released 4, not 0"):
        run(settings(source, tmp_path / "out"))


def test_bounds_on_scores_without_a_model_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy\.scores\.faces: metrics\.identity is none"):
        settings("in", "out", policy={"scores": {"faces": {"min": 1}}})


def counts(read: int = 100, released: int = 90, quarantined: int = 6, failed: int = 4) -> Summary:
    return Summary(read, released, quarantined, failed, shards=1, seconds=1.0, reasons={})


def figure(attack: str, measure: str, high: float, **rest: Any) -> dict[str, Any]:
    """Return a figure of an audit without a control, at chance 0."""
    blank = {"value": high / 2, "low": 0.0, "chance": 0.0, "control": None, "risk": None, "risk_low": None}
    return blank | {"attack": attack, "measure": measure, "high": high, "risk_high": None, "subgroup": None} | rest


# As an audit is without further settings.
ATTACKERS = Attackers(
    attacks=["linkage"], features=AuditConfig.model_fields["features"].default, sample=300, released=900,
    pairs=256, outputs=8, averaged=40, identity=None,
)  # fmt: skip


def audit(*figures: dict[str, Any], manifest: str = "m", days: float = 0, **attackers: Any) -> AuditResult:
    return AuditResult(NOW - timedelta(days=days), manifest, figures, replace(ATTACKERS, **attackers))


def failed_rules(policy: dict[str, Any], found: AuditResult | None = None, of: Summary | None = None) -> list[str]:
    verdict = evaluate_release(PolicyConfig.model_validate(policy), of or counts(), "m", found, NOW)
    return [result.rule for result in verdict.failed_rules]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, []),
        ({"min_released": 90}, []),
        ({"min_released": 91}, ["min_released"]),
        ({"max_quarantined": 0.06}, []),
        ({"max_quarantined": 0.059}, ["max_quarantined"]),
        ({"max_failed": 0.04}, []),
        ({"max_failed": 0.03}, ["max_failed"]),
    ],
)
def test_counts_are_held_against_the_policy(policy: dict[str, Any], expected: list[str]) -> None:
    assert failed_rules(policy) == expected


def test_an_empty_release_fails_every_bound_on_shares() -> None:
    none = counts(0, 0, 0, 0)
    assert failed_rules({"max_failed": 0.5, "max_quarantined": 0.5}, of=none) == ["max_quarantined", "max_failed"]


@pytest.mark.parametrize(
    ("rules", "least", "waiting", "expected"),
    [
        ({"min_k": 5}, 5, 0, []),
        ({"min_k": 5}, 4, 0, ["groups.min_k"]),
        ({"min_k": 5}, 1, 0, ["groups.min_k"]),
        ({"min_k": 1}, None, 0, ["groups.min_k"]),
        ({"max_leftover": 0.02}, 5, 2, []),
        ({"max_leftover": 0.02}, 5, 3, ["groups.max_leftover"]),
        ({"min_k": 6, "max_leftover": 0}, 5, 1, ["groups.min_k", "groups.max_leftover"]),
    ],
)
def test_groups_are_held_against_the_policy(
    rules: dict[str, Any], least: int | None, waiting: int, expected: list[str]
) -> None:
    of = replace(counts(), least_group=least, waiting=waiting)
    assert failed_rules({"groups": rules}, of=of) == expected


def test_a_rule_of_groups_can_be_waived() -> None:
    waiver = {"rule": "groups.min_k", "who": "Kim", "why": "a pilot", "until": NOW.date() + timedelta(days=1)}
    assert failed_rules({"groups": {"min_k": 5}, "waivers": [waiver]}, of=replace(counts(), least_group=3)) == []


LOW, HIGH = figure("linkage", "rank-1", 0.04), figure("linkage", "rank-1", 0.06)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (audit(LOW), []),
        (audit(LOW, HIGH), ["max_linkage_rank1"]),  # the best attacker counts
        (audit(figure("membership", "AUC", 0.5)), ["audits.linkage", "max_linkage_rank1"]),  # not tried
        (audit(figure("linkage", "rank-1", 0.0, value=None)), ["audits.linkage", "max_linkage_rank1"]),  # not measured
        (audit(figure("linkage", "rank-5", 0.9), LOW), []),
        (audit(LOW, figure("linkage", "rank-1", 0.0, value=None)), ["max_linkage_rank1"]),  # one is not measured
        (audit(LOW, figure("linkage", "not run", 0.0, value=None)), ["max_linkage_rank1"]),  # one failed
        (audit(LOW, figure("linkage", "rank-1", float("nan"))), ["max_linkage_rank1"]),
        (audit(LOW, figure("linkage", "rank-1", 1.0, control=1)), ["max_linkage_rank1"]),  # tells nothing
        (audit(LOW, manifest="another"), ["audits.linkage", "attackers", "max_linkage_rank1"]),
        (None, ["audits.linkage", "attackers", "max_linkage_rank1"]),
    ],
)
def test_a_figure_of_the_audit_is_held_against_its_bound(found: AuditResult | None, expected: list[str]) -> None:
    assert failed_rules({"risk": {"max_linkage_rank1": {"upper": 0.05}}}, found) == expected


@pytest.mark.parametrize(
    ("attackers", "least", "lacking"),
    [
        ({}, {}, None),  # an audit without further settings is enough for a policy without further settings
        ({"features": ("dlib",)}, {}, "features pixels, lpips, clip, imagenet, filter were not compared by"),
        ({"features": ("dlib",)}, {"features": ["dlib"]}, None),
        ({"features": ("lpips:alex:weights.pth", "pixels")}, {"features": ["lpips"]}, "features lpips were not"),
        ({"sample": 299}, {}, "299 of 900 records were attacked"),
        ({"sample": 12, "released": 12}, {}, None),  # all there are
        ({"sample": 12, "released": 13}, {}, "12 of 13 records"),
        ({"sample": 20}, {"sample": 20}, None),
        ({"pairs": 20}, {}, "pairs: 20"),
        ({"outputs": 2}, {}, "outputs: 2"),
        ({"averaged": 1}, {}, "averaged: 1"),
        ({"identity": "file"}, {"identity": "folder"}, "identity: file"),
        ({}, {"identity": "folder"}, "identity: none"),
        ({}, {"attacks": ["linkage"]}, None),
    ],
)
def test_an_audit_by_weaker_attackers_than_the_policy_names_is_refused(
    attackers: dict[str, Any], least: dict[str, Any], lacking: str | None
) -> None:
    """Whoever audits may choose attackers who find nothing: the bound alone would let that pass."""
    policy = {"risk": {"max_linkage_rank1": {"upper": 0.05}}, "attackers": least}
    verdict = evaluate_release(PolicyConfig.model_validate(policy), counts(), "m", audit(LOW, **attackers), NOW)
    assert [r.rule for r in verdict.failed_rules] == ([] if lacking is None else ["attackers"])
    (rule,) = [r for r in verdict.rule_results if r.rule == "attackers"]
    assert (lacking or "all of it") in rule.measured


def test_an_attack_among_the_least_must_have_been_tried() -> None:
    policy = {"attackers": {"attacks": ["parrot"]}}
    assert failed_rules(policy, audit(LOW)) == ["audits.parrot"]
    assert failed_rules({"attackers": {"sample": 5}}) == [], "no rule needs an audit"


def test_attackers_of_whom_less_is_asked_are_a_setting_or_a_waiver() -> None:
    waiver = {"rule": "attackers", "who": "Ada", "why": "no faces", "until": NOW.date()}
    policy = {"audits": ["linkage"], "waivers": [waiver]}
    assert failed_rules(policy, audit(LOW, features=("pixels",))) == []
    with pytest.raises(ConfigError, match=r"policy\.attackers\.features.* must be a feature of an audit.*'pixel'"):
        settings("in", "out", policy={"attackers": {"features": ["pixel"]}})


def test_the_features_that_a_policy_may_name_are_those_of_an_audit() -> None:
    assert {*AUDIT_FEATURES, "arcface"} == {*LOADERS, MATCHED_FILTER}


def test_figures_of_limited_attackers_hold_no_bound() -> None:
    policy = {"risk": {"max_linkage_rank1": {"upper": 0.05}}}
    assert failed_rules(policy, audit(LOW)) == []
    lacking = replace(audit(LOW), attacker_limits="attackers drew without what the model was told")
    (ruling,) = [
        r for r in evaluate_release(PolicyConfig.model_validate(policy), counts(), "m", lacking, NOW).failed_rules
    ]
    assert "without what the model was told" in ruling.measured


def test_without_a_measure_the_bound_is_on_risk_above_chance() -> None:
    guessing = figure("membership", "AUC", 0.6, chance=0.5)
    assert failed_rules({"risk": {"max_membership": {"upper": 0.21}}}, audit(guessing)) == []
    assert failed_rules({"risk": {"max_membership": {"upper": 0.19}}}, audit(guessing)) == ["max_membership"]


def test_audits_that_are_required_must_be_there_and_young_enough() -> None:
    policy = {"audits": ["linkage", "parrot"], "audit_days": 30}
    assert failed_rules(policy) == ["audits.linkage", "audits.parrot", "attackers", "audit_days"]
    both = [LOW, figure("parrot", "rank-1", 0.5)]
    assert failed_rules(policy, audit(LOW, days=30)) == ["audits.parrot"]
    assert failed_rules(policy, audit(*both, days=30)) == []
    assert failed_rules(policy, audit(*both, days=31)) == ["audit_days"]
    assert failed_rules(policy, audit(*both, days=-2)) == ["audit_days"]  # a clock that is wrong, or a date made up


def test_a_waiver_sets_one_rule_aside_until_its_last_day() -> None:
    def policy(until: date, rule: str = "max_failed") -> dict[str, Any]:
        waiver = {"rule": rule, "who": "Ada", "why": "scanner fault", "until": until}
        return {"max_failed": 0.01, "max_quarantined": 0.01, "waivers": [waiver]}

    assert failed_rules(policy(NOW.date())) == ["max_quarantined"]
    assert failed_rules(policy(NOW.date() - timedelta(days=1))) == ["max_quarantined", "max_failed"]
    verdict = evaluate_release(PolicyConfig.model_validate(policy(NOW.date())), counts(), "m", None, NOW)
    ruling = next(r for r in verdict.rule_results if r.rule == "max_failed")
    assert ruling.result == "waived" and "Ada" in ruling.measured and "scanner fault" in ruling.measured


def test_a_waiver_of_no_rule_is_refused() -> None:
    waiver = {"rule": "max_lnkage", "who": "a", "why": "b", "until": "2026-12-01"}
    with pytest.raises(ConfigError, match=r"policy\.waivers.*max_lnkage.*max_failed"):
        build({"source": {"uri": "a"}, "output": {"uri": "b"}, "policy": {"max_failed": 0.1, "waivers": [waiver]}})
