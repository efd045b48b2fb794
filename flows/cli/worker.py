"""The command that does flow runs of a deployment, pinned to allowed configurations."""

from __future__ import annotations

import os

import click

from anonymizer.errors import ConfigError
from flows.runtime import allowed_configs, prefect_settings


@click.command()
@click.argument("pool")
@click.option("--limit", default=1, show_default=True, type=click.IntRange(1), help="Flow runs at once.")
@click.option("--name", help="Name of this worker, as Prefect shows it.  [default: a random one]")
def worker(pool: str, limit: int, name: str | None) -> None:
    """Do flow runs with allowed settings only.

    ANONYMIZER_POLICY names a configuration, or a folder of them with a SHA256SUMS. Whatever is asked for over Prefect's
    API, only this program's release, audit, calibrate and anonymize-shards run, and only on those.

    \b
    ANONYMIZER_POLICY=/etc/anonymizer/allowed anonymizer worker anonymizer-cpu
    """
    if not allowed_configs.is_pinned():
        raise ConfigError(
            f"{allowed_configs.VARIABLE}: not set: name the configurations that this worker may run, or use `prefect "
            "worker start`, which runs anything"
        )
    for kind in allowed_configs.KINDS:
        list(allowed_configs.read_allowed(kind))
    prefect_settings.apply_defaults()
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "30")
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise ConfigError("PREFECT_API_URL: not set: name the Prefect server whose work pool this is")
    from flows.runtime import pinned_worker

    pinned_worker.start(pool, limit, name)


COMMANDS = (worker,)
