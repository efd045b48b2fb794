"""Calibrations worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from anonymizer.config import RunConfig
from anonymizer.config.base import AUDIT_FEATURES
from anonymizer.policy.calibration import (
    FORMAT,
    AttackRisk,
    CalibratedLevel,
    Calibration,
    CalibrationAttackers,
    SampleHalf,
    Utility,
    build_resolved,
    to_json,
)
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import KEY

build = partial(build_resolved, RunConfig)
KIND = "faces of adults"
IDEAL = IdealGaussian().digest
SETTINGS: dict[str, Any] = {
    "source": {"uri": "in", "kind": KIND},
    "output": {"uri": "out"},
    "boomerang": {"level": 0.6, "steps": 2},
}


def risk(attack: str, high: float | None, value: float | None = None) -> AttackRisk:
    middle = None if high is None else high / 2 if value is None else value
    return AttackRisk(
        attack=attack, attacker="aware", measure="rank-1", feature="pixels", n=100, subjects=50,
        value=middle, low=None if high is None else 0.0, high=high, note="too few" if high is None else None,
    )  # fmt: skip


Highs = Mapping[str, float | None]


def level(share: float, highs: Highs | float | None, confirming: Highs | float | None = 0.0) -> CalibratedLevel:
    """Return a level with upper bounds in the choosing half and values in the confirming one (bounds: twice)."""

    def by_attack(numbers: Highs | float | None) -> Highs:
        return numbers if isinstance(numbers, Mapping) else {"linkage": numbers}

    return CalibratedLevel(
        level=share,
        t_boom=round(1000 * share),
        log_snr=1 - 10 * share,
        choosing=tuple(risk(name, high) for name, high in by_attack(highs).items()),
        confirming=tuple(
            risk(name, None if v is None else 2 * v, v)
            for name, v in (
                {**by_attack(highs), **dict.fromkeys(by_attack(highs), 0.0)} | by_attack(confirming)
            ).items()
        ),
        utility={"accuracy": Utility(value=1 - share, low=0.1, high=0.9)},
    )


def calibration(*levels: CalibratedLevel, config: RunConfig | None = None, digest: str = IDEAL) -> Calibration:
    return Calibration(
        format=FORMAT,
        belongs_to=(config or build(SETTINGS)).calibration_scope(digest),
        made="2026-11-01T12:00:00+00:00",
        code_version="0.1.0",
        attackers=CalibrationAttackers(
            features=AUDIT_FEATURES, sample=300, pairs=256, outputs=8, averaged=40, identity=None
        ),
        choosing=SampleHalf(pictures=100, people=50),
        confirming=SampleHalf(pictures=98, people=49),
        levels=levels,
    )


def sealed(calibration: Calibration) -> bytes:
    """The file of a calibration that was made with the key of the tests."""
    return to_json(calibration, KEY)
