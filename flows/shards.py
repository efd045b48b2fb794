"""A range of shards of a release that another flow run has planned, in a worker process of its own."""

from __future__ import annotations

from typing import Any

from prefect import flow

from anonymizer.config import build
from flows import spread, steps
from flows.progress import watched_by
from flows.share import Share
from flows.tagging import tag_run

TAGS = ["anonymizer", "release", "shards"]


@flow(name="anonymize-shards", persist_result=False, validate_parameters=False)
def anonymize_shards(config: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """Do those shards from ``first`` to ``last`` that are not committed yet; returns how many were.

    ``config`` is that of the flow run that hands ranges out. Prefect sees it, shard numbers and counts.
    """
    tag_run(TAGS)
    settled = build(config | {"run": config.get("run", {}) | {"dispatch": "inline"}})
    left = [shard for shard in steps.uncommitted(settled) if first <= shard <= last]
    share = Share(0, steps.records_in(settled, left), "pictures of these shards")
    with share.repeated(), watched_by(share):
        problems = [result for result in spread.tasks(settled, left) if isinstance(result, BaseException)]
    spread.settle(settled, problems, left)
    return {"committed": len(left)}
