"""Calibrations: measured risk and utility against level, and the choice of a level for a bound on risk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from anonymizer import config as configuration
from anonymizer.config import (
    CalibrationScope,
    CeilingName,
    ChosenLevel,
    LeastAttackers,
    LevelRule,
    PolicyConfig,
    RunConfig,
    Section,
)
from anonymizer.crypto import seal
from anonymizer.crypto.custodian_key import load_key
from anonymizer.errors import ConfigError, IntegrityError, LevelError, OutputError
from anonymizer.policy.attackers import Attackers, find_shortfalls
from anonymizer.policy.ceilings import find_exceeded, upper_end
from anonymizer.records import Ceilings
from anonymizer.storage.layout import SealKey
from anonymizer.storage.path import StoragePath

C = TypeVar("C", bound=BaseModel)

SEAL_CONTEXT = "calibration"
FORMAT: Literal["anonymizer calibration 1"] = "anonymizer calibration 1"


class FiniteSection(Section):
    """Base of all parts of a calibration."""

    model_config = ConfigDict(allow_inf_nan=False)


class AttackRisk(FiniteSection):
    """Risk of one attack at one level, above its control or chance.

    ``value`` and ``low`` belong to the attacker with the highest risk, ``high`` and ``attacker`` to the one with the
    highest upper bound. Of a 95 % interval ``high`` fails for 2.5 % of all samples, or, without a success, for 5 % (the
    rule of three). All three are null for too few people, with the reason in ``note``. ``n`` counts
    trials, ``subjects`` people.
    """

    attack: str = Field(pattern=r"^[A-Za-z0-9_-]+$")  # errors repeat it
    measure: str
    attacker: str
    feature: str
    n: int = Field(ge=0)
    subjects: int = Field(ge=0)
    value: float | None
    low: float | None
    high: float | None
    note: str | None = None

    @model_validator(mode="after")
    def _check_complete(self) -> AttackRisk:
        if len({number is None for number in (self.value, self.low, self.high)}) > 1:
            raise ValueError("value, low and high must be there together, or not at all")
        return self


class Utility(FiniteSection):
    """One measure of utility; null where it could not be measured."""

    value: float | None
    low: float | None = None
    high: float | None = None


class SampleHalf(FiniteSection):
    """Size of one of the two halves of the sample, which share no person."""

    pictures: int = Field(ge=0)
    people: int = Field(ge=0)


class CalibratedLevel(FiniteSection):
    """Measurements at one level, in each half separately."""

    level: float = Field(gt=0, le=1)
    t_boom: int = Field(ge=1)
    log_snr: float
    choosing: tuple[AttackRisk, ...]
    confirming: tuple[AttackRisk, ...]
    choosing_ceilings: Ceilings | None = None  # where none hold, and in files of earlier versions
    confirming_ceilings: Ceilings | None = None
    utility: dict[str, Utility]

    @field_validator("choosing", "confirming")
    @classmethod
    def _check_distinct_attacks(cls, risks: tuple[AttackRisk, ...]) -> tuple[AttackRisk, ...]:
        if len({risk.attack for risk in risks}) < len(risks):
            raise ValueError("an attack must be there once, by its strongest attacker")
        return risks


class CalibrationAttackers(FiniteSection):
    """Who attacked at every level, as the settings of the calibration spell it; ``sample``: pictures asked for."""

    features: tuple[str, ...]
    sample: int
    pairs: int
    outputs: int
    averaged: int
    identity: str | None


class Calibration(FiniteSection):
    """The curve of risk and utility against level, and the settings that it holds for."""

    format: Literal["anonymizer calibration 1"]
    belongs_to: CalibrationScope
    made: str  # when, as ISO 8601
    code_version: str
    identified: bool = False  # whether people were identified; if not, each image counts as a person
    attackers: CalibrationAttackers | None = None  # not named by earlier versions
    choosing: SampleHalf
    confirming: SampleHalf
    levels: tuple[CalibratedLevel, ...] = Field(min_length=1)
    hmac: str | None = None  # the seal of its file

    @field_validator("levels")
    @classmethod
    def _check_distinct_levels(cls, levels: tuple[CalibratedLevel, ...]) -> tuple[CalibratedLevel, ...]:
        if len({level.level for level in levels}) < len(levels):
            raise ValueError("a level must be there once")
        return levels

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of all attacks that were tried at any level."""
        return tuple(sorted({risk.attack for level in self.levels for risk in (*level.choosing, *level.confirming)}))


# Reading and writing


def to_json(calibration: Calibration, key: SealKey | None = None) -> bytes:
    """Return the content of ``calibration.json``, sealed with the custodian's key if there is one."""
    text = calibration.model_copy(update={"hmac": seal.PLACEHOLDER}).model_dump_json(indent=2)
    return seal.apply(text.encode(), key, SEAL_CONTEXT)


def read(uri: str) -> Calibration:
    """Read a calibration from an fsspec URI for display, its seal unchecked.

    Raises ConfigError, which names the file but not its folder.
    """
    return parse(_read_bytes(uri), _file_name(uri))


def parse(data: bytes, name: str) -> Calibration:
    """Return the calibration in the bytes of the file ``name``. Raises ConfigError if they are anything else."""
    try:
        return Calibration.model_validate_json(data, strict=True).model_copy(update={"hmac": None})
    except ValidationError as error:
        raise ConfigError(f"calibration {name!r}: {_explain_invalid(error)}") from None


def _explain_invalid(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False)
    of_format = [problem["type"] for problem in problems if problem["loc"] == ("format",)]
    where = ".".join(str(part) for part in problems[0]["loc"])
    if "literal_error" in of_format:
        return f"has a format that is not {FORMAT!r}: calibrate again, or use the version that made it"
    if of_format or not where or problems[0]["type"] == "extra_forbidden":  # a name from the file is not repeated
        return "is damaged, or no calibration: restore it, or calibrate again"
    return f"is damaged at {where}: restore it, or calibrate again"


def _read_bytes(uri: str) -> bytes:
    try:
        return StoragePath.from_uri(uri).read()
    except FileNotFoundError:
        problem = "no such file: check boomerang.level.calibration; a relative path begins in the working directory"
    except OutputError:
        problem = "its address cannot be opened: check it, and what fsspec needs for it"
    except Exception as error:  # storage libraries raise errors of their own
        problem = f"cannot be read ({type(error).__name__}): check the file and access to it"
    raise ConfigError(f"calibration {_file_name(uri)!r}: {problem}")


def _file_name(uri: str) -> str:
    return uri.partition("?")[0].rstrip("/").rpartition("/")[2]


# Choosing


@dataclass(frozen=True)
class LevelChoice:
    """A chosen level, with the highest risk over ``attacks`` in each half."""

    level: float
    max_risk: float
    attacks: tuple[str, ...]
    choosing_high: float
    confirming_value: float
    confirming_high: float


def choose_level(calibration: Calibration, max_risk: float, attacks: Sequence[str] | None = None) -> LevelChoice:
    """Return the lowest level such that it and all stronger ones keep every risk at or below ``max_risk`` in (0, 1).

    Fixed-sequence testing: levels are taken from the strongest down, in an order fixed before there are data. At each
    one the highest upper bound over ``attacks`` (default: all that were tried) in the choosing half must not exceed
    ``max_risk``; the first level that fails ends the search. A level is accepted wrongly only if the first level in
    this order with too high a risk passes its own test, which happens for at most 5 % of all samples (one side of a
    95 % interval, or the rule of three) for any number of levels. So no correction for multiple levels is needed, nor
    one for multiple attacks, since all must hold. Source: Angelopoulos et al. 2021, "Learn then Test",
    arXiv 2110.01052. Taking the lowest level that passes at all would need a correction: one of many low levels may
    pass by luck.

    The confirming half, people who had no part in the choice, must then agree: its measured risks at this level must
    not exceed ``max_risk`` either. If they do, no other level is tried, since that would be choosing by this half.

    An attack that could not be measured counts as too high. Raises LevelError, with the curve, if no level holds.
    """
    if not 0 < max_risk < 1:
        raise ConfigError(
            f"boomerang.level.max_risk must be in (0, 1), got {max_risk:g}: no sample shows a risk of 0, and 1 is no "
            "promise"
        )
    names = _resolve_attacks(calibration, attacks)
    descending = sorted(calibration.levels, key=lambda level: level.level, reverse=True)
    passing = list(takewhile(lambda level: _highest_risk(level.choosing, names, "high")[0] <= max_risk, descending))
    if not passing:
        ascending = reversed(descending)
        curve = ", ".join(f"{level.level:g}: {_describe_risk(level.choosing, names, 'high')}" for level in ascending)
        raise LevelError(
            f"boomerang.level: no level, taken from the strongest down, keeps the risk at or below {max_risk:g}: raise "
            "max_risk, calibrate with more people, or name the attacks that the promise is about",
            figures=f"upper bounds are {curve}",
        )
    choice = passing[-1]
    confirming_value = _highest_risk(choice.confirming, names, "value")[0]
    if confirming_value > max_risk:
        raise LevelError(
            f"boomerang.level: {choice.level:g} was chosen for a risk of at most {max_risk:g}, and the people who were "
            "to confirm it show more: raise max_risk, or calibrate with more people",
            figures=f"they show {_describe_risk(choice.confirming, names, 'value')}, upper bound "
            f"{_describe_risk(choice.confirming, names, 'high')}",
        )
    return LevelChoice(
        level=choice.level,
        max_risk=max_risk,
        attacks=names,
        choosing_high=_highest_risk(choice.choosing, names, "high")[0],
        confirming_value=confirming_value,
        confirming_high=_highest_risk(choice.confirming, names, "high")[0],
    )


def choose_level_by_ceilings(calibration: Calibration, bounds: Mapping[CeilingName, float]) -> float:
    """Return the lowest level such that it and all stronger ones keep the ceilings of the choosing half in ``bounds``.

    Levels are taken from the strongest down, as in ``choose_level``; upper ends of intervals count. The ceilings of the
    confirming half, of people who had no part in the choice, must keep the bounds at that level too: no other is tried.
    Raises LevelError where no level holds.
    """
    descending = sorted(calibration.levels, key=lambda level: level.level, reverse=True)
    passing = list(takewhile(lambda level: not find_exceeded(bounds, level.choosing_ceilings), descending))
    promise = ", ".join(f"{name} {bound:g}" for name, bound in bounds.items())
    if not passing:
        ceilings = descending[0].choosing_ceilings
        highs = [f"{name} {upper_end(ceilings, name):.3g}" if ceilings else f"{name}: none holds" for name in bounds]
        raise LevelError(
            f"boomerang.level: no level, taken from the strongest down, has ceilings within {promise}: raise them, "
            "calibrate with more people or at stronger levels, or with settings for which ceilings hold",
            figures=f"at {descending[0].level:g} they are {', '.join(highs)}",
        )
    if find_exceeded(bounds, passing[-1].confirming_ceilings):
        raise LevelError(
            f"boomerang.level: {passing[-1].level:g} was chosen for ceilings within {promise}, and those of the people "
            "who were to confirm it are higher: raise them, or calibrate with more people"
        )
    return passing[-1].level


def _resolve_attacks(calibration: Calibration, attacks: Sequence[str] | None) -> tuple[str, ...]:
    known = calibration.attacks
    if not known:
        raise ConfigError("boomerang.level: the calibration tried no attack, so it says nothing: calibrate again")
    names = known if attacks is None else tuple(sorted(set(attacks)))
    if not names:
        raise ConfigError(f"boomerang.level.attacks: names none: leave it out, or name some of {', '.join(known)}")
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(
            f"boomerang.level.attacks: the calibration did not try {unknown[0]!r}: name some of {', '.join(known)}, or "
            "calibrate with it"
        )
    return names


def _highest_risk(
    risks: Sequence[AttackRisk], attacks: Sequence[str], side: Literal["value", "high"]
) -> tuple[float, str]:
    """Return the highest risk of these attacks and the name of that attack; infinity for an unmeasured one."""
    by_attack = {risk.attack: getattr(risk, side) for risk in risks}
    return max((math.inf if by_attack.get(name) is None else by_attack[name], name) for name in attacks)


def _describe_risk(risks: Sequence[AttackRisk], attacks: Sequence[str], side: Literal["value", "high"]) -> str:
    risk, attack = _highest_risk(risks, attacks, side)
    return f"{attack} not measured" if risk == math.inf else f"{risk:.3f} {attack}"


# In a configuration


class _BoomerangWithRule(Section):
    level: LevelRule


class _ConfigWithRule(Section):
    """The rule at its place in a configuration, so that errors name its keys in full."""

    boomerang: _BoomerangWithRule


def resolve_level(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration's nested mappings with a rule for the level replaced by a level and how it was chosen.

    Nothing changes if the level is no mapping. The result no longer needs the calibration's file, nor names its folder.
    Raises ConfigError in one line: errors in other settings first, then settings that the calibration is not made for.
    """
    section = tree.get("boomerang")
    if not isinstance(section, Mapping) or not isinstance(section.get("level"), Mapping):
        return dict(tree)
    rule = configuration.validate(_ConfigWithRule, {"boomerang": {"level": section["level"]}}).boomerang.level
    rest = {name: value for name, value in section.items() if name not in ("level", "chosen")}
    settings = configuration.validate(RunConfig, {**tree, "boomerang": rest})
    data = _read_bytes(rule.calibration)
    calibration = parse(data, _file_name(rule.calibration))
    _check_origin(data, rule, settings.key_env)
    if problems := settings.differences_from(calibration.belongs_to):
        raise ConfigError("; ".join(problems))
    if rule.promise == "ceiling":
        level, attacks = choose_level_by_ceilings(calibration, rule.ceilings), tuple[str, ...]()
    else:
        _check_attackers(calibration, settings.policy, _file_name(rule.calibration))
        choice = choose_level(calibration, rule.max_risk or 0.0, rule.attacks)
        level, attacks = choice.level, choice.attacks
    chosen = ChosenLevel(
        level=level,
        max_risk=rule.max_risk,
        attacks=attacks,
        ceilings=rule.ceilings,
        identified=calibration.identified,
        calibration=hashlib.sha256(data).hexdigest(),
        belongs_to=calibration.belongs_to,
    )
    return {**tree, "boomerang": rest | {"level": level, "chosen": chosen.model_dump(mode="json")}}


def _check_origin(data: bytes, rule: LevelRule, key_env: str) -> None:
    """Raise ConfigError unless a calibration was sealed with the custodian's key, or is the one that the rule pins.

    Otherwise an attacker with write access to its folder could choose the level.
    """
    name, digest = f"calibration {_file_name(rule.calibration)!r}", hashlib.sha256(data).hexdigest()
    if rule.sha256 is not None:
        if rule.sha256 != digest:
            raise ConfigError(f"{name}: is not the file of boomerang.level.sha256: restore it, or pin the one you mean")
        return
    key = load_key(key_env)
    if not key.is_persistent:
        raise ConfigError(
            f"{name}: nobody vouches for it: set {key_env}, with which it was made, or pin it by boomerang.level.sha256"
        )
    hint = "calibrate with this key, or pin the file by boomerang.level.sha256"
    try:
        seal.check(data, key, SEAL_CONTEXT, name, hint)
    except IntegrityError as error:
        raise ConfigError(str(error)) from None


def _check_attackers(calibration: Calibration, policy: PolicyConfig, name: str) -> None:
    """Raise ConfigError for a promise about weaker attackers than a policy about risk names."""
    if not policy.required_attacks and policy.attackers == LeastAttackers():
        return
    if (stated := calibration.attackers) is None:
        lacking = ["it does not say who attacked"]
    else:
        attackers = Attackers(
            attacks=calibration.attacks, released=policy.attackers.sample, **stated.model_dump(mode="python")
        )
        lacking = list(find_shortfalls(policy.attackers, attackers))
    if lacking:
        raise ConfigError(
            f"calibration {name!r}: by weaker attackers than policy.attackers names ({'; '.join(lacking)}): calibrate "
            "with these"
        )


def build_resolved(
    kind: type[C], tree: Mapping[str, Any], overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> C:
    """Return a configuration of any kind, changed as ``config.merge`` does; a run's level rule is resolved."""
    merged = configuration.merge(tree, overrides, given)
    return configuration.validate(kind, resolve_level(merged) if kind is RunConfig else merged)
