"""Ranges of shards for the workers of a deployment: started, waited for, started again where shards are left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from prefect.client.orchestration import SyncPrefectClient, get_client

from anonymizer.config import RunConfig
from anonymizer.records import ShardSummary
from flows.jobs import release as release_job
from flows.runtime import range_runs
from flows.runtime.range_runs import RangeRun, ShardRange, tolerate_server_outage

POLL_SECONDS = 1.0
LEDGER_POLL_SECONDS = 10.0  # while no range ends: a store lists 1,000 names at a time
RANGES_PER_WORKER = 4  # so that all have work until the end ...
MIN_RANGE_LENGTH = 8  # ... unless ranges are shorter than this: a process starts and loads the model for each


def run_ranges(config: RunConfig, shards: Sequence[int]) -> Iterator[ShardSummary | BaseException]:
    """Yield the summary of each shard once the ledger has it, and an error for each range that left some for good."""
    waiting, running = deque(split_into_ranges(shards, config.run.workers)), list[RangeRun]()
    missing, looked = set(shards), time.monotonic()
    with get_client(sync_client=True) as client, _cancelled_on_exit(client, running):
        with tolerate_server_outage():
            range_runs.cancel_orphans(client, config)
        while waiting or running:
            with tolerate_server_outage():
                while waiting and len(running) < config.run.workers:
                    running.append(range_runs.start_range(config, waiting[0]))
                    waiting.popleft()
            time.sleep(POLL_SECONDS)
            states = [(run, range_runs.read_state(client, run)) for run in running]
            ended = [(run, state) for run, state in states if state is not None and state.is_final()]
            if ended or time.monotonic() - looked > LEDGER_POLL_SECONDS:
                for run, state in states:
                    if stopped := range_runs.stop_if_stalled(client, run, state, config.run.timeout):
                        ended.append((run, stopped))
                uncommitted, looked = set(release_job.list_uncommitted(config)), time.monotonic()
                for shard in sorted(missing - uncommitted):
                    yield release_job.summarize_shard(config, shard)
                missing &= uncommitted
            for run, state in ended:
                running.remove(run)
                if left := [shard for shard in run.range.shards if shard in missing]:
                    if run.range.tries < config.run.retries:
                        waiting.append(ShardRange(left, run.range.tries + 1))
                    else:
                        yield range_runs.read_error(config, run, state, left)


def split_into_ranges(shards: Sequence[int], workers: int) -> Iterator[ShardRange]:
    """Yield ranges whose lengths differ by one at most: one for each worker, or several where they are long."""
    count = min(len(shards), max(workers, min(workers * RANGES_PER_WORKER, len(shards) // MIN_RANGE_LENGTH)))
    for i in range(count):
        yield ShardRange(shards[i * len(shards) // count : (i + 1) * len(shards) // count])


@contextmanager
def _cancelled_on_exit(client: SyncPrefectClient, running: Sequence[RangeRun]) -> Iterator[None]:
    try:
        yield
    finally:
        for run in running:
            range_runs.cancel(client, run)
