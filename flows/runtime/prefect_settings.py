"""Prefect's settings: no telemetry, no stored results; quiet and quick with a temporary server."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flows.runtime import proxies, working_directory

TEMPORARY_SERVER = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
}
DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_TASKS_DEFAULT_PERSIST_RESULT": "false",
}


def apply_defaults() -> None:
    """Set what holds with any server, where the user has not set it; call before Prefect is imported.

    Raises ConfigError where Prefect would read settings from the working directory, and for an unusable proxy.
    """
    working_directory.distrust()
    proxies.bypass_for_loopback()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def user_settings() -> set[str]:
    """Return what the user has set, in the environment, a profile or a file, as names of environment variables."""
    from prefect.settings import get_current_settings

    return set(get_current_settings().to_environment_variables(exclude_unset=True))


@contextmanager
def override_settings(values: Mapping[str, str]) -> Iterator[None]:
    """Set these for Prefect, in this process and those that it starts, for a while."""
    try:
        with override_environment(values):
            _refresh()
            yield
    finally:
        _refresh()


@contextmanager
def override_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set these variables for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}


def _refresh() -> None:
    """Let Prefect read its settings from the environment again."""
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()
