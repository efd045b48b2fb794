"""Task runners: what does the shards (a thread of this process, Ray or Dask), and what each needs before any work."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import load_key
from anonymizer.errors import ConfigError, CustodianKeyError
from flows.runtime.prefect_settings import apply_defaults, override_environment

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

SHARDS_FLOW = "anonymize-shards"  # does a range of shards in a worker
LIBRARIES = {"ray": ("prefect_ray", "ray"), "dask": ("prefect_dask", "distributed")}


def check(config: RunConfig) -> None:
    """Raise ConfigError if an extra or a server is missing, CustodianKeyError if other processes would lack the key."""
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
    """Return whether other processes than this one do the shards."""
    return config.run.runner != "local" or config.run.dispatch == "workers"


@contextmanager
def ray_runner(config: RunConfig) -> Iterator[TaskRunner[Any]]:
    """Yield a runner on the cluster of RAY_ADDRESS or one on this machine; a task has a GPU if its model is on one."""
    import ray
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options
    from ray.job_config import JobConfig

    # What a worker prints stays with it.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING, "namespace": "prefect"}
    # Ray puts the working directory first on its workers' path, unless the job says that it comes from Ray's client.
    options["job_config"] = JobConfig(_client_job=True)
    if not os.environ.get("RAY_ADDRESS"):  # "local", so not a cluster that is already running here
        options |= {"address": "local", "num_cpus": config.run.workers, "include_dashboard": False}
    # It makes a token that keeps others on this machine out, and would say so in the middle of the progress bar.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    with override_environment({"RAY_USAGE_STATS_ENABLED": "0"}), ExitStack() as stack:
        with _connection_errors("ray", "RAY_ADDRESS"):
            if not ray.is_initialized():
                ray.init(**options)
                stack.callback(ray.shutdown)
            available = ray.cluster_resources().get("GPU", 0)
        stack.enter_context(remote_options(num_cpus=1, num_gpus=gpus_per_task(config, available)))
        yield RayTaskRunner()  # which takes the cluster that is connected


def gpus_per_task(config: RunConfig, available: float) -> int:
    """Return 0 or 1. ConfigError if the model needs a GPU and no node has one."""
    device = config.model.device
    if device.startswith("cuda") and not available:
        raise ConfigError(f"model.device {device}: no node of the Ray cluster has a GPU: use auto, or cpu")
    return int(device.startswith("cuda") or (device == "auto" and available > 0))


@contextmanager
def dask_runner(config: RunConfig) -> Iterator[TaskRunner[Any]]:
    """Yield a runner on the cluster of DASK_SCHEDULER_ADDRESS or one on this machine."""
    import dask

    dask.config.update_defaults({"logging": {"distributed": "warning"}})  # before it is imported
    from distributed import Client, LocalCluster
    from prefect_dask import DaskTaskRunner

    address, client_options = dask.config.get("scheduler-address", None), dict[str, Any]()
    with ExitStack() as stack:
        with _connection_errors("dask", "DASK_SCHEDULER_ADDRESS"):
            if not address:
                # Its workers hold the key: certificates of its own keep others on this machine out.
                cluster = LocalCluster(
                    n_workers=config.run.workers, threads_per_worker=1, security=True,
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                )  # fmt: skip
                address = stack.enter_context(cluster).scheduler_address
                client_options = {"security": cluster.security}
            Client(address, set_as_default=False, **client_options).close()
        yield DaskTaskRunner(address=address, client_kwargs=client_options)


@contextmanager
def _connection_errors(runner: str, variable: str) -> Iterator[None]:
    """Raise ConfigError for whatever a cluster raises that does not answer or start."""
    try:
        yield
    except Exception as error:
        raise ConfigError(
            f"run.runner {runner}: the cluster does not answer ({type(error).__name__}): check {variable}, or unset it "
            "to have one on this machine"
        ) from None


def _check_deployment(name: str) -> None:
    """Raise ConfigError unless a server has this deployment."""
    apply_defaults()
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
