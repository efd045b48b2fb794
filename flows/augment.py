"""The augmentation flow."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from anonymizer.config import AugmentConfig
from anonymizer.errors import StepError
from anonymizer.storage.path import StoragePath
from flows.jobs import augment as augment_job
from flows.jobs.progress import current_progress
from flows.runtime import run_templates
from flows.runtime.stages import StageRunner

TAGS = ["anonymizer", "augmentation"]


@flow(name="augment", persist_result=False, validate_parameters=False)
def augment(config: AugmentConfig | str) -> dict[str, Any]:
    """Draw local samples for training, which are not anonymised; return counts.

    Prefect sees the configuration, with names of labels where ``filter.names`` has some, and counts. It never sees a
    picture or an id.
    """
    settings = run_templates.read_config(AugmentConfig, config)
    folder = StoragePath.from_uri(settings.output.uri).as_private()
    stage = StageRunner("augment", folder, StepError("augment: failed, begin again in a new folder"), TAGS)
    progress = current_progress()
    augmentation = stage(augment_job.survey_labels, settings, progress)
    rows = stage(augment_job.draw_samples, augmentation, progress)
    summary = stage(augment_job.write_augmentation, augmentation, rows)
    text = (
        f"## Augmentation\n\n{summary.kept} of {summary.drawn} samples kept, of {summary.usable} records. "
        "They are not anonymised."
    )
    create_markdown_artifact(text, key="augmentation-summary", description="counts of one augmentation")
    return asdict(summary)
