"""How shards reach whoever does them: a bounded window of tasks, or ranges for the workers of a deployment."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from prefect import task
from prefect.futures import PrefectFuture

from anonymizer.config import RunConfig
from anonymizer.errors import ReportableError, ShardError
from flows.jobs import release as release_job
from flows.jobs.progress import current_progress
from flows.runtime import gpu_limit, task_runners, worker_ranges

TAGS = ["anonymizer", "release", "shard"]
WINDOW = 128  # tasks handed over and not done: enough for as many processes, and 10,000 shards are not 10,000 futures

Result = dict[str, Any]  # a ShardSummary


@task(name="shard", task_run_name="shard-{shard}", tags=TAGS, persist_result=False, retry_delay_seconds=1)
def run_shard(shard: int, config: dict[str, Any]) -> Result:
    told = 0

    def progress(done: int) -> None:
        nonlocal told
        current_progress().advance(done - told)
        told = done

    settings = RunConfig.model_validate(config)
    try:
        with gpu_limit.gpu_slot(settings.model.device):
            summary = release_job.run_shard(settings, shard, progress)
    except BaseException:
        current_progress().advance(-told)  # a retry begins with the first picture again
        raise
    progress(summary.read)
    return asdict(summary)


def run_shards(config: RunConfig, shards: Sequence[int]) -> Iterator[Result | BaseException]:
    """The summary of each shard as it is committed, and an error for each task or range that failed for good."""
    results = (
        worker_ranges.run_ranges(config, shards) if config.run.dispatch == "workers" else run_as_tasks(config, shards)
    )
    for result in results:
        if isinstance(result, dict) and task_runners.is_distributed(config):  # whoever watches is in this process only
            current_progress().advance(result["read"])
        yield result


def run_as_tasks(config: RunConfig, shards: Sequence[int]) -> Iterator[Result | BaseException]:
    """One task for each shard."""
    settings, shard_task = config.model_dump(mode="json"), run_shard.with_options(retries=config.run.retries)
    waiting: deque[PrefectFuture[Result]] = deque()
    if not shards:
        return
    with task_runners.task_runner(config) as runner:
        for shard in shards:
            if len(waiting) == WINDOW:
                yield _result_of(waiting.popleft())
            waiting.append(runner.submit(shard_task, {"shard": shard, "config": settings}))
        while waiting:
            yield _result_of(waiting.popleft())


def raise_if_incomplete(config: RunConfig, problems: Sequence[BaseException], shards: Sequence[int]) -> None:
    """Raise what stands in the way: one of ``shards`` that the ledger does not have. The ledger is the truth."""
    left = set(release_job.list_uncommitted(config)) & set(shards)
    if not left:
        return
    for problem in problems:
        if isinstance(problem, ReportableError):  # no space, another key: says more than how many shards failed
            raise type(problem)(str(problem))
    first = next((problem for problem in problems if isinstance(problem, ShardError)), "see restricted/errors/")
    raise ShardError(f"{len(left)} of {len(shards)} shards failed: {first}: run again to finish them")


def _result_of(future: PrefectFuture[Result]) -> Result | BaseException:
    """What a task returned, or why it did not: an error of its own, or that its process is gone."""
    try:
        future.wait()
        found: Result | BaseException = future.result(raise_on_failure=False)
    except Exception as error:  # of Ray or Dask: whatever it holds stays here
        return ShardError(f"a worker process was lost ({type(error).__name__})")
    return found
