"""What a deployed flow is given, and where a release of a series goes: one configuration, another output each month."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel

from anonymizer.config import AuditConfig, CalibrationConfig, RunConfig, parse
from anonymizer.errors import ConfigError
from anonymizer.policy.calibration import build_resolved
from anonymizer.release import plan
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath

C = TypeVar("C", bound=BaseModel)
ConfigOrUri = dict[str, Any] | str  # a configuration as nested mappings, or the address of a YAML file that holds it

# Names sort as their dates do.
DATE_FORMATS = {"month": "%Y-%m", "date": "%Y-%m-%d", "time": "%Y-%m-%dT%H%M%S"}
NEWEST = "{newest}"
PLACEHOLDER = re.compile(r"\{(\w*)\}")


def read_config(kind: type[C], given: ConfigOrUri) -> C:
    """The configuration of a flow run. ConfigError if there is none at the address, or something is wrong with it."""
    return build_resolved(kind, given if isinstance(given, Mapping) else _read_yaml(given))


def run_config(config: ConfigOrUri) -> RunConfig:
    """That of a release, each ``{month}`` filled in, and ``{newest}``, for when this flow run was to start."""
    return fill_templates(read_config(RunConfig, config), scheduled_start())


def audit_config(given: ConfigOrUri) -> AuditConfig:
    config = read_config(AuditConfig, given)
    return config.model_copy(update={"release": fill_date("release", config.release, scheduled_start())})


def calibration_config(given: ConfigOrUri) -> CalibrationConfig:
    config = read_config(CalibrationConfig, given)
    return config.model_copy(update={"folder": fill_date("folder", config.folder, scheduled_start())})


def scheduled_start() -> datetime:
    """When this flow run was to start first, in UTC: the same for each retry of it."""
    from prefect.runtime import flow_run  # slow to import

    when: datetime = flow_run.scheduled_start_time
    return when.astimezone(UTC)


def fill_templates(config: RunConfig, start: datetime) -> RunConfig:
    """The same settings with the addresses of one release of the series."""
    uri = fill_date("output.uri", config.output.uri, start)
    previous = config.previous
    if previous == NEWEST:
        previous = newest_release_before(uri)
    elif previous is not None:
        previous = fill_date("previous", previous, start)
    return config.model_copy(update={"output": config.output.model_copy(update={"uri": uri}), "previous": previous})


def fill_date(key: str, uri: str, start: datetime) -> str:
    """The address with the date in place of ``{month}``, ``{date}`` or ``{time}``. ConfigError for other braces."""
    for name in PLACEHOLDER.findall(uri):
        if name not in DATE_FORMATS:
            known = ", ".join(f"{{{one}}}" for one in DATE_FORMATS)
            raise ConfigError(f"{key}: {{{name}}} stands for nothing there: known: {known}")
    return PLACEHOLDER.sub(lambda found: start.strftime(DATE_FORMATS[found[1]]), uri)


def newest_release_before(uri: str) -> str | None:
    """The last published release, by name, of those beside ``uri`` that come before it; none if there is none yet.

    A release that was begun keeps the one that it was begun with.
    """
    release = Release.at(uri)
    if release.plan.exists():
        return plan.read_config(release).previous
    folder, _, own = uri.rstrip("/").rpartition("/")
    beside = [place.name for place in StoragePath.from_uri(folder or ".").children()]
    for name in sorted((name for name in beside if name < own), reverse=True):
        earlier = f"{folder}/{name}" if folder else name
        one = Release.at(earlier)
        if one.is_published:
            return earlier
        if one.event_log.exists() and not one.plan.exists():
            raise ConfigError(
                f"previous {NEWEST}: {name!r} was erased, and no later release beside it is published: name the one "
                "that took its place, or erased people come back"
            )
    return None


def refuse_placeholders(config: RunConfig) -> None:
    """ConfigError where an address waits for a date that only a deployed flow run has."""
    for key, uri in {"output.uri": config.output.uri, "previous": config.previous or ""}.items():
        if found := PLACEHOLDER.search(uri):
            raise ConfigError(f"{key}: {found[0]} is filled in when a deployment runs: write the address out here")


def _read_yaml(uri: str) -> dict[str, Any]:
    try:
        text = StoragePath.from_uri(uri).read().decode()
    except FileNotFoundError:
        raise ConfigError(f"config: no file {uri!r}: name a YAML file that the worker can read") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: cannot read {uri!r} ({type(error).__name__}): check the file and access") from None
    return parse(text, uri)
