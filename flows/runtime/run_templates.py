"""The configuration of a flow run, and one configuration for a series: another output each month."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel

from anonymizer.config import AuditConfig, CalibrationConfig, RunConfig, read_tree
from anonymizer.errors import ConfigError
from anonymizer.policy.calibration import build_resolved
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.runtime import allowed_configs

C = TypeVar("C", bound=BaseModel)

# Names sort as their dates do.
DATE_FORMATS = {"month": "%Y-%m", "date": "%Y-%m-%d", "time": "%Y-%m-%dT%H%M%S"}
NEWEST = "{newest}"
PLACEHOLDER = re.compile(r"\{(\w*)\}")


def read_config(kind: type[C], config: C | Mapping[str, Any] | str) -> C:
    """Return the configuration that a flow run was given: itself, as nested mappings, or the address of a YAML file.

    ConfigError if no file is there, or a value is wrong.
    """
    if isinstance(config, kind):
        return config
    assert not isinstance(config, BaseModel), f"a {kind.__name__} is needed, got a {type(config).__name__}"
    return build_resolved(kind, config if isinstance(config, Mapping) else read_tree(config))


def run_config(config: RunConfig | Mapping[str, Any] | str) -> RunConfig:
    """Return the settings of a release, with ``{month}`` and ``{newest}`` filled in for this flow run's schedule."""
    return fill_templates(allowed_configs.check(read_config(RunConfig, config)), scheduled_start())


def audit_config(config: AuditConfig | Mapping[str, Any] | str) -> AuditConfig:
    """Return the settings of an audit, with ``{month}`` filled in."""
    audit = allowed_configs.check(read_config(AuditConfig, config), is_filled=True)
    return audit.model_copy(update={"release": fill_date("release", audit.release, scheduled_start())})


def calibration_config(config: CalibrationConfig | Mapping[str, Any] | str) -> CalibrationConfig:
    """Return the settings of a calibration, with ``{month}`` filled in."""
    calibration = allowed_configs.check(read_config(CalibrationConfig, config), is_filled=True)
    return calibration.model_copy(update={"folder": fill_date("folder", calibration.folder, scheduled_start())})


def scheduled_start() -> datetime:
    """Return when this flow run was to start first, in UTC: the same for each retry of it."""
    from prefect.runtime import flow_run  # slow to import

    start: datetime = flow_run.scheduled_start_time
    return start.astimezone(UTC)


def fill_templates(config: RunConfig, start: datetime) -> RunConfig:
    """Return the same settings with the addresses of one release of the series."""
    uri = fill_date("output.uri", config.output.uri, start)
    previous = config.previous
    if previous == NEWEST:
        previous = newest_release_before(uri)
    elif previous is not None:
        previous = fill_date("previous", previous, start)
    return config.model_copy(update={"output": config.output.model_copy(update={"uri": uri}), "previous": previous})


def fill_date(key: str, uri: str, start: datetime) -> str:
    """Return the address with the date for ``{month}``, ``{date}`` or ``{time}``. ConfigError for other braces."""
    for name in PLACEHOLDER.findall(uri):
        if name not in DATE_FORMATS:
            known = ", ".join(f"{{{name}}}" for name in DATE_FORMATS)
            raise ConfigError(f"{key}: {{{name}}} stands for nothing there: known: {known}")
    return PLACEHOLDER.sub(lambda match: start.strftime(DATE_FORMATS[match[1]]), uri)


def newest_release_before(uri: str) -> str | None:
    """Return the last published release, by name, in the folder of ``uri`` that comes before it.

    A release that was begun keeps its previous one. ConfigError where an erased release has no successor, and where
    there is none, since it may have been removed.
    """
    from anonymizer.release import plan  # slow to import

    release = Release.at(uri)
    if release.plan.exists():
        return plan.read_config(release).previous
    folder, _, own = uri.rstrip("/").rpartition("/")
    siblings = [path.name for path in StoragePath.from_uri(folder or ".").children()]
    for name in sorted((name for name in siblings if name < own), reverse=True):
        sibling_uri = f"{folder}/{name}" if folder else name
        sibling = Release.at(sibling_uri)
        if sibling.is_published:
            return sibling_uri
        if sibling.event_log.exists() and not sibling.plan.exists():
            raise ConfigError(
                f"previous {NEWEST}: {name!r} was erased, and no later release beside it is published: name the one "
                "that took its place, or erased people come back"
            )
    raise ConfigError(
        f"previous {NEWEST}: no published release lies beside {own!r}: leave previous out for the first of a series; "
        "if there were others, restore them, or erased people come back"
    )


def refuse_placeholders(config: RunConfig) -> None:
    """Raise ConfigError where an address waits for a date that only a deployed flow run has."""
    for key, uri in {"output.uri": config.output.uri, "previous": config.previous or ""}.items():
        if match := PLACEHOLDER.search(uri):
            raise ConfigError(f"{key}: {match[0]} is filled in when a deployment runs: write the address out here")
