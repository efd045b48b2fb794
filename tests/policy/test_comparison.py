"""Comparison of policies: whatever is dropped or loosened is named, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.config import PolicyConfig
from anonymizer.policy.comparison import NOT_COMPARED, weaker_rules
from tests.support.signing_keys import ADA, BOB, public_key

FULL: dict[str, Any] = {
    "scores": {"lpips": {"min": 0.1, "max": 0.5}, "faces": {"min": 1}},
    "risk": {"max_linkage": {"upper": 0.2}},
    "ceilings": {"linkage_rank1": 0.05, "membership_tpr_at_1": 0.1},
    "audits": ["leaks"],
    "attackers": {"attacks": ["membership"], "features": ["pixels", "clip"], "sample": 100, "identity": "folder"},
    "audit_days": 30,
    "max_quarantined": 0.2,
    "max_failed": 0.1,
    "min_released": 10,
    "groups": {"min_k": 5, "max_leftover": 0.1},
    "approvals": 1,
    "approvers": {"ada": public_key(ADA)},
}
LOOSER = {  # a change -> what is said of it
    "scores": ({"lpips": {"min": 0.09, "max": 0.51}}, ["scores.faces.min: 1 before, none now",
        "scores.lpips.max: 0.5 before, 0.51 now", "scores.lpips.min: 0.1 before, 0.09 now"]),
    "risk": ({"max_linkage": {"upper": 0.3}}, ["risk.max_linkage: 0.2 before, 0.3 now"]),
    "ceilings": ({"linkage_rank1": 0.06}, ["ceilings.linkage_rank1: 0.05 before, 0.06 now",
        "ceilings.membership_tpr_at_1: 0.1 before, none now"]),
    "audits": ([], ["audits.leaks: asked for before, not now"]),
    "attackers": (
        {"features": ["pixels"], "sample": 99, "pairs": 20, "outputs": 2, "averaged": 1, "identity": "file"},
        ["attackers.averaged: 40 before, 1 now", "attackers.features.clip: asked for before, not now",
        "attackers.identity: folder before, file now", "attackers.outputs: 8 before, 2 now",
        "attackers.pairs: 256 before, 20 now", "attackers.sample: 100 before, 99 now",
        "audits.membership: asked for before, not now"],
    ),
    "audit_days": (31, ["audit_days: 30 before, 31 now"]),
    "max_quarantined": (None, ["max_quarantined: 0.2 before, none now"]),
    "max_failed": (1.0, ["max_failed: 0.1 before, 1 now"]),
    "min_released": (9, ["min_released: 10 before, 9 now"]),
    "groups": ({"min_k": 4}, ["groups.max_leftover: 0.1 before, none now", "groups.min_k: 5 before, 4 now"]),
    "approvals": (0, ["approvals: 1 before, none now"]),
    "approvers": ({"ada": public_key(BOB)}, ["approvers.ada: may approve now, and could not before"]),
}  # fmt: skip


def policy(**changes: Any) -> PolicyConfig:
    return PolicyConfig.model_validate(FULL | changes)


def test_every_setting_of_a_policy_is_compared_or_named_as_none_to_compare() -> None:
    """A rule that is added later must be added to the comparison too."""
    assert set(PolicyConfig.model_fields) == set(LOOSER) | NOT_COMPARED


@pytest.mark.parametrize("name", LOOSER)
def test_what_is_loosened_is_named_with_both_bounds(name: str) -> None:
    value, lines = LOOSER[name]
    assert weaker_rules(policy(), policy(**{name: value})) == lines


@pytest.mark.parametrize("name", [name for name in LOOSER if name not in ("approvals", "approvers")])
def test_what_is_dropped_is_named(name: str) -> None:
    dropped = PolicyConfig.model_validate({key: value for key, value in FULL.items() if key != name})
    lines = weaker_rules(policy(), dropped)
    assert lines and all(line.endswith("now") for line in lines)


def test_a_bound_on_risk_asks_for_its_attack_too() -> None:
    lines = weaker_rules(policy(), policy(risk={}))
    assert lines == ["audits.linkage: asked for before, not now", "risk.max_linkage: 0.2 before, none now"]


def test_a_policy_that_is_dropped_as_a_whole_is_named_rule_by_rule() -> None:
    assert len(weaker_rules(policy(), PolicyConfig())) == 16


SHARES = st.none() | st.floats(0, 1)
BOUNDS = st.builds(
    lambda ends, which: {name: ends[name] for name in which},
    st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(lambda pair: {"min": min(pair), "max": max(pair)}),
    st.sampled_from([("min",), ("max",), ("min", "max")]),
)
POLICIES = st.builds(
    lambda **settings: PolicyConfig.model_validate(settings),
    scores=st.dictionaries(st.sampled_from(["lpips", "clip_similarity", "identity_distance"]), BOUNDS),
    risk=st.dictionaries(
        st.sampled_from(["max_linkage", "max_linkage_rank1", "max_leaks"]), st.floats(0, 1).map(lambda x: {"upper": x})
    ),
    audits=st.lists(st.sampled_from(["linkage", "leaks", "membership"]), unique=True),
    audit_days=st.none() | st.integers(0, 90),
    max_quarantined=SHARES,
    max_failed=SHARES,
    min_released=st.integers(0, 20),
)


def allows(one: PolicyConfig, other: PolicyConfig) -> bool:
    """Whether some release passes ``other`` and not ``one``, worked out setting by setting."""

    def looser(sign: int, a: float | None, b: float | None) -> bool:
        return a is not None and (b is None or sign * (b - a) > 0)

    pairs = [(one.scores[name], other.scores.get(name)) for name in one.scores]
    return (
        any(looser(-1, a.min, b and b.min) or looser(1, a.max, b and b.max) for a, b in pairs)
        or any(looser(1, a.upper, other.risk[n].upper if n in other.risk else None) for n, a in one.risk.items())
        or any(looser(1, getattr(one, n), getattr(other, n)) for n in ("audit_days", "max_quarantined", "max_failed"))
        or not set(one.required_attacks) <= set(other.required_attacks)
        or other.min_released < one.min_released
    )


@given(POLICIES, POLICIES)
def test_a_policy_is_weaker_if_and_only_if_it_allows_more(one: PolicyConfig, other: PolicyConfig) -> None:
    assert weaker_rules(one, one) == []
    assert bool(weaker_rules(one, other)) == allows(one, other)
    lines = weaker_rules(one, other)
    assert lines == sorted(set(lines)) and all("\n" not in line for line in lines)
