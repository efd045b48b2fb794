"""The augmentation on Prefect: one task, which draws all samples."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from anonymizer.config import AugmentConfig
from flows.jobs import augment as augment_job
from flows.jobs.progress import current_progress
from flows.runtime.tags import tag_run

TAGS = ["anonymizer", "augmentation"]


@flow(name="augment", persist_result=False, validate_parameters=False)
def augment(config: dict[str, Any]) -> dict[str, Any]:
    """Local samples for training, which are not anonymised, from a configuration (nested mappings); returns counts.

    Prefect sees the configuration, with names of labels where ``filter.names`` has some, and counts. It never sees a
    picture or an id.
    """
    tag_run(TAGS)
    summary = draw(config)
    text = (
        f"## Augmentation\n\n{summary['kept']} of {summary['drawn']} samples kept, of {summary['usable']} records. "
        "They are not anonymised."
    )
    create_markdown_artifact(text, key="augmentation-summary", description="counts of one augmentation")
    return summary


@task(name="draw", tags=TAGS, persist_result=False)
def draw(config: dict[str, Any]) -> dict[str, Any]:
    return asdict(augment_job.run_for_scheduler(AugmentConfig.model_validate(config), current_progress()))
