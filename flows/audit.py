"""The audit flow."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact

from anonymizer.config import AuditConfig
from anonymizer.errors import StepError
from anonymizer.storage.layout import Release
from flows.jobs import audit as audit_job
from flows.jobs.progress import current_progress
from flows.runtime import run_templates
from flows.runtime.stages import StageRunner

TAGS = ["anonymizer", "audit"]


@flow(name="audit", persist_result=False, validate_parameters=False)
def audit(config: AuditConfig | str) -> dict[str, Any]:
    """Audit one release from settings, or from the address of a YAML file with them; return counts.

    Prefect sees the configuration and counts. It never sees a picture, an id, a figure or a key.
    """
    settings = run_templates.audit_config(config)
    stage = StageRunner("audit", Release.at(settings.release).restricted, StepError("audit: failed"), TAGS)
    progress = current_progress()
    inputs = stage(audit_job.collect_evidence, settings, progress)
    findings = stage(audit_job.run_attacks, inputs, progress)
    baselines = stage(audit_job.run_baselines, inputs, progress)
    summary = stage(audit_job.write_audit, inputs, findings, baselines)
    text = f"## Audit\n\n{summary.audited} of {summary.released} pictures attacked, {summary.figures} figures."
    create_markdown_artifact(text, key="audit-summary", description="counts of one audit")
    return asdict(summary)
