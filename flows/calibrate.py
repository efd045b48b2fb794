"""The calibration on Prefect: one task, since all levels share what they look at."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from anonymizer.config import CalibrationConfig
from flows.jobs import calibrate as calibrate_job
from flows.jobs.progress import current_progress
from flows.runtime import run_templates
from flows.runtime.tags import tag_run

TAGS = ["anonymizer", "calibration"]


@flow(name="calibrate", persist_result=False, validate_parameters=False)
def calibrate(config: Any) -> dict[str, Any]:
    """Measure risk and utility at several levels; returns counts.

    ``config`` is nested mappings, or the address of a YAML file.

    Prefect sees the configuration and counts. It never sees a picture, an id, a figure or a key.
    """
    tag_run(TAGS)
    summary = measure(run_templates.calibration_config(config).model_dump(mode="json"))
    text = (
        f"## Calibration\n\n{summary['levels']} levels, {summary['pictures']} pictures of {summary['people']} people."
    )
    create_markdown_artifact(text, key="calibration-summary", description="counts of one calibration")
    return summary


@task(name="measure", tags=TAGS, persist_result=False)
def measure(config: dict[str, Any]) -> dict[str, Any]:
    return asdict(calibrate_job.run_for_scheduler(CalibrationConfig.model_validate(config), current_progress()))
