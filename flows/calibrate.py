"""The calibration flow."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from anonymizer.config import CalibrationConfig
from anonymizer.errors import StepError
from anonymizer.storage.path import StoragePath
from flows.jobs import calibrate as calibrate_job
from flows.jobs.progress import current_progress
from flows.runtime import run_templates
from flows.runtime.stages import StageRunner

TAGS = ["anonymizer", "calibration"]


@flow(name="calibrate", persist_result=False, validate_parameters=False)
def calibrate(config: CalibrationConfig | str) -> dict[str, Any]:
    """Measure risk and utility at several levels, from settings or the address of a YAML file; return counts.

    Prefect sees the configuration and counts. It never sees a picture, an id, a figure or a key.
    """
    settings = run_templates.calibration_config(config)
    folder, error = StoragePath.from_uri(settings.folder), StepError("calibration: failed")
    stage = StageRunner("calibrate", folder, error, TAGS)
    progress = current_progress()
    inputs = stage(calibrate_job.read_sample, settings, progress)
    measured = [stage(calibrate_job.measure_level, inputs, level, progress) for level in settings.levels]
    summary = stage(calibrate_job.write_calibration, inputs, measured)
    text = f"## Calibration\n\n{summary.levels} levels, {summary.pictures} pictures of {summary.people} people."
    create_markdown_artifact(text, key="calibration-summary", description="counts of one calibration")
    return asdict(summary)
