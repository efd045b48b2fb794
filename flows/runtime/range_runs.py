"""A range of shards in somebody else's hands: a flow run that is asked for, looked at, and stopped where it hangs."""

from __future__ import annotations

import re
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
from prefect.states import Cancelling, Crashed

from anonymizer import errors
from anonymizer.config import RunConfig
from anonymizer.errors import AnonymizerError, ReportableError, ShardError

STALLED, LOST = "no picture was finished in", "nothing was heard of its process for"
LOST_SECONDS = 180.0  # its share is told again every 20 (``flows.share``)


@dataclass(frozen=True)
class ShardRange:
    """Shards from the first to the last of these, how often they were handed out before, and a name for this time."""

    shards: Sequence[int]
    tries: int = 0
    idempotency_key: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass
class StallTimer:
    """Since when something has been as it is."""

    value: object = None
    since: float = field(default_factory=time.monotonic)

    def is_stalled(self, value: object, seconds: float) -> bool:
        """Whether it has been so for longer; not where it is none, and nobody can say."""
        if value is None or value != self.value:
            self.value, self.since = value, time.monotonic()
        return time.monotonic() - self.since > seconds


@dataclass
class RangeRun:
    """A range that somebody has, or will have; how far it is, and when it last said so."""

    range: ShardRange
    flow_run: UUID
    progress: StallTimer = field(default_factory=StallTimer)
    heartbeat: StallTimer = field(default_factory=StallTimer)


def start_range(config: RunConfig, shard_range: ShardRange) -> RangeRun:
    first, last = shard_range.shards[0], shard_range.shards[-1]
    flow_run: Any = run_deployment(
        config.run.deployment,
        parameters={"config": config.model_dump(mode="json"), "first": first, "last": last},
        flow_run_name=f"shards-{first}-{last}",
        timeout=0,  # others are handed out meanwhile
        idempotency_key=shard_range.idempotency_key,  # an answer that was lost is asked for again
    )
    return RangeRun(shard_range, flow_run.id)


def cancel_orphans(client: SyncPrefectClient, config: RunConfig) -> None:
    """Stop the ranges of this release that a controller handed out which is gone: whoever calls has its lock."""
    not_ended = [kind for kind in StateType if kind not in TERMINAL_STATES]
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=not_ended))),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[config.run.deployment.partition("/")[2]])),
    )
    for run in found:
        if _output_uri(run) == config.output.uri:
            cancel(client, RangeRun(ShardRange(()), run.id))


def _output_uri(run: FlowRun) -> object:
    """Where a range's release goes; none of what somebody started by hand with other parameters."""
    try:
        return run.parameters["config"]["output"]["uri"]
    except (KeyError, TypeError):
        return None


def read_state(client: SyncPrefectClient, run: RangeRun) -> State[Any] | None:
    """How a range stands; none while the server is away."""
    with tolerate_server_outage():
        try:
            return client.read_flow_run(run.flow_run).state
        except ObjectNotFound:
            return Crashed(message="its flow run was deleted")
    return None


def stop_if_stalled(
    client: SyncPrefectClient, run: RangeRun, state: State[Any] | None, seconds: float
) -> State[Any] | None:
    """How a range is left whose process is gone, or runs and has finished no picture for so long; none for any other.

    It is stopped. Should it go on all the same, of two who commit a shard the first one counts.
    """
    told = _progress_artifacts(client, run) if state is not None and state.is_running() else None
    gone = run.heartbeat.is_stalled(
        None if told is None else [(share.id, share.updated) for share in told], LOST_SECONDS
    )
    stuck = run.progress.is_stalled(None if told is None else [(share.id, share.data) for share in told], seconds)
    if not gone and not stuck:
        return None
    cancel(client, run)
    return Crashed(message=f"{LOST} {LOST_SECONDS:g} s" if gone else f"{STALLED} {seconds:g} s (run.timeout)")


def cancel(client: SyncPrefectClient, run: RangeRun) -> None:
    with suppress(Exception):  # whatever made us stop it goes on
        client.set_flow_run_state(run.flow_run, Cancelling(), force=True)


def error_of(state: State[Any], shards: Sequence[int]) -> AnonymizerError:
    """What a range that left these shards says of itself: what its process raised, if that may be repeated."""
    message = state.message or ""
    raised = re.search(r"(\w+Error): (.+)", message, re.DOTALL)
    kind = getattr(errors, raised[1], None) if raised else None
    if raised and isinstance(kind, type) and issubclass(kind, ReportableError):
        return kind(raised[2])
    why = message if message.startswith((STALLED, LOST)) else f"{state.type.value.lower()} in a worker"
    return ShardError(f"shards {shards[0]} to {shards[-1]}: {why}")


@contextmanager
def tolerate_server_outage() -> Iterator[None]:
    """One that is restarted, or too busy, is asked again later."""
    try:
        yield
    except httpx.TransportError:
        pass
    except httpx.HTTPStatusError as error:
        if error.response.status_code < 500:
            raise


def _progress_artifacts(client: SyncPrefectClient, run: RangeRun) -> Sequence[Artifact] | None:
    """Its share, from each of its tries; none while the server is away."""
    with tolerate_server_outage():
        own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.flow_run]))
        return sorted(client.read_artifacts(artifact_filter=own), key=lambda share: share.id)
    return None
