"""The enhancement on Prefect: one task, which enlarges all pictures."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from anonymizer.config import EnhanceConfig
from flows.jobs import enhance as enhance_job
from flows.jobs.progress import current_progress
from flows.runtime.tags import tag_run

TAGS = ["anonymizer", "enhancement"]


@flow(name="enhance", persist_result=False, validate_parameters=False)
def enhance(config: dict[str, Any]) -> dict[str, Any]:
    """Enlarged pictures, which are not anonymised, from a configuration (nested mappings); returns counts.

    Prefect sees the configuration and counts. It never sees a picture, an id or a score.
    """
    tag_run(TAGS)
    summary = enlarge(config)
    text = f"## Enhancement\n\n{summary['enhanced']} of {summary['read']} pictures enlarged. They are not anonymised."
    create_markdown_artifact(text, key="enhancement-summary", description="counts of one enhancement")
    return summary


@task(name="enlarge", tags=TAGS, persist_result=False)
def enlarge(config: dict[str, Any]) -> dict[str, Any]:
    return asdict(enhance_job.run_for_scheduler(EnhanceConfig.model_validate(config), current_progress()))
