"""Erasure on Prefect: one task, which nobody should run twice at once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from flows.jobs import erase as erase_job
from flows.runtime.tags import tag_run

TAGS = ["anonymizer", "erase"]


@flow(name="erase", persist_result=False, validate_parameters=False)
def erase(release: str, records: str, output: str) -> dict[str, Any]:
    """A new release at ``output`` without those whom the file ``records`` names; the old one is destroyed.

    Prefect sees where releases and the file lie, and counts. It never sees who is named.
    """
    tag_run(TAGS)
    summary = take_out(release, records, output)
    text = f"## Erasure\n\n{summary['erased']} records erased, {summary['released']} pictures released."
    create_markdown_artifact(text, key="erasure-summary", description="counts of one erasure")
    return summary


@task(name="take-out", tags=TAGS, persist_result=False)
def take_out(release: str, records: str, output: str) -> dict[str, Any]:
    return asdict(erase_job.run_for_scheduler(release, Path(records), output))
