"""How shards reach what does them: tasks of this flow run, or ranges for the workers of a deployment."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from prefect import task
from prefect.futures import PrefectFuture, as_completed

from anonymizer.config import RunConfig
from anonymizer.errors import ReportableError, ShardError
from anonymizer.records import ShardSummary
from anonymizer.storage.prefetch import chunked
from flows.jobs import release as release_job
from flows.jobs.progress import current_progress
from flows.runtime import gpu_limit, task_runners, worker_ranges
from flows.runtime.stages import log_stage

TAGS = ["anonymizer", "release", "shard"]
WINDOW = 128  # tasks submitted and not done: enough for as many processes, and 10,000 shards are not 10,000 futures

Result = ShardSummary | BaseException


@task(name="shard", task_run_name="shard-{shard}", tags=TAGS, persist_result=False, retry_delay_seconds=1)
def run_shard(shard: int, config: RunConfig) -> ShardSummary:
    """Do one shard, unless it is committed."""
    progress, reported = current_progress(), 0

    def report(done: int) -> None:
        nonlocal reported
        progress.advance(done - reported)
        reported = done

    try:
        with gpu_limit.gpu_slot(config.model.device), log_stage(f"shard {shard}") as count:
            summary = release_job.run_shard(config, shard, report)
            count(summary)
    except BaseException:
        progress.advance(-reported)  # a retry begins with the first picture again
        raise
    report(summary.read)
    return summary


def run_shards(config: RunConfig, shards: Sequence[int]) -> Iterator[Result]:
    """Yield the summary of each shard once it is committed, and an error for each task or range that failed."""
    run = worker_ranges.run_ranges if config.run.dispatch == "workers" else run_as_tasks
    for result in run(config, shards):
        if isinstance(result, ShardSummary) and task_runners.is_distributed(config):  # progress is of this process only
            current_progress().advance(result.read)
        yield result


def run_as_tasks(config: RunConfig, shards: Sequence[int]) -> Iterator[Result]:
    """Submit a task for each shard to the task runner of this flow; yield what comes of each, in no order."""
    shard_task = run_shard.with_options(retries=config.run.retries)
    in_flight = deque[list[PrefectFuture[ShardSummary]]]()
    for numbers in chunked(shards, WINDOW // 2):
        in_flight.append([shard_task.submit(shard, config) for shard in numbers])
        if len(in_flight) == 2:  # while one half of the window is waited for, the other half is worked on
            yield from map(_result_of, as_completed(in_flight.popleft()))
    for futures in in_flight:
        yield from map(_result_of, as_completed(futures))


def raise_if_incomplete(config: RunConfig, problems: Sequence[BaseException], shards: Sequence[int]) -> None:
    """Raise the first problem that may be repeated, or ShardError, if the ledger lacks one of ``shards``."""
    left = set(release_job.list_uncommitted(config)) & set(shards)
    if not left:
        return
    for problem in problems:
        if isinstance(problem, ReportableError):  # no space, another key: says more than how many shards failed
            raise problem
    first = next((problem for problem in problems if isinstance(problem, ShardError)), "see restricted/errors/")
    raise ShardError(f"{len(left)} of {len(shards)} shards failed: {first}: run again to finish them")


def _result_of(future: PrefectFuture[ShardSummary]) -> Result:
    """Return what a task returned, or the error that it or its process ended with."""
    try:
        future.wait()
        result: Result = future.result(raise_on_failure=False)
    except Exception as error:  # of Ray or Dask: whatever it holds stays here
        return ShardError(f"a worker process was lost ({type(error).__name__})")
    return result
