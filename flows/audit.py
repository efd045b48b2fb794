"""The audit on Prefect: one task, since all attacks share what they look at."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from anonymizer.config import AuditConfig
from flows.jobs import audit as audit_job
from flows.jobs.progress import current_progress
from flows.runtime import run_templates
from flows.runtime.tags import tag_run

TAGS = ["anonymizer", "audit"]


@flow(name="audit", persist_result=False, validate_parameters=False)
def audit(config: Any) -> dict[str, Any]:
    """Audit one release from a configuration (nested mappings, or the address of a YAML file); returns counts.

    Prefect sees the configuration and counts. It never sees a picture, an id, a figure or a key.
    """
    tag_run(TAGS)
    summary = examine(run_templates.audit_config(config).model_dump(mode="json"))
    text = f"## Audit\n\n{summary['audited']} of {summary['released']} pictures attacked, {summary['figures']} figures."
    create_markdown_artifact(text, key="audit-summary", description="counts of one audit")
    return summary


@task(name="examine", tags=TAGS, persist_result=False)
def examine(config: dict[str, Any]) -> dict[str, Any]:
    return asdict(audit_job.run_for_scheduler(AuditConfig.model_validate(config), current_progress()))
