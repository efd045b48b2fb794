"""The release flow: plan, one task for each shard, assemble and publish."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.task_runners import ThreadPoolTaskRunner

from anonymizer.config import PolicyConfig, RunConfig
from anonymizer.errors import GateError, OutputError
from anonymizer.records import Plan, ShardSummary, Summary
from anonymizer.storage import run_lock
from anonymizer.storage.layout import Release
from flows.jobs import release as release_job
from flows.jobs.progress import current_progress
from flows.lineage.emit import emit_run_events
from flows.runtime import dispatch, run_templates, task_runners
from flows.runtime.progress_artifact import ProgressArtifact
from flows.runtime.stages import log_stage

TAGS = ["anonymizer", "release"]
ONE_THREAD: Any = ThreadPoolTaskRunner(max_workers=1)  # shards take turns at the model, which has threads of its own


# Not validated by Prefect: a level that a calibration chooses is resolved first, and each problem is one line.
@flow(name="release", task_runner=ONE_THREAD, persist_result=False, validate_parameters=False)
def release(config: RunConfig | str) -> dict[str, Any]:
    """Make one release from settings, or from the address of a YAML file with them; return its counts.

    ``{month}`` and ``{newest}`` in the settings are filled in. ``problems`` in what is returned are lines about events
    that a lineage server did not take.

    Prefect sees the configuration, shard numbers and counts. It never sees a picture, an id or a key.
    """
    settings = run_templates.run_config(config)
    _refuse_completed(settings)
    with run_lock.exclusive_run(settings.output.uri), emit_run_events(settings, "release") as outcome:
        try:
            plan = make_plan(settings)
            _anonymize(settings, plan)
            summary = assemble(settings)
        except GateError:
            outcome.gate = "fail"
            raise
        outcome.gate = "none" if settings.policy == PolicyConfig() else "pass"
        text = _format_markdown(plan, summary)
        create_markdown_artifact(text, key="release-summary", description="counts of one release")
    return asdict(summary) | {"problems": outcome.problems}


def _refuse_completed(config: RunConfig) -> None:
    """Raise OutputError if a schedule asks for a release that is complete, which would look like success each month."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not context.flow_run.auto_scheduled:
        return
    if context.flow_run.run_count == 1 and Release.at(config.output.uri).is_complete:
        raise OutputError(
            f"output.uri {config.output.uri!r}: is complete already, and a schedule asks for another release: put "
            "{month} into it"
        )


@task(name="plan", tags=TAGS, persist_result=False)
def make_plan(config: RunConfig) -> Plan:
    """Check everything that can go wrong before the work, and write the plan or resume a release by its own."""
    progress = current_progress()
    progress.stage("planning")
    task_runners.check(config)
    with log_stage("plan") as count:
        plan = release_job.prepare_for_scheduler(config)
        count(plan)
    pending = release_job.count_records(config, release_job.list_uncommitted(config))
    progress.begin(plan.records, plan.records - pending)
    progress.stage("anonymising")
    return plan


def _anonymize(config: RunConfig, plan: Plan) -> None:
    """Do the shards in this flow run, or in a nested one on the task runner of a cluster."""
    if config.run.runner == "local":
        anonymize(config, plan.shards)
        return

    @flow(name="anonymize", persist_result=False)
    def on_cluster() -> None:  # without parameters, which would be stored with risk figures of a chosen level
        anonymize(config, plan.shards)

    cluster = task_runners.ray_runner if config.run.runner == "ray" else task_runners.dask_runner
    with cluster(config) as runner:
        on_cluster.with_options(task_runner=runner)()


def anonymize(config: RunConfig, shards: int) -> None:
    """Do those of so many shards that are not committed. ShardError, or what may be repeated, if some are left."""
    release_job.log_event(config, "started")
    pending = release_job.list_uncommitted(config)
    # Shards whose run was killed between the commit and its event.
    for shard in sorted(set(range(shards)) - set(pending) - release_job.read_logged_shards(config)):
        _log_commit(config, release_job.summarize_shard(config, shard))
    if pending:
        release_job.stage_previous(config)
    artifact = ProgressArtifact(shards - len(pending), shards, "shards committed", "release-progress")
    problems = list[BaseException]()
    for result in dispatch.run_shards(config, pending):
        if isinstance(result, BaseException):
            problems.append(result)
        else:
            _log_commit(config, result)
            artifact.advance(1)
    dispatch.raise_if_incomplete(config, problems, pending)


def _log_commit(config: RunConfig, summary: ShardSummary) -> None:
    release_job.log_event(config, "shard committed", **asdict(summary))


@task(name="assemble", tags=TAGS, persist_result=False)
def assemble(config: RunConfig) -> Summary:
    """Reconcile the shards, write ``public/`` and the reports, let the policy decide, and publish."""
    current_progress().stage("assembling")
    with log_stage("assemble") as count:
        summary = release_job.finish(config)
        count(summary)
    return summary


def _format_markdown(plan: Plan, summary: Summary) -> str:
    counts = {name: getattr(summary, name) for name in ("read", "released", "quarantined", "failed", "waiting")}
    reasons = {f"not released: {reason}": count for reason, count in summary.reasons.items()}
    rows = "".join(f"| {name} | {count} |\n" for name, count in (counts | reasons).items())
    return f"## Release\n\n| records | |\n|---|---|\n{rows}\n{plan.shards} shards."
