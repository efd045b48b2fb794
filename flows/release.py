"""The main job on Prefect: plan, one task for each shard, assemble, report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext

from anonymizer.config import PolicyConfig, RunConfig
from anonymizer.errors import GateError, OutputError
from anonymizer.storage import run_lock
from anonymizer.storage.layout import Release
from flows.jobs import release as release_job
from flows.jobs.progress import current_progress
from flows.lineage.emit import emit_run_events
from flows.runtime import dispatch, run_templates, task_runners
from flows.runtime.progress_artifact import ProgressArtifact
from flows.runtime.tags import tag_run

TAGS = ["anonymizer", "release"]


@flow(name="release", persist_result=False, validate_parameters=False)
def release(config: Any) -> dict[str, Any]:
    """Make one release; returns its counts.

    ``config`` is nested mappings, as in the YAML file, or the address of such a file; ``{month}`` and ``{newest}``
    in it are filled in. ``problems`` are lines about events that a lineage server did not take.

    Prefect sees the configuration, shard numbers and counts. It never sees a picture, an id or a key.
    """
    tag_run(TAGS)
    settled = run_templates.run_config(config)  # a level that a calibration chooses is chosen once, for all tasks
    _refuse_completed(settled)
    with run_lock.exclusive_run(settled.output.uri), emit_run_events(settled, "release") as told:
        try:
            summary = _release(settled)
        except GateError:
            told.gate = "fail"
            raise
        told.gate = "none" if settled.policy == PolicyConfig() else "pass"
    return summary | {"problems": told.problems}


def _refuse_completed(config: RunConfig) -> None:
    """A schedule asks for another release; that the last one is complete would look like success each month."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not context.flow_run.auto_scheduled:
        return
    if context.flow_run.run_count == 1 and Release.at(config.output.uri).is_complete:
        raise OutputError(
            f"output.uri {config.output.uri!r}: is complete already, and a schedule asks for another release: put "
            "{month} into it"
        )


def _release(config: RunConfig) -> dict[str, Any]:
    plan = make_plan(config.model_dump(mode="json"))
    release_job.log_event(config, "started")
    left = release_job.list_uncommitted(config)
    _log_missed_commits(config, set(range(plan["shards"])) - set(left))
    share = ProgressArtifact(plan["shards"] - len(left), plan["shards"], "shards committed", "release-progress")
    problems = list[BaseException]()
    for result in dispatch.run_shards(config, left):
        if isinstance(result, BaseException):
            problems.append(result)
        else:
            release_job.log_event(config, "shard committed", **result)
            share.advance(1)
    dispatch.raise_if_incomplete(config, problems, left)
    summary = finish(config.model_dump(mode="json"))
    create_markdown_artifact(
        _summary_markdown(plan, summary), key="release-summary", description="counts of one release"
    )
    return summary


def _log_missed_commits(config: RunConfig, committed: set[int]) -> None:
    """Shards whose run was killed between the commit and its event."""
    for shard in sorted(committed - release_job.read_logged_shards(config)):
        release_job.log_event(config, "shard committed", **asdict(release_job.summarize_shard(config, shard)))


@task(name="plan", tags=TAGS, persist_result=False)
def make_plan(config: dict[str, Any]) -> dict[str, Any]:
    current_progress().stage("planning")
    settings = RunConfig.model_validate(config)
    task_runners.check(settings)
    plan = release_job.prepare_for_scheduler(settings)
    current_progress().begin(
        plan.records, plan.records - release_job.count_records(settings, release_job.list_uncommitted(settings))
    )
    current_progress().stage("anonymising")
    return {"shards": plan.shards, "records": plan.records}


@task(name="assemble", tags=TAGS, persist_result=False)
def finish(config: dict[str, Any]) -> dict[str, Any]:
    current_progress().stage("assembling")
    return asdict(release_job.finish(RunConfig.model_validate(config)))


def _summary_markdown(plan: dict[str, Any], summary: dict[str, Any]) -> str:
    rows = "".join(f"| {name} | {summary[name]} |\n" for name in ("read", "released", "quarantined", "failed"))
    reasons = "".join(f"| failed or quarantined: {name} | {count} |\n" for name, count in summary["reasons"].items())
    return f"## Release\n\n| records | |\n|---|---|\n{rows}{reasons}\n{plan['shards']} shards."
