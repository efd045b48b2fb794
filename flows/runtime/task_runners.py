"""What does the shards: a thread of this process, Ray or Dask; and what each needs, said before any work."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import load_key
from anonymizer.errors import ConfigError, CustodianKeyError
from flows.runtime import prefect_settings

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

SHARDS_FLOW = "anonymize-shards"  # the flow that ranges are handed to
LIBRARIES = {"ray": ("prefect_ray", "ray"), "dask": ("prefect_dask", "distributed")}


def check(config: RunConfig) -> None:
    """ConfigError where an extra or a server is missing, CustodianKeyError where other processes would lack the key."""
    run = config.run
    if missing := [name for name in LIBRARIES.get(run.runner, ()) if find_spec(name) is None]:
        raise ConfigError(f"run.runner {run.runner}: {missing[0]} is missing: pip install 'anonymizer[{run.runner}]'")
    if is_distributed(config) and not load_key(config.key_env).is_persistent:
        how = f"run.runner {run.runner}" if run.dispatch == "inline" else "run.dispatch workers"
        raise CustodianKeyError(
            f"{config.key_env}: not set, and {how} works in several processes, which need the same key: set it in the "
            "environment of each, for example from `openssl rand -hex 32`"
        )
    if run.dispatch == "workers":
        if not run.deployment.startswith(f"{SHARDS_FLOW}/"):
            raise ConfigError(
                f"run.deployment {run.deployment!r}: is a deployment of another flow: name one of {SHARDS_FLOW}"
            )
        _check_deployment(run.deployment)


def is_distributed(config: RunConfig) -> bool:
    """Whether other processes than this one do the shards."""
    return config.run.runner != "local" or config.run.dispatch == "workers"


def task_runner(config: RunConfig) -> AbstractContextManager[TaskRunner[Any]]:
    """A started task runner."""
    if config.run.runner == "ray":
        return _ray(config)
    return _dask(config) if config.run.runner == "dask" else _local()


@contextmanager
def _local() -> Iterator[TaskRunner[Any]]:
    """One thread: shards take turns at the model, which has threads of its own."""
    from prefect.task_runners import ThreadPoolTaskRunner

    local: Any = ThreadPoolTaskRunner(max_workers=1)
    with local as started:
        yield started


@contextmanager
def _ray(config: RunConfig) -> Iterator[TaskRunner[Any]]:
    """The cluster that RAY_ADDRESS names, or one on this machine; a task has a GPU to itself if its model is on one."""
    import ray
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    # What a worker prints stays with it.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not os.environ.get("RAY_ADDRESS"):  # "local": and not one that somebody has started here
        options |= {"address": "local", "num_cpus": config.run.workers, "include_dashboard": False}
    # It makes a token that keeps others on this machine out, and would say so in the middle of the progress bar.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    with (
        prefect_settings.override_environment({"RAY_USAGE_STATS_ENABLED": "0"}),
        ExitStack() as stack,
    ):  # nobody is told
        with _connection_errors("ray", "RAY_ADDRESS"):
            started: TaskRunner[Any] = stack.enter_context(RayTaskRunner(init_kwargs=options))
            at_hand = ray.cluster_resources().get("GPU", 0)
        stack.enter_context(remote_options(num_cpus=1, num_gpus=_gpus_per_task(config, at_hand)))
        yield started


def _gpus_per_task(config: RunConfig, available: float) -> int:
    """GPUs of one task."""
    device = config.model.device
    if device.startswith("cuda") and not available:
        raise ConfigError(f"model.device {device}: no node of the Ray cluster has a GPU: use auto, or cpu")
    return int(device.startswith("cuda") or (device == "auto" and available > 0))


@contextmanager
def _dask(config: RunConfig) -> Iterator[TaskRunner[Any]]:
    """The cluster whose scheduler DASK_SCHEDULER_ADDRESS names, or one on this machine."""
    import dask

    dask.config.update_defaults({"logging": {"distributed": "warning"}})  # before it is imported
    from prefect_dask.task_runners import DaskTaskRunner

    # Its workers hold the key: certificates of its own keep others on this machine out.
    local: dict[str, Any] = {"n_workers": config.run.workers, "threads_per_worker": 1, "security": True}
    local["scheduler_kwargs"] = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    address = dask.config.get("scheduler-address", None)
    with ExitStack() as stack:
        with _connection_errors("dask", "DASK_SCHEDULER_ADDRESS"):
            runner = DaskTaskRunner(**{"address": address} if address else {"cluster_kwargs": local})
            started = stack.enter_context(runner)
            _ = started.client  # which connects when it is first asked for
        yield cast("TaskRunner[Any]", started)


@contextmanager
def _connection_errors(runner: str, variable: str) -> Iterator[None]:
    """ConfigError in place of whatever an engine raises that does not answer or start."""
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"run.runner {runner}: the cluster does not answer ({type(error).__name__}): check {variable}, or unset it "
            "to have one on this machine"
        ) from None


def _check_deployment(name: str) -> None:
    """ConfigError unless a server has this deployment."""
    prefect_settings.apply_defaults()
    from httpx import HTTPError
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise ConfigError(
            "run.dispatch workers: needs a Prefect server with workers: set PREFECT_API_URL, or leave it at inline"
        )
    try:
        with get_client(sync_client=True) as client:
            client.read_deployment_by_name(name)
    except ObjectNotFound:
        raise ConfigError(
            f"run.deployment {name!r}: the Prefect server has no such deployment: `prefect deploy`, see deployments/"
        ) from None
    except HTTPError as error:
        raise ConfigError(
            f"run.dispatch workers: the Prefect server does not answer ({type(error).__name__}): check PREFECT_API_URL"
        ) from None
