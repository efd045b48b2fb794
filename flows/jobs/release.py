"""The work of a release, without Prefect: each step takes a configuration and may run in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch

from anonymizer import report
from anonymizer.backbones import Backbone, compilation
from anonymizer.backbones.conditioning import encode_conditions, placeholder_condition
from anonymizer.config import MetricsConfig, ModelConfig, RunConfig
from anonymizer.crypto.custodian_key import CustodianKey, load_key
from anonymizer.errors import CustodianKeyError, IntegrityError, ModelError, ShardError, StepError
from anonymizer.grouping.features import Embedder
from anonymizer.pipeline import batch_size_tuning
from anonymizer.pipeline.shard import anonymize_shard
from anonymizer.records import Plan, ShardSummary, Summary
from anonymizer.release import assemble, event_log, group_planning, history, preflight, publish
from anonymizer.release import plan as planning
from anonymizer.release.finished_ledger import FinishedLedger
from anonymizer.release.group_planning import GroupCounts
from anonymizer.release.history import PublishedHistory
from anonymizer.release.ledger import Ledger, ShardWriter
from anonymizer.release.ledger import summarize_shard as summarize_rows
from anonymizer.release.publish import PublicationStatus
from anonymizer.report.ledger_summary import LedgerSummary
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.jobs import ceilings
from flows.jobs.models import backbone_of
from flows.jobs.progress import current_progress
from flows.jobs.redaction import in_fresh_thread, redact_errors

if TYPE_CHECKING:
    from metrics.scores.scorer import ReleaseScorer


@lru_cache(maxsize=1)
def scorer_of(metrics: MetricsConfig, device: str) -> ReleaseScorer:
    """Return the scorer that ``metrics`` describes, loaded once for each process."""
    from metrics.scores.scorer import build_scorer

    return in_fresh_thread(lambda: build_scorer(metrics, device))


def load_checked_scorer(metrics: MetricsConfig, backbone: Backbone) -> ReleaseScorer:
    """Return the scorer; ModelError if it cannot look at pictures of the model's size."""
    scorer = scorer_of(metrics, str(backbone.device))
    blank = torch.zeros(1, 3, backbone.size, backbone.size, device=backbone.device)
    in_fresh_thread(lambda: scorer.score(scorer.embed(blank), blank))
    return scorer


@lru_cache(maxsize=1)
def load_previous(output: str, plan_id: str | None, key: CustodianKey) -> PublishedHistory:
    """Return what the releases before this one published, loaded once for each process and plan."""
    return in_fresh_thread(lambda: history.load(Release.at(output, key)))


def check(config: RunConfig) -> None:
    """Raise UsageError for what can be seen in a moment: key, source, output. Writes nothing."""
    load_key(config.key_env)
    preflight.check(config)


_prepared: dict[str, Plan] = {}  # by settings, see ``prepare_for_flow``


def prepare(config: RunConfig) -> Plan:
    """Check what takes longer (model, scorer, previous release), and write the plan; ``check`` comes before."""
    publish.check_signing_key(config)
    key, backbone = load_key(config.key_env), backbone_of(config.model)
    preflight.check_previous(config, key, load_checked_scorer(config.metrics, backbone).names)
    divide = partial(group_planning.divide, clip=clip_embedder(config, backbone), progress=report_survey)

    def add_ceilings(plan: Plan) -> Plan:
        return ceilings.add_ceilings(config, backbone, key, plan)

    release = open_release(config)
    return planning.write_or_resume(config, backbone, key, release, history.carry_forward, add_ceilings, divide)


def count_groups(config: RunConfig) -> GroupCounts:
    """Return the counts of the groups of a release, planned or to be planned; writes nothing."""
    release, backbone = open_release(config), backbone_of(config.model)
    if release.plan.exists():
        return group_planning.count_planned(config, release)
    clip = clip_embedder(config, backbone)
    return group_planning.preview(config, backbone, load_key(config.key_env), clip, report_survey)


def report_survey(done: int) -> None:
    """Report how many records were looked at before they are grouped."""
    current_progress().stage(f"groups: {done:,} records compared")


def clip_embedder(config: RunConfig, backbone: Backbone) -> Embedder | None:
    """Return the scorer's CLIP model if originals are grouped by it."""
    is_needed = config.boomerang.k > 1 and config.groups.features == "clip"
    clip = scorer_of(config.metrics, str(backbone.device)).clip if is_needed else None
    return None if clip is None else Embedder(clip.versioned_name, clip.embed)


def prepare_for_flow(config: RunConfig) -> None:
    """``prepare``, for the flow that this process starts next, which then does not do it again."""
    _prepared[config.model_dump_json()] = prepare(config)


def prepare_for_scheduler(config: RunConfig) -> Plan:
    """``check`` and ``prepare``, unless this process has just done so, with errors that a scheduler may keep."""

    def check_and_prepare() -> Plan:
        check(config)
        return prepare(config)

    error = StepError("plan: failed, no shard was begun")
    prepared = _prepared.pop(config.model_dump_json(), None)
    return prepared or redact_errors(_restricted(config), "plan", error, check_and_prepare)


def run_shard(config: RunConfig, shard: int, progress: Callable[[int], None]) -> ShardSummary:
    """Process a shard, unless it is committed already. ShardError says nothing but the shard's number."""
    error = ShardError(f"shard {shard}: failed, nothing of it was committed")
    return redact_errors(_restricted(config), f"shard-{shard:05d}", error, lambda: _run_shard(config, shard, progress))


def finish(config: RunConfig) -> Summary:
    """Assemble, report and publish a release whose shards are all committed."""
    error = StepError("assemble: failed, run again to finish")
    release = open_release(config)
    return redact_errors(release.restricted, "assemble", error, lambda: finish_release(release, config)[0])


def stage_previous(config: RunConfig) -> None:
    """Copy what earlier releases published to where shards take it up."""
    release, error = open_release(config), StepError("staging: failed, run again to finish")
    redact_errors(release.restricted, "staging", error, lambda: history.stage_images(release))


def log_event(config: RunConfig, event: str, **details: Any) -> None:
    """Add an event to the release's log; counts only."""
    event_log.record(open_release(config), event, **details)


def read_logged_shards(config: RunConfig) -> set[int]:
    """Return the shards whose commit is in the log already."""
    events = event_log.read(open_release(config))
    return {event["details"]["shard"] for event in events if event["event"] == "shard committed"}


def list_uncommitted(config: RunConfig) -> list[int]:
    """Return the shards that are planned and not committed, from one look at the ledger's folder."""
    release, error = open_release(config), StepError("ledger: cannot be looked at")
    return redact_errors(release.restricted, "ledger", error, lambda: Ledger.open(release).missing_shards())


def summarize_shard(config: RunConfig, shard: int) -> ShardSummary:
    """Return the counts of a committed shard. IntegrityError if it is not committed."""

    def summarize() -> ShardSummary:
        if (table := Ledger.open(open_release(config)).read_shard(shard)) is None:
            raise IntegrityError(f"shard {shard}: its ledger is gone: run the same command again")
        return summarize_rows(shard, table)

    error = ShardError(f"shard {shard}: its ledger cannot be read")
    return redact_errors(_restricted(config), f"shard-{shard:05d}", error, summarize)


def count_records(config: RunConfig, shards: Sequence[int]) -> int:
    """Return how many records these shards have together."""
    release, error = open_release(config), StepError("plan: cannot be looked at")
    plan = redact_errors(release.restricted, "plan", error, lambda: planning.read(release))
    sizes = plan.shard_records
    return sum(sizes[n] if sizes else min(plan.shard_size, plan.records - n * plan.shard_size) for n in shards)


def _run_shard(config: RunConfig, shard: int, progress: Callable[[int], None]) -> ShardSummary:
    release, backbone = open_release(config), backbone_of(config.model)
    _check_key(config, planning.read(Release(release.root)))
    ledger = Ledger.open(release)
    if (table := ledger.read_shard(shard)) is not None:
        return summarize_rows(shard, table)
    key, plan = load_key(config.key_env), ledger.plan
    _check_model(config, plan, backbone)
    if backbone.device.type == "cpu" and plan.threads:  # Ray and Dask would have one
        torch.set_num_threads(plan.threads)
    scorer = scorer_of(config.metrics, str(backbone.device))
    config = batch_size_tuning.resolve_batch_size(config, backbone, scorer)
    compile_if_worthwhile(config, backbone, plan)
    writer = ShardWriter(ledger, shard, scorer.names)
    entries = [entry for entry in planning.read_entries(release, plan, shard) if writer.is_pending(entry)]
    previous = load_previous(config.output.uri, plan.id, key)
    return anonymize_shard(shard, entries, config, backbone, scorer, key, writer, progress, previous)


def open_release(config: RunConfig) -> Release:
    """Return the release that a run makes, with the custodian's key, so that what is read of it is checked."""
    return Release.at(config.output.uri, load_key(config.key_env))


def read_planned_config(uri: str) -> RunConfig:
    """Return the settings that a release was planned with, for a worker that holds its key.

    Raises CustodianKeyError without the key, IntegrityError if they are not what was planned.
    """
    release, error = Release.at(uri), StepError("settings: cannot be read")

    def read() -> RunConfig:
        opened = planning.open_with_key(uri)
        if opened.key is None:  # then an attacker may have written the settings
            raise CustodianKeyError(f"release {uri!r}: was planned without a key: workers do releases with one only")
        return planning.read_config(opened)

    return redact_errors(release.restricted, "settings", error, read)


def _check_key(config: RunConfig, plan: Plan) -> None:
    """Refuse another key than that of the plan: another process may have planned."""
    key = load_key(config.key_env)
    if key.check_value != plan.key_check and not key.is_persistent:
        raise CustodianKeyError(
            f"{config.key_env}: not set where shards are done: set the one that the release was planned with"
        )
    if key.check_value != plan.key_check:
        raise CustodianKeyError(
            f"{config.key_env}: not the key that the release was planned with: set that one where shards are done"
        )


def _check_model(config: RunConfig, plan: Plan, backbone: Backbone) -> None:
    if config.fingerprint(backbone.digest) != plan.fingerprint:
        raise ModelError(
            f"model.id {config.model.id!r}: other weights or settings than the release was planned with: place the "
            "same files wherever shards are done"
        )


def compile_if_worthwhile(config: RunConfig, backbone: Backbone, plan: Plan) -> None:
    """Compile the model's network if the plan is long enough to pay for it."""

    def planned_operations() -> float:
        return float(_count_operations(config.model) * plan.steps * plan.records)

    if compilation.is_worth_compiling(config.run.compile, backbone, planned_operations):
        compilation.compile_network(backbone, config.run.initial_batch_size)


@lru_cache(maxsize=1)
def _count_operations(model: ModelConfig) -> int:
    """Return the floating-point operations of one network call for one picture."""
    backbone = backbone_of(model)
    return compilation.count_flops(backbone, encode_conditions(backbone, [placeholder_condition(model)]))


def finish_release(release: Release, config: RunConfig) -> tuple[Summary, PublicationStatus]:
    """Assemble, report and publish a release whose shards are all committed, in one pass over its ledger."""
    key = load_key(config.key_env)
    release = replace(release, key=key)
    plan = planning.read(release)
    rows = LedgerSummary(plan)
    with FinishedLedger(release, plan, config, rows.add) as finished:
        assemble.assemble(release, config, finished)
        if not release.purged.exists():  # what would show originals is past its retention period
            report.write_restricted(release, config, finished, rows)
        status = publish.decide_and_publish(release, config, key, finished, report.write_public)
        return finished.summary, status


def _restricted(config: RunConfig) -> StoragePath:
    return Release.at(config.output.uri).restricted
