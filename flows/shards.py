"""A range of shards of a release that another flow run has planned, in a worker process of its own."""

from __future__ import annotations

from typing import Any

from prefect import flow

from anonymizer.config import build
from flows.jobs import release as release_job
from flows.jobs.progress import report_progress_to
from flows.runtime import dispatch
from flows.runtime.progress_artifact import ProgressArtifact
from flows.runtime.tags import tag_run

TAGS = ["anonymizer", "release", "shards"]


@flow(name="anonymize-shards", persist_result=False, validate_parameters=False)
def anonymize_shards(config: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """Do those shards from ``first`` to ``last`` that are not committed yet; returns how many were.

    ``config`` is that of the flow run that hands ranges out. Prefect sees it, shard numbers and counts.
    """
    tag_run(TAGS)
    settled = build(config | {"run": config.get("run", {}) | {"dispatch": "inline"}})
    left = [shard for shard in release_job.list_uncommitted(settled) if first <= shard <= last]
    share = ProgressArtifact(0, release_job.count_records(settled, left), "pictures of these shards")
    with share.heartbeat(), report_progress_to(share):
        problems = [result for result in dispatch.run_as_tasks(settled, left) if isinstance(result, BaseException)]
    dispatch.raise_if_incomplete(settled, problems, left)
    return {"committed": len(left)}
