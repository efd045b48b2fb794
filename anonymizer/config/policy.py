"""Settings of the policy: bounds for each record and for the release, approvals, and waivers."""

from __future__ import annotations

from datetime import date
from difflib import get_close_matches
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from anonymizer.config.base import (
    AUDIT_AVERAGED,
    AUDIT_FEATURES,
    AUDIT_OUTPUTS,
    AUDIT_PAIRS,
    AUDIT_SAMPLE,
    Attack,
    CeilingName,
    Float,
    Int,
    Section,
    are_levels,
    ensure,
    is_words,
)

Score = Literal["clip_similarity", "lpips", "identity_distance", "faces"]

# Name of a measure in a rule -> its name among an audit's figures.
MEASURES = {
    "rank1": "rank-1",
    "assigned": "assigned",
    "auc": "AUC",
    "accuracy": "accuracy",
    "tmr": "TMR at FMR",
    "tpir": "TPIR at FPIR",
    "tpr": "TPR at FPR",
    "metadata": "files with metadata",
    "named": "records named",
    "neighbours": "neighbours",
}
ATTACKS = get_args(Attack)


Finite = Annotated[Float, Field(allow_inf_nan=False)]  # nothing is less than NaN: such a bound would bound nothing
RisingLevels = Annotated[
    tuple[Float, ...],
    ensure(
        lambda levels: are_levels(levels) and list(levels) == sorted(set(levels)),
        "must be rising levels in (0, 1], got {}",
    ),
]
Words = Annotated[str, ensure(is_words, "must be words in one line, got {!r}"), AfterValidator(str.strip)]


class Bound(Section):
    """The range of a score; either end may be left out."""

    min: Finite | None = None
    max: Finite | None = None

    @model_validator(mode="after")
    def _check_range(self) -> Bound:
        if self.min is None and self.max is None:
            raise ValueError("bounds nothing: give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: nothing would pass")
        return self


class RiskBound(Section):
    """The highest upper end of a figure's 95 % interval."""

    upper: Float = Field(ge=0, le=1)


Feature = Annotated[
    str,
    ensure(
        lambda name: name.partition(":")[0] in (*AUDIT_FEATURES, "arcface"),
        f"must be a feature of an audit ({', '.join(AUDIT_FEATURES)}, arcface:FILE.onnx), got {{!r}}",
    ),
]


class LeastAttackers(Section):
    """Minimum resources of an audit's attackers, below which its figures satisfy no bound."""

    attacks: tuple[Attack, ...] = Field((), description="attacks to try besides those that a rule names")
    features: tuple[Feature, ...] = Field(
        AUDIT_FEATURES, description="features that pictures must be compared by, spelled as in the audit's settings"
    )
    sample: Int = Field(AUDIT_SAMPLE, ge=1, description="records to attack, or all where fewer were released")
    pairs: Int = Field(AUDIT_PAIRS, ge=0, description="training pairs of learning attackers")
    outputs: Int = Field(AUDIT_OUTPUTS, ge=0, description="outputs of one original that an attacker sees")
    averaged: Int = Field(AUDIT_AVERAGED, ge=0, description="originals of which an attacker sees so many, or all")
    identity: str | None = Field(
        None, description="'folder' or the column that must tell people apart; null: whatever the audit takes"
    )


class GroupRules(Section):
    """What must hold of the groups that outputs are drawn from."""

    min_k: Int | None = Field(None, ge=1, description="fewest originals behind any released picture")
    max_leftover: Float | None = Field(
        None, ge=0, le=1, description="largest share of records that wait, or may wait, because too few are alike"
    )


class Waiver(Section):
    """A rule that a named person sets aside until a day, signed and published with the release."""

    rule: str
    who: Words
    why: Words
    until: date


def parse_risk_rule(name: str) -> tuple[str, str | None]:
    """Return the attack and the measure of a rule: ``max_linkage_rank1`` -> ("linkage", "rank-1").

    Without a measure (``max_linkage`` -> ("linkage", None)) it is the risk above chance. ValueError for other names.
    """
    attack, _, measure = name.removeprefix("max_").partition("_")
    if name.startswith("max_") and attack in ATTACKS and (not measure or measure in MEASURES):
        return attack, MEASURES.get(measure)
    known = [f"max_{attack}" for attack in ATTACKS] + [f"max_{a}_{m}" for a in ATTACKS for m in MEASURES]
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = (
        f"did you mean {near[0]!r}?" if near else f"write max_ATTACK, or max_ATTACK_MEASURE with {', '.join(MEASURES)}"
    )
    raise ValueError(f"{name!r} is no figure of an audit: {hint}")


def _check_risk_rule(name: str) -> str:
    parse_risk_rule(name)
    return name


def _check_public_key(text: str) -> str:
    from anonymizer.crypto import signing  # slow to import, and seldom needed

    try:
        signing.parse_public_key(text)
    except ValueError:  # not repeated, since it may be a private one
        raise ValueError("must be a public key as `anonymizer keys` prints it (ed25519:...)") from None
    return text


class PolicyConfig(Section):
    """The rules for each record and for the release. A rule that cannot be checked counts as broken."""

    scores: dict[Score, Bound] = Field(
        {},
        description="{min, max} of clip_similarity, lpips, identity_distance, faces; outside, it is quarantined",
    )
    escalate: RisingLevels = Field(
        (), description="stronger levels at which an output that is too close is sampled again, in turn"
    )
    risk: dict[Annotated[str, AfterValidator(_check_risk_rule)], RiskBound] = Field(
        {}, description="bounds on the audit's figures: {max_linkage_rank1: {upper: 0.05}}, or max_linkage above chance"
    )
    ceilings: dict[CeilingName, Annotated[Float, Field(ge=0, le=1)]] = Field(
        {},
        description="highest rates that any attacker could reach, whatever it computes: {linkage_rank1: 0.05, "
        "membership_tpr_at_1: 0.1}; needs settings for which ceilings hold (docs/protection.md)",
    )
    audits: tuple[Attack, ...] = Field((), description="attacks that must have been tried on this very release")
    attackers: LeastAttackers = LeastAttackers()
    audit_days: Int | None = Field(None, ge=0, description="how many days old the audit may be")
    max_quarantined: Float | None = Field(None, ge=0, le=1, description="largest share of quarantined records")
    max_failed: Float | None = Field(None, ge=0, le=1, description="largest share of failed records")
    min_released: Int = Field(0, ge=0, description="fewest pictures that may be published")
    groups: GroupRules = GroupRules()
    approvals: Int = Field(0, ge=0, description="how many of the approvers must sign before anything is published")
    approvers: dict[Words, Annotated[str, AfterValidator(_check_public_key)]] = Field(
        {}, description="name -> public key of each who may approve; both are published"
    )
    waivers: tuple[Waiver, ...] = Field((), description="rules set aside: {rule, who, why, until}; published")
    weaker_than_previous: Words | None = Field(
        None, description="why rules of the `previous` release are dropped or loosened here; signed and published"
    )

    @property
    def required_attacks(self) -> tuple[str, ...]:
        """The attacks that a rule needs, for themselves or for a bound on their figures."""
        return tuple(sorted({*self.audits, *self.attackers.attacks, *(parse_risk_rule(rule)[0] for rule in self.risk)}))

    def waives(self, rule: str) -> bool:
        """Return whether a rule has a waiver, whose day only the release's gate looks at."""
        return any(waiver.rule == rule for waiver in self.waivers)

    @model_validator(mode="after")
    def _check_waivers(self) -> PolicyConfig:
        rules = ["min_released", *self.risk, *(f"audits.{attack}" for attack in self.required_attacks)]
        rules += [f"ceilings.{name}" for name in self.ceilings]
        rules += ["attackers"] if self.required_attacks else []
        rules += [name for name in ("max_quarantined", "max_failed", "audit_days") if getattr(self, name) is not None]
        rules += [f"groups.{name}" for name, bound in self.groups if bound is not None]
        for waiver in self.waivers:
            if waiver.rule not in rules:
                raise ValueError(f"waivers: {waiver.rule!r} is none of the rules that are set: {', '.join(rules)}")
        return self

    @model_validator(mode="after")
    def _check_approvers(self) -> PolicyConfig:
        if self.approvals > len(self.approvers):
            raise ValueError(
                f"approvals: {self.approvals} asked for, and {len(self.approvers)} approvers named: name as many"
            )
        if len(set(self.approvers.values())) < len(self.approvers):
            raise ValueError("approvers: one key stands for two names: give each a key of their own")
        return self
