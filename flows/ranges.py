"""Ranges of shards for the workers of a deployment: handed out, waited for, handed out again where shards are left."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed

from anonymizer.config import RunConfig
from anonymizer.errors import AnonymizerError, ShardError
from flows import steps
from flows.steps import TELLABLE

POLL_SECONDS = 1.0
LOOK_SECONDS = 10.0  # between two looks at the ledger while no range ends: a store lists 1,000 names at a time
FOR_EACH = 4  # ranges for each that is out at once, so that all have work until the end ...
LEAST = 8  # ... unless they are shorter than this: a process starts and loads the model for each


@dataclass(frozen=True)
class Range:
    """Shards from the first to the last of these, and how often they were handed out before."""

    shards: Sequence[int]
    tries: int = 0


@dataclass(frozen=True)
class Out:
    """A range that somebody has, or will have."""

    range: Range
    flow_run: UUID


def over(config: RunConfig, shards: Sequence[int]) -> Iterator[dict[str, Any] | BaseException]:
    """The summary of each shard once the ledger has it, and an error for each range of which some are left for good."""
    todo, out = deque(cut(shards, config.run.workers)), list[Out]()
    missing, looked = set(shards), time.monotonic()
    with get_client(sync_client=True) as client, _taken_back(client, out):
        while todo or out:
            with _server_may_be_away():
                while todo and len(out) < config.run.workers:
                    out.append(_hand_out(config, todo[0]))
                    todo.popleft()
            time.sleep(POLL_SECONDS)
            ended = [(one, state) for one in out if (state := _final_state(client, one)) is not None]
            if ended or time.monotonic() - looked > LOOK_SECONDS:
                left, looked = set(steps.uncommitted(config)), time.monotonic()
                for shard in sorted(missing - left):
                    yield asdict(steps.summary_of(config, shard))
                missing &= left
            for one, state in ended:
                out.remove(one)
                if again := [shard for shard in one.range.shards if shard in missing]:
                    if one.range.tries < config.run.retries:
                        todo.append(Range(again, one.range.tries + 1))
                    else:
                        yield _problem(state, again)


def cut(shards: Sequence[int], workers: int) -> Iterator[Range]:
    """Ranges whose lengths differ by one at most: one for each worker, or several where they are long."""
    count = min(len(shards), max(workers, min(workers * FOR_EACH, len(shards) // LEAST)))
    for i in range(count):
        yield Range(shards[i * len(shards) // count : (i + 1) * len(shards) // count])


def _hand_out(config: RunConfig, some: Range) -> Out:
    first, last = some.shards[0], some.shards[-1]
    flow_run: Any = run_deployment(
        config.run.deployment,
        parameters={"config": config.model_dump(mode="json"), "first": first, "last": last},
        flow_run_name=f"shards-{first}-{last}",
        timeout=0,  # others are handed out meanwhile
    )
    return Out(some, flow_run.id)


def _final_state(client: SyncPrefectClient, one: Out) -> State[Any] | None:
    """How a range ended; none while it has not, or the server is away."""
    with _server_may_be_away():
        try:
            state = client.read_flow_run(one.flow_run).state
        except ObjectNotFound:
            return Crashed(message="its flow run was deleted")
        return state if state is not None and state.is_final() else None
    return None


def _problem(state: State[Any], shards: Sequence[int]) -> AnonymizerError:
    """What a range that left these shards says of itself: what its process raised, if that may be repeated."""
    raised = re.search(r"(\w+Error): (.+)", state.message or "", re.DOTALL)
    for kind in TELLABLE:
        if raised and raised[1] == kind.__name__:
            return kind(raised[2])
    return ShardError(f"shards {shards[0]} to {shards[-1]}: {state.type.value.lower()} in a worker")


@contextmanager
def _server_may_be_away() -> Iterator[None]:
    """One that is restarted, or too busy, is asked again later."""
    try:
        yield
    except httpx.TransportError:
        pass
    except httpx.HTTPStatusError as error:
        if error.response.status_code < 500:
            raise


@contextmanager
def _taken_back(client: SyncPrefectClient, out: Sequence[Out]) -> Iterator[None]:
    """Whoever stops waiting stops those who work for him."""
    try:
        yield
    finally:
        for one in out:
            with suppress(Exception):  # whatever stopped us goes on
                client.set_flow_run_state(one.flow_run, Cancelling(), force=True)
