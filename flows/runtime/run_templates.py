"""What a deployed flow is given, and where a release of a series goes: one configuration, another output each month."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel

from anonymizer.config import AuditConfig, CalibrationConfig, RunConfig, build_as, parse
from anonymizer.errors import ConfigError
from anonymizer.release import plan
from anonymizer.storage.layout import Release
from anonymizer.storage.path import Place

C = TypeVar("C", bound=BaseModel)
Given = dict[str, Any] | str  # a configuration as nested mappings, or the address of a YAML file that holds it

# Names sort as their dates do.
WHEN = {"month": "%Y-%m", "date": "%Y-%m-%d", "time": "%Y-%m-%dT%H%M%S"}
NEWEST = "{newest}"
BRACES = re.compile(r"\{(\w*)\}")


def read(kind: type[C], given: Given) -> C:
    """The configuration of a flow run. ConfigError if there is none at the address, or something is wrong with it."""
    return build_as(kind, given if isinstance(given, Mapping) else _tree(given))


def run_config(given: Given) -> RunConfig:
    """That of a release, each ``{month}`` filled in, and ``{newest}``, for when this flow run was to start."""
    return placed(read(RunConfig, given), scheduled())


def audit_config(given: Given) -> AuditConfig:
    config = read(AuditConfig, given)
    return config.model_copy(update={"release": dated("release", config.release, scheduled())})


def calibration_config(given: Given) -> CalibrationConfig:
    config = read(CalibrationConfig, given)
    return config.model_copy(update={"folder": dated("folder", config.folder, scheduled())})


def scheduled() -> datetime:
    """When this flow run was to start first, in UTC: the same for each retry of it."""
    from prefect.runtime import flow_run  # slow to import

    when: datetime = flow_run.scheduled_start_time
    return when.astimezone(UTC)


def placed(config: RunConfig, when: datetime) -> RunConfig:
    """The same settings with the addresses of one release of the series."""
    uri = dated("output.uri", config.output.uri, when)
    previous = config.previous
    if previous == NEWEST:
        previous = newest_before(uri)
    elif previous is not None:
        previous = dated("previous", previous, when)
    return config.model_copy(update={"output": config.output.model_copy(update={"uri": uri}), "previous": previous})


def dated(key: str, uri: str, when: datetime) -> str:
    """The address with the date in place of ``{month}``, ``{date}`` or ``{time}``. ConfigError for other braces."""
    for name in BRACES.findall(uri):
        if name not in WHEN:
            known = ", ".join(f"{{{one}}}" for one in WHEN)
            raise ConfigError(f"{key}: {{{name}}} stands for nothing there: known: {known}")
    return BRACES.sub(lambda found: when.strftime(WHEN[found[1]]), uri)


def newest_before(uri: str) -> str | None:
    """The last published release, by name, of those beside ``uri`` that come before it; none if there is none yet.

    A release that was begun keeps the one that it was begun with.
    """
    release = Release.at(uri)
    if release.plan.exists():
        return plan.stored(release).previous
    folder, _, own = uri.rstrip("/").rpartition("/")
    beside = [place.name for place in Place.of(folder or ".").children()]
    for name in sorted((name for name in beside if name < own), reverse=True):
        earlier = f"{folder}/{name}" if folder else name
        one = Release.at(earlier)
        if one.is_published:
            return earlier
        if one.events.exists() and not one.plan.exists():
            raise ConfigError(
                f"previous {NEWEST}: {name!r} was erased, and no later release beside it is published: name the one "
                "that took its place, or erased people come back"
            )
    return None


def refuse_dates(config: RunConfig) -> None:
    """ConfigError where an address waits for a date that only a deployed flow run has."""
    for key, uri in {"output.uri": config.output.uri, "previous": config.previous or ""}.items():
        if found := BRACES.search(uri):
            raise ConfigError(f"{key}: {found[0]} is filled in when a deployment runs: write the address out here")


def _tree(uri: str) -> dict[str, Any]:
    try:
        text = Place.of(uri).read().decode()
    except FileNotFoundError:
        raise ConfigError(f"config: no file {uri!r}: name a YAML file that the worker can read") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: cannot read {uri!r} ({type(error).__name__}): check the file and access") from None
    return parse(text, uri)
