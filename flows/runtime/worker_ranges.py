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
from flows.runtime.range_runs import RangeRun, ShardRange

POLL_SECONDS = 1.0
LEDGER_POLL_SECONDS = (
    10.0  # between two looks at ledger and progress while no range ends: a store lists 1,000 names at a time
)
RANGES_PER_WORKER = 4  # ranges for each that is out at once, so that all have work until the end ...
MIN_RANGE_LENGTH = 8  # ... unless they are shorter than this: a process starts and loads the model for each


def run_ranges(config: RunConfig, shards: Sequence[int]) -> Iterator[dict[str, Any] | BaseException]:
    """The summary of each shard once the ledger has it, and an error for each range of which some are left for good."""
    todo, out = deque(split_into_ranges(shards, config.run.workers)), list[RangeRun]()
    missing, looked = set(shards), time.monotonic()
    with get_client(sync_client=True) as client, _cancelled_on_exit(client, out):
        with range_runs.tolerate_server_outage():
            range_runs.cancel_orphans(client, config)
        while todo or out:
            with range_runs.tolerate_server_outage():
                while todo and len(out) < config.run.workers:
                    out.append(range_runs.start_range(config, todo[0]))
                    todo.popleft()
            time.sleep(POLL_SECONDS)
            states = [(one, range_runs.read_state(client, one)) for one in out]
            ended = [(one, state) for one, state in states if state is not None and state.is_final()]
            if ended or time.monotonic() - looked > LEDGER_POLL_SECONDS:
                for one, state in states:
                    if (left_so := range_runs.stop_if_stalled(client, one, state, config.run.timeout)) is not None:
                        ended.append((one, left_so))
                left, looked = set(release_job.list_uncommitted(config)), time.monotonic()
                for shard in sorted(missing - left):
                    yield asdict(release_job.summarize_shard(config, shard))
                missing &= left
            for one, state in ended:
                out.remove(one)
                if again := [shard for shard in one.range.shards if shard in missing]:
                    if one.range.tries < config.run.retries:
                        todo.append(ShardRange(again, one.range.tries + 1))
                    else:
                        yield range_runs.error_of(state, again)


def split_into_ranges(shards: Sequence[int], workers: int) -> Iterator[ShardRange]:
    """Ranges whose lengths differ by one at most: one for each worker, or several where they are long."""
    count = min(len(shards), max(workers, min(workers * RANGES_PER_WORKER, len(shards) // MIN_RANGE_LENGTH)))
    for i in range(count):
        yield ShardRange(shards[i * len(shards) // count : (i + 1) * len(shards) // count])


@contextmanager
def _cancelled_on_exit(client: SyncPrefectClient, out: Sequence[RangeRun]) -> Iterator[None]:
    """Whoever stops waiting stops those who work for him."""
    try:
        yield
    finally:
        for one in out:
            range_runs.cancel(client, one)
