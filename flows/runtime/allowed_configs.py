"""Configurations that a pinned worker accepts, so that who reaches Prefect's API cannot make it run another."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from anonymizer.config import AuditConfig, CalibrationConfig, RunConfig
from anonymizer.config.loading import parse
from anonymizer.errors import ConfigError
from anonymizer.policy.calibration import build_resolved

C = TypeVar("C", bound=BaseModel)

VARIABLE = "ANONYMIZER_POLICY"
SUMS = "SHA256SUMS"
SUM_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/]+)")  # as sha256sum writes it
KINDS: tuple[type[BaseModel], ...] = (RunConfig, AuditConfig, CalibrationConfig)
DATED = {"month": r"\d{4}-\d{2}", "date": r"\d{4}-\d{2}-\d{2}", "time": r"\d{4}-\d{2}-\d{2}T\d{6}"}


def is_pinned() -> bool:
    """Return whether this process accepts some configurations only."""
    return VARIABLE in os.environ


def check(config: C, *, is_filled: bool = False) -> C:
    """Return the configuration. Raises ConfigError where this process is pinned, and to others.

    ``is_filled``: whether dates may be filled in. Not by who asks for a release: without the newest release before it
    erased people would come back.
    """
    if is_pinned() and not any(_matches(allowed, config, is_filled) for allowed in read_allowed(type(config))):
        raise ConfigError(
            f"config: is none of those that this worker is pinned to: ask for it to be put where {VARIABLE} says, with "
            f"its digest in {SUMS}"
        )
    return config


def read_allowed(kind: type[C]) -> Iterator[C]:
    """Yield the allowed configurations of a kind; files hold one of any kind. Raises ConfigError for an unusable place.

    The place is a YAML file, or a folder of those that its SHA256SUMS lists with their digests.
    """
    for name, data in _read_files():
        tree = parse(data.decode(), name)
        try:
            yield build_resolved(kind, tree)
        except ConfigError:  # of another kind, or not valid any more: no run can match it
            continue


def _read_files() -> Iterator[tuple[str, bytes]]:
    place = Path(os.environ.get(VARIABLE, ""))
    try:
        if not place.is_absolute():  # a working directory may hold anything
            raise ValueError
        if place.is_file():
            yield place.name, place.read_bytes()
            return
        for line in (place / SUMS).read_text(encoding="utf-8").splitlines():
            match = SUM_LINE.fullmatch(line)
            data = (place / match[2]).read_bytes() if match else b""
            if match is None or hashlib.sha256(data).hexdigest() != match[1]:
                raise ConfigError(f"{VARIABLE}: a line of {SUMS} there is not its file's: look at both")
            yield match[2], data
    except (OSError, ValueError):
        raise ConfigError(
            f"{VARIABLE}: no file, and no folder with {SUMS}: give the full path of one, or of a folder in which "
            f"`sha256sum *.yaml > {SUMS}` was run"
        ) from None


def _matches(allowed: BaseModel, config: BaseModel, is_filled: bool) -> bool:
    """Return whether a configuration is the allowed one, or that with dates in its addresses filled in."""
    expected, actual = allowed.model_dump(mode="json"), config.model_dump(mode="json")
    if not is_filled:
        return expected == actual
    if isinstance(allowed, RunConfig) and isinstance(config, RunConfig):
        expected["output"]["uri"] = _fill(allowed.output.uri, config.output.uri)
        expected["previous"] = _fill_previous(allowed, config.previous)
    elif isinstance(allowed, AuditConfig) and isinstance(config, AuditConfig):
        expected["release"] = _fill(allowed.release, config.release)
    elif isinstance(allowed, CalibrationConfig) and isinstance(config, CalibrationConfig):
        expected["folder"] = _fill(allowed.folder, config.folder)
    return expected == actual


def _fill_previous(allowed: RunConfig, actual: str | None) -> str | None:
    if allowed.previous != "{newest}":
        return None if allowed.previous is None else _fill(allowed.previous, actual)
    folder = allowed.output.uri.rstrip("/").rpartition("/")[0]  # of the newest release before it
    pattern = re.escape(f"{folder}/" if folder else "") + r"(?!\.\.?$)[^/]+"
    is_sibling = actual is not None and re.fullmatch(pattern, actual)
    return actual if is_sibling else allowed.previous


def _fill(template: str, actual: str | None) -> str:
    """Return ``actual`` if it is the template with its dates filled in, else the template."""
    parts = re.split(r"(\{\w+\})", template)
    pattern = "".join(DATED.get(part[1:-1], re.escape(part)) if part[:1] == "{" else re.escape(part) for part in parts)
    return actual if actual is not None and re.fullmatch(pattern, actual) else template
