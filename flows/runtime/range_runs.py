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

from anonymizer.config import RunConfig
from anonymizer.errors import AnonymizerError, ShardError
from flows.jobs.release import TELLABLE

HANGS, GONE = "no picture was finished in", "nothing was heard of its process for"
GONE_SECONDS = 180.0  # its share is told again every 20 (``flows.share``)


@dataclass(frozen=True)
class Range:
    """Shards from the first to the last of these, how often they were handed out before, and a name for this time."""

    shards: Sequence[int]
    tries: int = 0
    once: str = field(default_factory=lambda: secrets.token_hex(8))


@dataclass
class Still:
    """Since when something has been as it is."""

    seen: object = None
    since: float = field(default_factory=time.monotonic)

    def stands(self, now: object, seconds: float) -> bool:
        """Whether it has been so for longer; not where it is none, and nobody can say."""
        if now is None or now != self.seen:
            self.seen, self.since = now, time.monotonic()
        return time.monotonic() - self.since > seconds


@dataclass
class Out:
    """A range that somebody has, or will have; how far it is, and when it last said so."""

    range: Range
    flow_run: UUID
    progress: Still = field(default_factory=Still)
    beat: Still = field(default_factory=Still)


def hand_out(config: RunConfig, some: Range) -> Out:
    first, last = some.shards[0], some.shards[-1]
    flow_run: Any = run_deployment(
        config.run.deployment,
        parameters={"config": config.model_dump(mode="json"), "first": first, "last": last},
        flow_run_name=f"shards-{first}-{last}",
        timeout=0,  # others are handed out meanwhile
        idempotency_key=some.once,  # an answer that was lost is asked for again
    )
    return Out(some, flow_run.id)


def stop_forgotten(client: SyncPrefectClient, config: RunConfig) -> None:
    """Stop the ranges of this release that a controller handed out which is gone: whoever calls has its lock."""
    not_ended = [kind for kind in StateType if kind not in TERMINAL_STATES]
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=not_ended))),
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[config.run.deployment.partition("/")[2]])),
    )
    for run in found:
        if _output_of(run) == config.output.uri:
            stop(client, Out(Range(()), run.id))


def _output_of(run: FlowRun) -> object:
    """Where a range's release goes; none of what somebody started by hand with other parameters."""
    try:
        return run.parameters["config"]["output"]["uri"]
    except (KeyError, TypeError):
        return None


def state_of(client: SyncPrefectClient, one: Out) -> State[Any] | None:
    """How a range stands; none while the server is away."""
    with server_may_be_away():
        try:
            return client.read_flow_run(one.flow_run).state
        except ObjectNotFound:
            return Crashed(message="its flow run was deleted")
    return None


def hangs(client: SyncPrefectClient, one: Out, state: State[Any] | None, seconds: float) -> State[Any] | None:
    """How a range is left whose process is gone, or runs and has finished no picture for so long; none for any other.

    It is stopped. Should it go on all the same, of two who commit a shard the first one counts.
    """
    told = _told(client, one) if state is not None and state.is_running() else None
    gone = one.beat.stands(None if told is None else [(share.id, share.updated) for share in told], GONE_SECONDS)
    stuck = one.progress.stands(None if told is None else [(share.id, share.data) for share in told], seconds)
    if not gone and not stuck:
        return None
    stop(client, one)
    return Crashed(message=f"{GONE} {GONE_SECONDS:g} s" if gone else f"{HANGS} {seconds:g} s (run.timeout)")


def stop(client: SyncPrefectClient, one: Out) -> None:
    with suppress(Exception):  # whatever made us stop it goes on
        client.set_flow_run_state(one.flow_run, Cancelling(), force=True)


def problem(state: State[Any], shards: Sequence[int]) -> AnonymizerError:
    """What a range that left these shards says of itself: what its process raised, if that may be repeated."""
    message = state.message or ""
    raised = re.search(r"(\w+Error): (.+)", message, re.DOTALL)
    for kind in TELLABLE:
        if raised and raised[1] == kind.__name__:
            return kind(raised[2])
    why = message if message.startswith((HANGS, GONE)) else f"{state.type.value.lower()} in a worker"
    return ShardError(f"shards {shards[0]} to {shards[-1]}: {why}")


@contextmanager
def server_may_be_away() -> Iterator[None]:
    """One that is restarted, or too busy, is asked again later."""
    try:
        yield
    except httpx.TransportError:
        pass
    except httpx.HTTPStatusError as error:
        if error.response.status_code < 500:
            raise


def _told(client: SyncPrefectClient, one: Out) -> Sequence[Artifact] | None:
    """Its share, from each of its tries; none while the server is away."""
    with server_may_be_away():
        own = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[one.flow_run]))
        return sorted(client.read_artifacts(artifact_filter=own), key=lambda share: share.id)
    return None
