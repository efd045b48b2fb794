"""Level <-> measured risk: what a calibration holds, and which level keeps a promise about risk."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from anonymizer import config as configuration
from anonymizer.config import CalibrationScope, ChosenLevel, LevelRule, RunConfig, Section
from anonymizer.errors import ConfigError, OutputError
from anonymizer.storage.path import StoragePath

C = TypeVar("C", bound=BaseModel)

FORMAT: Literal["anonymizer calibration 1"] = "anonymizer calibration 1"


class FiniteSection(Section):
    model_config = ConfigDict(allow_inf_nan=False)


class AttackRisk(FiniteSection):
    """One attack at one level; ``value``, ``low``, ``high`` are above chance or control.

    ``value`` and ``low`` are of whoever reached most, ``high`` of him with the highest upper bound, who is named.
    The interval is 95 %, so ``high`` alone is wrong for 2.5 % of all samples, or, without a hit, for 5 % (the rule of
    three). All three are null where too few people were there to tell, and ``note`` says so. ``n`` trials of
    ``subjects`` people.
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
    """One measure of what the pictures are still good for; null where it could not be had."""

    value: float | None
    low: float | None = None
    high: float | None = None


class SampleHalf(FiniteSection):
    """Who was in one of two halves that share no person."""

    pictures: int = Field(ge=0)
    people: int = Field(ge=0)


class CalibratedLevel(FiniteSection):
    """What was measured at one level, in each half on its own."""

    level: float = Field(gt=0, le=1)
    t_boom: int = Field(ge=1)
    log_snr: float
    choosing: tuple[AttackRisk, ...]
    confirming: tuple[AttackRisk, ...]
    utility: dict[str, Utility]

    @field_validator("choosing", "confirming")
    @classmethod
    def _check_distinct_attacks(cls, risks: tuple[AttackRisk, ...]) -> tuple[AttackRisk, ...]:
        if len({risk.attack for risk in risks}) < len(risks):
            raise ValueError("an attack must be there once, by its strongest attacker")
        return risks


class Calibration(FiniteSection):
    """The curve of risk and utility against level, and what it belongs to."""

    format: Literal["anonymizer calibration 1"]
    belongs_to: CalibrationScope
    made: str  # when, as ISO 8601
    code_version: str
    identified: bool = False  # whether people were told apart; if not, each picture was taken for a person
    choosing: SampleHalf
    confirming: SampleHalf
    levels: tuple[CalibratedLevel, ...] = Field(min_length=1)

    @field_validator("levels")
    @classmethod
    def _check_distinct_levels(cls, levels: tuple[CalibratedLevel, ...]) -> tuple[CalibratedLevel, ...]:
        if len({level.level for level in levels}) < len(levels):
            raise ValueError("a level must be there once")
        return levels

    @property
    def attacks(self) -> tuple[str, ...]:
        """What was tried at any level."""
        return tuple(sorted({risk.attack for one in self.levels for risk in (*one.choosing, *one.confirming)}))


# Reading and writing


def to_json(calibration: Calibration) -> bytes:
    """The file ``calibration.json``."""
    return calibration.model_dump_json(indent=2).encode()


def read(uri: str) -> Calibration:
    """The calibration that lies there; any fsspec URI. ConfigError, which names the file but not where it lies."""
    return parse(_read_bytes(uri), _file_name(uri))


def parse(data: bytes, name: str) -> Calibration:
    """The calibration in a file's bytes; ``name`` says which file. ConfigError if it is none, or damaged."""
    try:
        return Calibration.model_validate_json(data, strict=True)
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
    name = _file_name(uri)
    try:
        return StoragePath.from_uri(uri).read()
    except FileNotFoundError:
        raise ConfigError(
            f"calibration {name!r}: no such file: check boomerang.level.calibration; a relative path begins in the "
            "working directory"
        ) from None
    except OutputError:
        raise ConfigError(
            f"calibration {name!r}: its address cannot be opened: check it, and what fsspec needs for it"
        ) from None
    except Exception as error:  # storage libraries raise errors of their own
        raise ConfigError(
            f"calibration {name!r}: cannot be read ({type(error).__name__}): check the file and access to it"
        ) from None


def _file_name(uri: str) -> str:
    return uri.partition("?")[0].rstrip("/").rpartition("/")[2]


# Choosing


@dataclass(frozen=True)
class LevelChoice:
    """A level that keeps the promise, and by what: highest over ``attacks``, in each half."""

    level: float
    max_risk: float
    attacks: tuple[str, ...]
    choosing_high: float
    confirming_value: float
    confirming_high: float


def choose_level(calibration: Calibration, max_risk: float, attacks: Sequence[str] | None = None) -> LevelChoice:
    """The smallest level that keeps all risks at or below ``max_risk`` (a share in (0, 1)), with every stronger one.

    From the strongest level down, each one's highest upper bound over ``attacks`` (all that were tried, if none are
    named) must hold in the choosing half; the first that does not ends the search. That is fixed-sequence testing:
    "the risk here is above ``max_risk``" is tested for one level after the other, in an order that was fixed before
    there were data. A level that is wrongly taken means that the first level in this order whose risk is too high has
    passed its own test, and that happens for at most 5 % of all samples (one side of a 95 % interval, or the rule of
    three), however many levels there are: no correction for many tries is due. Nor is one due for several attacks,
    since all must hold. Source: Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052. Taking the smallest
    level that passes would need a correction: of many low levels one may pass by luck. So this can only be stricter.

    The confirming half, people who had no part in the choice, must then agree: its measured risks at this level must
    not be above ``max_risk``. If they are, no other level is tried, for that would be choosing by them.

    What could not be measured counts as too high. ConfigError, with the curve, where no level holds.
    """
    if not 0 < max_risk < 1:
        raise ConfigError(
            f"boomerang.level.max_risk must be in (0, 1), got {max_risk:g}: no sample shows a risk of 0, and 1 is no "
            "promise"
        )
    wanted = _resolve_attacks(calibration, attacks)
    falling = sorted(calibration.levels, key=lambda one: one.level, reverse=True)
    holding = list(takewhile(lambda one: _highest_risk(one.choosing, wanted, "high")[0] <= max_risk, falling))
    if not holding:
        curve = ", ".join(f"{one.level:g}: {_describe_risk(one.choosing, wanted, 'high')}" for one in reversed(falling))
        raise ConfigError(
            f"boomerang.level: no level, taken from the strongest down, keeps the risk at or below {max_risk:g}; upper "
            f"bounds are {curve}: raise max_risk, calibrate with more people, or name the attacks that the promise is "
            "about"
        )
    chosen = holding[-1]
    if _highest_risk(chosen.confirming, wanted, "value")[0] > max_risk:
        raise ConfigError(
            f"boomerang.level: {chosen.level:g} was chosen for a risk of at most {max_risk:g}, and the people who were "
            f"to confirm it show {_describe_risk(chosen.confirming, wanted, 'value')} (upper bound "
            f"{_describe_risk(chosen.confirming, wanted, 'high')}): raise max_risk, or calibrate with more people"
        )
    return LevelChoice(
        level=chosen.level,
        max_risk=max_risk,
        attacks=wanted,
        choosing_high=_highest_risk(chosen.choosing, wanted, "high")[0],
        confirming_value=_highest_risk(chosen.confirming, wanted, "value")[0],
        confirming_high=_highest_risk(chosen.confirming, wanted, "high")[0],
    )


def _resolve_attacks(calibration: Calibration, attacks: Sequence[str] | None) -> tuple[str, ...]:
    known = calibration.attacks
    if not known:
        raise ConfigError("boomerang.level: the calibration tried no attack, so it says nothing: calibrate again")
    wanted = known if attacks is None else tuple(sorted(set(attacks)))
    if not wanted:
        raise ConfigError(f"boomerang.level.attacks: names none: leave it out, or name some of {', '.join(known)}")
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"boomerang.level.attacks: the calibration did not try {name!r}: name some of {', '.join(known)}, or "
                "calibrate with it"
            )
    return wanted


def _highest_risk(
    risks: Sequence[AttackRisk], wanted: Sequence[str], side: Literal["value", "high"]
) -> tuple[float, str]:
    """The highest of these attacks' numbers, and the attack; infinite where one was not measured."""
    found = {risk.attack: getattr(risk, side) for risk in risks}
    return max((math.inf if found.get(name) is None else found[name], name) for name in wanted)


def _describe_risk(risks: Sequence[AttackRisk], wanted: Sequence[str], side: Literal["value", "high"]) -> str:
    number, attack = _highest_risk(risks, wanted, side)
    return f"{attack} not measured" if number == math.inf else f"{number:.3f} {attack}"


# In a configuration


class _BoomerangWithRule(Section):
    level: LevelRule


class _ConfigWithRule(Section):
    """The rule where it stands in a configuration, so that what is said of it names its keys in full."""

    boomerang: _BoomerangWithRule


def resolve_level(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's nested mappings with the level that its rule chooses, and with how it was chosen.

    Whatever else is wrong with the configuration is said first, then what the calibration does not belong to. Where
    the level is no mapping, nothing changes. What comes back needs the calibration's file no more, and does not say
    where it lies. ConfigError in one line.
    """
    section = tree.get("boomerang")
    if not isinstance(section, Mapping) or not isinstance(section.get("level"), Mapping):
        return dict(tree)
    rule = configuration.validate(_ConfigWithRule, {"boomerang": {"level": section["level"]}}).boomerang.level
    rest = {name: value for name, value in section.items() if name not in ("level", "chosen")}
    settings = configuration.validate(RunConfig, {**tree, "boomerang": rest})
    data = _read_bytes(rule.calibration)
    calibration = parse(data, _file_name(rule.calibration))
    if problems := settings.differences_from(calibration.belongs_to):
        raise ConfigError("; ".join(problems))
    choice = choose_level(calibration, rule.max_risk, rule.attacks)
    chosen = ChosenLevel(
        level=choice.level,
        identified=calibration.identified,
        calibration=hashlib.sha256(data).hexdigest(),
        max_risk=choice.max_risk,
        attacks=choice.attacks,
        choosing_high=choice.choosing_high,
        confirming_value=choice.confirming_value,
        confirming_high=choice.confirming_high,
        belongs_to=calibration.belongs_to,
    )
    return {**tree, "boomerang": rest | {"level": choice.level, "chosen": chosen.model_dump(mode="json")}}


def build_resolved(
    kind: type[C], tree: Mapping[str, Any], overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> C:
    """Return a configuration as ``config.build_as`` does, of a run with its level rule resolved."""
    merged = configuration.merge(tree, overrides, given)
    return configuration.validate(kind, resolve_level(merged) if kind is RunConfig else merged)
