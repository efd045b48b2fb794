"""The flow that does a range of shards of a release which another flow run has planned, in a worker's process."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.jobs import release as release_job
from flows.jobs.progress import report_progress_to
from flows.release import ONE_THREAD
from flows.runtime import allowed_configs, dispatch
from flows.runtime.progress_artifact import ProgressArtifact
from flows.runtime.range_runs import pass_error_on


@flow(name="anonymize-shards", task_runner=ONE_THREAD, persist_result=False, validate_parameters=False)
def anonymize_shards(release: str, first: int, last: int) -> dict[str, Any]:
    """Do those shards from ``first`` to ``last`` of a release that are not committed yet; return how many were.

    The settings are those that the flow run which planned the release has sealed in its restricted half. Prefect sees
    the release's address, shard numbers and counts.
    """
    with pass_error_on(release):
        settings = allowed_configs.check(release_job.read_planned_config(release), is_filled=True)
        pending = [shard for shard in release_job.list_uncommitted(settings) if first <= shard <= last]
        artifact = ProgressArtifact(0, release_job.count_records(settings, pending), "pictures of these shards")
        with artifact.heartbeat(), report_progress_to(artifact):
            results = list(dispatch.run_as_tasks(settings, pending))
        problems = [result for result in results if isinstance(result, BaseException)]
        dispatch.raise_if_incomplete(settings, problems, pending)
    return {"committed": len(pending)}
