"""A range of shards as a flow run in a worker: started, watched, and cancelled where it is stalled or lost."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, Artifact, FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_flow_run
from prefect.states import Cancelling, Crashed

from anonymizer import errors
from anonymizer.config import RunConfig
from anonymizer.data.sources.files import to_printable
from anonymizer.errors import AnonymizerError, ReportableError, ShardError
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath

STALLED, LOST = "no picture was finished in", "nothing was heard of its process for"
LOST_SECONDS = 180.0  # its progress artifact is updated every 20 (``progress_artifact``)


@dataclass(frozen=True)
class ShardRange:
    """Shards in order, how often they were started before, and a key for this time."""

    shards: Sequence[int]
    tries: int = 0
    idempotency_key: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass
class StallTimer:
    """A value and since when it has not changed."""

    value: object = None
    since: float = field(default_factory=time.monotonic)

    def is_stalled(self, value: object, seconds: float) -> bool:
        """Return whether the value has been this one for longer; never where it is None, which is unknown."""
        if value is None or value != self.value:
            self.value, self.since = value, time.monotonic()
        return time.monotonic() - self.since > seconds


@dataclass
class RangeRun:
    """A range, the flow run that does it, and when its counts and its artifact last changed."""

    range: ShardRange
    flow_run: UUID
    progress: StallTimer = field(default_factory=StallTimer)
    heartbeat: StallTimer = field(default_factory=StallTimer)


def start_range(config: RunConfig, shard_range: ShardRange) -> RangeRun:
    """Start a range in a worker of the deployment; the same one if asked for twice with one key."""
    first, last = shard_range.shards[0], shard_range.shards[-1]
    flow_run: Any = run_deployment(
        config.run.deployment,
        parameters={"release": config.output.uri, "first": first, "last": last},
        flow_run_name=f"shards-{first}-{last}",
        timeout=0,  # do not wait for it
        idempotency_key=shard_range.idempotency_key,  # where an answer was lost, asking again starts no second one
    )
    return RangeRun(shard_range, flow_run.id)


def cancel_orphans(client: SyncPrefectClient, config: RunConfig) -> None:
    """Cancel ranges of this release that a controller started which is gone. The caller holds the release's lock."""
    not_ended = [kind for kind in StateType if kind not in TERMINAL_STATES]
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=not_ended))),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[config.run.deployment.partition("/")[2]])),
    )
    for run in runs:
        if _output_uri(run) == config.output.uri:
            cancel(client, RangeRun(ShardRange(()), run.id))


def _output_uri(run: FlowRun) -> object:
    """Return where a range's release goes; None for a run started by hand with other parameters."""
    return run.parameters.get("release")


def read_state(client: SyncPrefectClient, run: RangeRun) -> State[Any] | None:
    """Return the state of a range's flow run; None while the server is away."""
    with tolerate_server_outage():
        try:
            return client.read_flow_run(run.flow_run).state
        except ObjectNotFound:
            return Crashed(message="its flow run was deleted")
    return None


def stop_if_stalled(
    client: SyncPrefectClient, run: RangeRun, state: State[Any] | None, seconds: float
) -> State[Any] | None:
    """Cancel a range whose process is gone, or that finished no picture for ``seconds``; return how it is left.

    None for any other. Should it go on all the same, the first of two commits of a shard counts.
    """
    artifacts = _progress_artifacts(client, run) if state is not None and state.is_running() else None
    updates, shares = (
        None if artifacts is None else [(artifact.id, getattr(artifact, name)) for artifact in artifacts]
        for name in ("updated", "data")
    )
    is_lost, is_stalled = run.heartbeat.is_stalled(updates, LOST_SECONDS), run.progress.is_stalled(shares, seconds)
    if not is_lost and not is_stalled:
        return None
    cancel(client, run)
    return Crashed(message=f"{LOST} {LOST_SECONDS:g} s" if is_lost else f"{STALLED} {seconds:g} s (run.timeout)")


def _progress_artifacts(client: SyncPrefectClient, run: RangeRun) -> Sequence[Artifact] | None:
    """Return the progress artifact of each attempt of the flow run; None while the server is away."""
    with tolerate_server_outage():
        own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.flow_run]))
        return sorted(client.read_artifacts(artifact_filter=own), key=lambda artifact: artifact.id)
    return None


def cancel(client: SyncPrefectClient, run: RangeRun) -> None:
    """Ask for the end of a flow run; the worker ends its process."""
    with suppress(Exception):  # whatever made us stop it goes on
        client.set_flow_run_state(run.flow_run, Cancelling(), force=True)


@contextmanager
def pass_error_on(release: str) -> Iterator[None]:
    """Write an error of this flow run that may be repeated where the flow run that started it reads it.

    In the restricted half, since a state has only the text of an error, and Prefect persists no results here.
    """
    try:
        yield
    except ReportableError as error:
        with suppress(Exception):  # the disk may be full
            document = {"error": type(error).__name__, "message": str(error)}
            _error_file(release, UUID(this_flow_run.id)).write_uncommitted(json.dumps(document).encode())
        raise


def read_error(config: RunConfig, run: RangeRun, state: State[Any], shards: Sequence[int]) -> AnonymizerError:
    """Return the error of a range that left these shards: the one its process passed on, or a ShardError."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        document = json.loads(_error_file(config.output.uri, run.flow_run).read())
        kind = getattr(errors, str(document["error"]), None)
        if isinstance(kind, type) and issubclass(kind, ReportableError):  # an attacker may have written the file
            return kind(to_printable(str(document["message"]), safe="%"))
    message = state.message or ""
    reason = message if message.startswith((STALLED, LOST)) else f"{state.type.value.lower()} in a worker"
    return ShardError(f"shards {shards[0]} to {shards[-1]}: {reason}")


def _error_file(release: str, flow_run: UUID) -> StoragePath:
    return Release.at(release).restricted / "errors" / f"range-{flow_run}.json"


@contextmanager
def tolerate_server_outage() -> Iterator[None]:
    """Ignore that the server is restarted or too busy: the caller asks again later."""
    try:
        yield
    except httpx.TransportError:
        pass
    except httpx.HTTPStatusError as error:
        if error.response.status_code < 500:
            raise
