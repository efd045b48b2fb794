"""The main job on Prefect: plan, one task for each shard, assemble, report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast
from uuid import UUID

from prefect import flow, task, unmapped
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from anonymizer import preflight
from anonymizer.config import PolicyConfig, RunConfig, build
from anonymizer.errors import GateError, ShardError
from flows import steps
from flows.lineage import emitting
from flows.progress import watcher
from flows.steps import TELLABLE
from flows.tagging import tag_run

TAGS = ["anonymizer", "release"]


@flow(
    name="release",
    task_runner=cast(Any, ThreadPoolTaskRunner(max_workers=1)),
    persist_result=False,
    validate_parameters=False,
)
def release(config: dict[str, Any]) -> dict[str, Any]:
    """Make one release from a configuration (nested mappings, as in the YAML file); returns its counts.

    ``problems`` are lines about events that a lineage server did not take.

    Prefect sees the configuration, shard numbers and counts. It never sees a picture, an id or a key.
    """
    tag_run(TAGS)
    settled = build(config)  # a level that a calibration chooses is chosen once, and every task sees the number
    with preflight.alone(settled.output.uri), emitting(settled, "release") as told:
        try:
            summary = _release(settled.model_dump(mode="json"))
        except GateError:
            told.gate = "fail"
            raise
        told.gate = "none" if settled.policy == PolicyConfig() else "pass"
    return summary | {"problems": told.problems}


def _release(config: dict[str, Any]) -> dict[str, Any]:
    plan = make_plan(config)
    steps.note(RunConfig.model_validate(config), "started")
    progress = cast(UUID, create_progress_artifact(0.0, key="release-progress", description="shards committed"))
    retries = RunConfig.model_validate(config).run.retries
    shard_task = run_shard.with_options(retries=retries)
    problems: list[BaseException] = []
    committed = steps.logged_shards(RunConfig.model_validate(config))
    for done, future in enumerate(shard_task.map(range(plan["shards"]), config=unmapped(config)), start=1):
        result = future.result(raise_on_failure=False)
        if isinstance(result, BaseException):
            problems.append(result)
        elif result["shard"] not in committed:
            steps.note(RunConfig.model_validate(config), "shard committed", **result)
        update_progress_artifact(progress, 100.0 * done / plan["shards"])
    for problem in problems:
        if isinstance(problem, TELLABLE):  # no space, another key: one line that says more than how many shards failed
            raise type(problem)(str(problem))
    if problems:
        raise ShardError(
            f"{len(problems)} of {plan['shards']} shards failed: see restricted/errors/, then run again to finish them"
        )
    summary = finish(config)
    create_markdown_artifact(_markdown(plan, summary), key="release-summary", description="counts of one release")
    return summary


@task(name="plan", tags=TAGS, persist_result=False)
def make_plan(config: dict[str, Any]) -> dict[str, Any]:
    watcher().stage("planning")
    plan = steps.prepare_for_scheduler(RunConfig.model_validate(config))
    watcher().begin(plan.records, 0)
    watcher().stage("anonymising")
    return {"shards": plan.shards, "records": plan.records}


@task(name="shard", task_run_name="shard-{shard}", tags=[*TAGS, "shard"], persist_result=False, retry_delay_seconds=1)
def run_shard(shard: int, config: dict[str, Any]) -> dict[str, Any]:
    told = 0

    def progress(done: int) -> None:
        nonlocal told
        watcher().advance(done - told)
        told = done

    summary = steps.run_shard(RunConfig.model_validate(config), shard, progress)
    progress(summary.read)
    return asdict(summary)


@task(name="assemble", tags=TAGS, persist_result=False)
def finish(config: dict[str, Any]) -> dict[str, Any]:
    watcher().stage("assembling")
    return asdict(steps.finish(RunConfig.model_validate(config)))


def _markdown(plan: dict[str, Any], summary: dict[str, Any]) -> str:
    rows = "".join(f"| {name} | {summary[name]} |\n" for name in ("read", "released", "quarantined", "failed"))
    reasons = "".join(f"| failed or quarantined: {name} | {count} |\n" for name, count in summary["reasons"].items())
    return f"## Release\n\n| records | |\n|---|---|\n{rows}{reasons}\n{plan['shards']} shards."
