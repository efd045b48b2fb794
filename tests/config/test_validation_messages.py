"""Every problem of a configuration is one line: field, value, next step."""

from __future__ import annotations

from typing import Any

import pytest

from anonymizer.config import AugmentConfig, CalibrationConfig, EnhanceConfig, Section, validate
from anonymizer.errors import ConfigError
from tests.support.configs import LEAST, config_error


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("boomerang.levle=0.4", "boomerang.levle: unknown key: did you mean 'level'?"),
        ("sorce=1", "sorce: unknown key: did you mean 'source'?"),
        ("level=0.4", "level: unknown key: did you mean 'boomerang.level'?"),
        ("output.batch_size=4", "output.batch_size: unknown key: did you mean 'run.batch_size'?"),
        ("source.limits.max_byte=4", "source.limits.max_byte: unknown key: did you mean 'max_bytes'?"),
        (
            "run.zzz=1",
            "run.zzz: unknown key: known keys: batch_size, compile, deployment, dispatch, retries, runner, shard_size, "
            "threads, timeout, workers",
        ),
        ("stps=4", "stps: unknown key: did you mean 'boomerang.steps'?"),
        ("uri=x", "uri: unknown key: did you mean 'source.uri' or 'output.uri'?"),
        ("source.columns=[a]", "source.columns: unknown key: did you mean 'source.carry'?"),
        ("source.path=x", "source.path: unknown key: did you mean 'source.uri'?"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(override: str, hint: str) -> None:
    assert hint in config_error(LEAST, override)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("boomerang.level=0", "boomerang.level must be in (0, 1], got 0: level 0 would release the original"),
        ("boomerang.level=1.5", "boomerang.level must be in (0, 1], got 1.5"),
        ("boomerang.level=.nan", "boomerang.level must be in (0, 1], got nan"),
        ("boomerang.level=-.inf", "boomerang.level must be in (0, 1], got -inf"),
        ("boomerang.samples=3", "boomerang.samples must be 1 in a release, got 3"),
        ("boomerang.steps=0", "boomerang.steps: Input should be greater than or equal to 1, got 0"),
        ("boomerang.sampler=euler", "boomerang.sampler: Input should be 'ddpm', 'ddim'"),
        ("output.uri=2024", "output.uri: Input should be a valid string, got 2024: put it in quotes"),
        ("source.uri=' '", "source.uri must name a folder, file or prefix, got ' '"),
        ("source.where={day: 2024-01-01}", "put it in quotes"),
        ("source=4", "source: is a section, got 4: its keys are uri, format, image"),
        ("source=", "source: is a section, got nothing: its keys are uri, format, image"),
        ("source=photos/", "source: is a section, got 'photos/': write source.uri: photos/"),
        ("model=bundled:faces-64", "model: is a section, got 'bundled:faces-64': write model.id: bundled:faces-64"),
        ("metrics=none", "metrics: is a section, got 'none': its keys are clip, lpips"),
        ("source.limits=4", "source.limits: is a section, got 4: its keys are max_bytes, max_pixels, max_frames"),
        ("source.where=4", "source.where: is a mapping, got 4: write source.where.COLUMN: VALUE"),
        ("source.carry=age", "source.carry: is a list, got 'age': put it in square brackets"),
        ("source.uri.x=4", "--set: 'source.uri.x' goes through 'uri', which is a value"),
        ("run.batch_size=many", "run.batch_size must be a number, 1 or more, or auto, got 'many'"),
        ("run.threads=[", "--set run.threads: the value '[' is not YAML"),
        ("run.threads", "--set: got 'run.threads': write it as section.key=value"),
        ("=3", "--set: got '=3': write it as section.key=value"),
        ("source.=3", "--set: got 'source.=3': write it as section.key=value"),
        ("boomerang.level=true", "boomerang.level must be a number, got true"),
        ("boomerang.steps=yes", "boomerang.steps must be a number, got true"),
        ("run.retries=false", "run.retries must be a number, got false"),
        ("output.quality=on", "output.quality must be a number, got true"),
        ("source.limits.max_frames=true", "source.limits.max_frames must be a number, got true"),
    ],
)
def test_a_wrong_value_is_one_line_with_field_value_and_next_step(override: str, line: str) -> None:
    assert line in config_error(LEAST, override)


def test_missing_keys_are_named() -> None:
    assert "source: missing: give it in the config or as --set source=..." in config_error({"output": {"uri": "out"}})
    assert "output.uri: missing" in config_error({"source": {"uri": "in"}, "output": {}})


def test_two_problems_are_still_one_line() -> None:
    line = config_error(LEAST, "boomerang.level=0", "run.treads=2")
    assert "boomerang.level must be" in line
    assert "run.treads: unknown key: did you mean 'run.threads'?" in line or "did you mean 'threads'" in line


@pytest.mark.parametrize(
    ("kind", "settings", "line"),
    [
        (AugmentConfig, {"levels": ".4:.1"}, "levels must be two numbers in (0, 1], the lowest first, got 0.4 and 0.1"),
        (CalibrationConfig, {"attacks": ["leaks"]}, "attacks must name attacks on pictures: leaks are looked for in a"),
        (CalibrationConfig, {"levels": "0,.5"}, "levels must be different numbers in (0, 1], got 0, 0.5"),
        (EnhanceConfig, {"levels": [0.5, 2]}, "levels must be numbers in (0, 1], got 0.5, 2"),
    ],
)
def test_a_wrong_list_is_repeated_in_full(kind: type[Section], settings: dict[str, Any], line: str) -> None:
    least = {"run": LEAST} if kind is CalibrationConfig else LEAST
    with pytest.raises(ConfigError) as caught:
        validate(kind, least | settings)
    assert str(caught.value).startswith(line)
