"""Ceilings in a policy: assumptions, bounds, words."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from anonymizer.config import PolicyConfig, build
from anonymizer.policy.ceilings import (
    describe,
    find_broken_assumptions,
    find_caveats,
    find_exceeded,
    format_rate,
    upper_end,
)
from anonymizer.policy.gates import evaluate_release
from anonymizer.records import CeilingRate, Ceilings, MembershipCeiling, Summary
from tests.support.configs import LEAST, config_error

NOW = datetime(2026, 12, 1, tzinfo=UTC)


def rate(high: float) -> CeilingRate:
    return CeilingRate(value=high / 2, low=0.0, high=high, gallery=300)


CEILINGS = Ceilings(
    k=1, outputs=1, linkage_rank1=rate(0.04), linkage_rank5=rate(0.2), linkage_assigned=rate(0.05), knows_others=None,
    membership_tpr_at_1=MembershipCeiling(0.1, 0.3, 0.9), membership_tpr_at_01=MembershipCeiling(0.02, 0.1, 0.7),
)  # fmt: skip


@pytest.mark.parametrize(
    ("override", "begin"),
    [
        ("source.fit=tiles", "source.fit tiles"),
        ("model.condition=label", "model: each record's own"),
        ("policy.escalate=[0.9]", "policy.escalate"),
        ("metrics.gallery=0", "metrics.gallery 0"),
    ],
)
def test_settings_that_tell_more_of_an_original_than_its_noise_have_no_ceiling(override: str, begin: str) -> None:
    assert find_broken_assumptions(build(LEAST, ["source.label=folder"])) == []
    (reason,) = find_broken_assumptions(build(LEAST, ["source.label=folder", override]))
    assert reason.startswith(begin)


@pytest.mark.parametrize(
    ("override", "begin"),
    [
        ("policy.scores.lpips.min=0.1", "policy.scores"),
        ("output.public_scores=exact", "output.public_scores exact"),
        ("output.public_scores=binned", "output.public_scores binned"),
        ("source.caption=text", "source.caption"),
    ],
)
def test_what_is_known_besides_pictures_is_a_caveat_and_allows_no_promise(override: str, begin: str) -> None:
    assert find_caveats(build(LEAST, ["output.public_scores=none"])) == []
    (caveat,) = find_caveats(build(LEAST, ["output.public_scores=none", override]))
    assert caveat.startswith(begin)
    line = config_error(LEAST, "output.public_scores=none", override, "policy.ceilings.linkage_rank1=0.1")
    assert line.startswith(f"policy.ceilings: {begin.split()[0]} is ")
    with_caveat = replace(CEILINGS, caveats=(caveat,))
    assert find_exceeded({"linkage_rank1": 1.0}, with_caveat) == ["linkage_rank1"]
    assert describe(with_caveat)["not covered"] == caveat


@pytest.mark.parametrize(
    ("name", "high"),
    [
        ("linkage_rank1", 0.04), ("linkage_rank5", 0.2), ("linkage_assigned", 0.05), ("knows_others", 0.04),
        ("membership_tpr_at_1", 0.1), ("membership_tpr_at_1_median", 0.3), ("membership_tpr_at_1_worst", 0.9),
        ("membership_tpr_at_01", 0.02),
    ],
)  # fmt: skip
def test_a_bound_is_held_against_the_upper_end(name: Any, high: float) -> None:
    assert upper_end(CEILINGS, name) == high
    assert find_exceeded({name: high}, CEILINGS) == [] and find_exceeded({name: high - 0.01}, CEILINGS) == [name]
    assert find_exceeded({name: 1.0}, None) == [name]  # without a ceiling no bound is kept


def test_of_groups_the_attacker_who_knows_all_others_has_a_ceiling_of_its_own() -> None:
    of_groups = replace(CEILINGS, k=5, knows_others=rate(0.43))
    assert upper_end(of_groups, "knows_others") == 0.43
    assert describe(of_groups)["knows all others"] == (
        "names the last of a group of 5 in at most 43 %, if all of 300 others of whom the same is published are "
        "equally likely before"
    )


@pytest.mark.parametrize(("ceilings", "result"), [(CEILINGS, "pass"), (None, "fail")])
def test_a_release_without_a_ceiling_keeps_no_bound_on_one(ceilings: Ceilings | None, result: str) -> None:
    policy = PolicyConfig.model_validate({"ceilings": {"linkage_rank1": 0.04}})
    counts = Summary(read=1, released=1, quarantined=0, failed=0, shards=1, seconds=0.0, reasons={})
    (rule,) = evaluate_release(policy, counts, "m", None, NOW, ceilings).rule_results
    assert (rule.rule, rule.bound, rule.result) == ("ceilings.linkage_rank1", "upper end at most 0.04", result)
    strict = PolicyConfig.model_validate({"ceilings": {"linkage_rank1": 0.039}})
    assert not evaluate_release(strict, counts, "m", None, NOW, ceilings).passed


def test_a_waiver_may_set_a_bound_on_a_ceiling_aside() -> None:
    waiver = {"rule": "ceilings.linkage_rank1", "who": "ada", "why": "a trial", "until": "2026-12-01"}
    policy = PolicyConfig.model_validate({"ceilings": {"linkage_rank1": 0.01}, "waivers": [waiver]})
    counts = Summary(read=1, released=1, quarantined=0, failed=0, shards=1, seconds=0.0, reasons={})
    assert evaluate_release(policy, counts, "m", None, NOW, CEILINGS).waived_rules == ["ceilings.linkage_rank1"]


def test_bounds_on_what_is_no_ceiling_are_refused() -> None:
    assert "policy.ceilings" in config_error(LEAST, "policy.ceilings.linkage=0.1")
    assert "policy.ceilings" in config_error(LEAST, "policy.ceilings.linkage_rank1=1.5")


def test_words_round_rates_up() -> None:
    assert [format_rate(x) for x in (0.0801, 0.08, 0.0901, 0.101, 1.0, 0.0)] == [
        "8.1 %", "8 %", "9.1 %", "11 %", "100 %", "0 %",
    ]  # fmt: skip
    lines = describe(CEILINGS)
    assert lines["links at most"].startswith("4 % of outputs by the first guess among 300 originals (20 % by five; 5 %")
    assert lines["tells a member"].startswith("at most 10 % from the nearest other person")
    assert "knows all others" not in lines
