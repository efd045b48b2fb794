"""The enhancement flow."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from anonymizer.config import EnhanceConfig
from anonymizer.errors import StepError
from anonymizer.storage.path import StoragePath
from flows.jobs import enhance as enhance_job
from flows.jobs.progress import current_progress
from flows.runtime import run_templates
from flows.runtime.stages import StageRunner

TAGS = ["anonymizer", "enhancement"]


@flow(name="enhance", persist_result=False, validate_parameters=False)
def enhance(config: EnhanceConfig | str) -> dict[str, Any]:
    """Enlarge pictures, which does not anonymise them; return counts.

    Prefect sees the configuration and counts. It never sees a picture, an id or a score.
    """
    settings = run_templates.read_config(EnhanceConfig, config)
    folder, error = StoragePath.from_uri(settings.output.uri), StepError("enhancement: failed")
    stage = StageRunner("enhance", folder, error, TAGS)
    progress = current_progress()
    enhancement = stage(enhance_job.read_pairs, settings, progress)
    rows = stage(enhance_job.enlarge, enhancement, progress)
    summary = stage(enhance_job.write_enhancement, enhancement, rows, progress)
    text = f"## Enhancement\n\n{summary.enhanced} of {summary.read} pictures enlarged. They are not anonymised."
    create_markdown_artifact(text, key="enhancement-summary", description="counts of one enhancement")
    return asdict(summary)
