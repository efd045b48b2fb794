"""The erasure flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from anonymizer.errors import StepError
from anonymizer.storage import run_lock
from anonymizer.storage.layout import Release
from flows.jobs import erase as erase_job
from flows.runtime.stages import StageRunner

TAGS = ["anonymizer", "erase"]


@flow(name="erase", persist_result=False, validate_parameters=False)
def erase(
    release: str, records: str, output: str, trust: Sequence[str] = (), pinned: str | None = None
) -> dict[str, Any]:
    """Make a new release at ``output`` without those whom the file ``records`` names, and destroy the old one.

    Prefect sees where releases and the file lie, and counts. It never sees who is named.
    """
    error = StepError("erase: failed, run the same command again to finish")
    stage = StageRunner("erase", Release.at(output).restricted, error, TAGS)
    erasure = stage(erase_job.prepare_erasure, release, Path(records), output, trust, pinned)
    with run_lock.exclusive_run(output):
        stage(erase_job.write_successor, erasure)
        status = stage(erase_job.publish_successor, erasure)
        summary = stage(erase_job.destroy_predecessor, erasure, status)
    text = f"{summary.erased} records erased, {summary.released} pictures released."
    if not summary.published:
        text = f"Nothing is erased yet: {summary.pending} records wait for the new release ({summary.standing})."
    create_markdown_artifact(f"## Erasure\n\n{text}", key="erasure-summary", description="counts of one erasure")
    return asdict(summary)
