"""Ranges of shards for the workers of a deployment: handed out, waited for, handed out again where shards are left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client

from anonymizer.config import RunConfig
from flows.jobs import release as release_job
from flows.runtime import range_runs
from flows.runtime.range_runs import Out, Range

POLL_SECONDS = 1.0
LOOK_SECONDS = 10.0  # between two looks at ledger and progress while no range ends: a store lists 1,000 names at a time
FOR_EACH = 4  # ranges for each that is out at once, so that all have work until the end ...
LEAST = 8  # ... unless they are shorter than this: a process starts and loads the model for each


def over(config: RunConfig, shards: Sequence[int]) -> Iterator[dict[str, Any] | BaseException]:
    """The summary of each shard once the ledger has it, and an error for each range of which some are left for good."""
    todo, out = deque(cut(shards, config.run.workers)), list[Out]()
    missing, looked = set(shards), time.monotonic()
    with get_client(sync_client=True) as client, _taken_back(client, out):
        with range_runs.server_may_be_away():
            range_runs.stop_forgotten(client, config)
        while todo or out:
            with range_runs.server_may_be_away():
                while todo and len(out) < config.run.workers:
                    out.append(range_runs.hand_out(config, todo[0]))
                    todo.popleft()
            time.sleep(POLL_SECONDS)
            states = [(one, range_runs.state_of(client, one)) for one in out]
            ended = [(one, state) for one, state in states if state is not None and state.is_final()]
            if ended or time.monotonic() - looked > LOOK_SECONDS:
                for one, state in states:
                    if (left_so := range_runs.hangs(client, one, state, config.run.timeout)) is not None:
                        ended.append((one, left_so))
                left, looked = set(release_job.uncommitted(config)), time.monotonic()
                for shard in sorted(missing - left):
                    yield asdict(release_job.summary_of(config, shard))
                missing &= left
            for one, state in ended:
                out.remove(one)
                if again := [shard for shard in one.range.shards if shard in missing]:
                    if one.range.tries < config.run.retries:
                        todo.append(Range(again, one.range.tries + 1))
                    else:
                        yield range_runs.problem(state, again)


def cut(shards: Sequence[int], workers: int) -> Iterator[Range]:
    """Ranges whose lengths differ by one at most: one for each worker, or several where they are long."""
    count = min(len(shards), max(workers, min(workers * FOR_EACH, len(shards) // LEAST)))
    for i in range(count):
        yield Range(shards[i * len(shards) // count : (i + 1) * len(shards) // count])


@contextmanager
def _taken_back(client: SyncPrefectClient, out: Sequence[Out]) -> Iterator[None]:
    """Whoever stops waiting stops those who work for him."""
    try:
        yield
    finally:
        for one in out:
            range_runs.stop(client, one)
