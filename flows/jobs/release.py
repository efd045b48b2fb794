"""What the tasks of a release do, without Prefect: each takes a configuration and works alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from anonymizer import report
from anonymizer.backbones import Backbone, compilation
from anonymizer.backbones.conditioning import encode_conditions, placeholder_condition
from anonymizer.config import MetricsConfig, ModelConfig, RunConfig
from anonymizer.crypto.custodian_key import CustodianKey, load_key
from anonymizer.errors import (
    CustodianKeyError,
    IntegrityError,
    ModelError,
    ShardError,
    StepError,
)
from anonymizer.pipeline import batch_size_tuning
from anonymizer.pipeline.shard import anonymize_shard
from anonymizer.records import Plan, ShardSummary, Summary
from anonymizer.release import assemble, event_log, history, ledger, plan, preflight, publish
from anonymizer.release.finished_ledger import FinishedLedger
from anonymizer.release.history import PublishedHistory
from anonymizer.release.ledger import Ledger, ShardWriter
from anonymizer.release.publish import PublicationStatus
from anonymizer.report.ledger_summary import LedgerSummary
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.jobs.models import backbone_of
from flows.jobs.redaction import in_fresh_thread, redact_errors

if TYPE_CHECKING:
    from metrics.scores.scorer import ReleaseScorer


@lru_cache(maxsize=1)
def count_operations(model: ModelConfig) -> int:
    """Of one network call for one picture."""
    backbone = backbone_of(model)
    return compilation.count_flops(backbone, encode_conditions(backbone, [placeholder_condition(model)]))


@lru_cache(maxsize=1)
def scorer_of(metrics: MetricsConfig, device: str) -> ReleaseScorer:
    from metrics.scores.scorer import build_scorer

    return in_fresh_thread(lambda: build_scorer(metrics, device))


def load_checked_scorer(metrics: MetricsConfig, backbone: Backbone) -> ReleaseScorer:
    """The scorer, tried on a picture of the model's size. ModelError if that is nothing that it can look at."""
    scorer = scorer_of(metrics, str(backbone.device))
    blank = torch.zeros(1, 3, backbone.size, backbone.size, device=backbone.device)
    in_fresh_thread(lambda: scorer.score(scorer.embed(blank), blank))
    return scorer


@lru_cache(maxsize=1)
def load_previous(output: str, the_plan: Plan) -> PublishedHistory:
    """What the releases before this one published, loaded once for each process and plan."""
    return in_fresh_thread(lambda: history.load(Release.at(output)))


def check(config: RunConfig) -> None:
    """What can be told in a moment: key, source, output. Writes nothing."""
    load_key(config.key_env)
    preflight.check(config)


def prepare(config: RunConfig) -> Plan:
    """Everything that can go wrong before the work: key, source, output, model, scorer. Writes the plan."""
    check(config)
    publish.check_signing_key(config)
    key, backbone, release = load_key(config.key_env), backbone_of(config.model), Release.at(config.output.uri)
    history.check(config, key, load_checked_scorer(config.metrics, backbone).names)
    the_plan = plan.write_or_resume(config, backbone, key, release)
    history.carry_forward(config, release)
    return the_plan


def prepare_for_scheduler(config: RunConfig) -> Plan:
    """``prepare``, with errors that a scheduler may keep."""
    return redact_errors(
        _restricted(config), "plan", StepError("plan: failed, no shard was begun"), lambda: prepare(config)
    )


def run_shard(config: RunConfig, shard: int, progress: Callable[[int], None]) -> ShardSummary:
    """One shard, unless it is committed already. ShardError tells a scheduler nothing but the shard's number."""
    error = ShardError(f"shard {shard}: failed, nothing of it was committed")
    return redact_errors(_restricted(config), f"shard-{shard:05d}", error, lambda: _run_shard(config, shard, progress))


def finish(config: RunConfig) -> Summary:
    """Reconcile, assemble ``public/``, write the restricted report."""
    return redact_errors(
        _restricted(config),
        "assemble",
        StepError("assemble: failed, run again to finish"),
        lambda: _finish(config),
    )


def log_event(config: RunConfig, event: str, **details: Any) -> None:
    """Add an event to the release's log; counts only."""
    event_log.record(Release.at(config.output.uri), event, **details)


def read_logged_shards(config: RunConfig) -> set[int]:
    """Shards whose commit is in the log already."""
    found = event_log.read(Release.at(config.output.uri))
    return {event["details"]["shard"] for event in found if event["event"] == "shard committed"}


def list_uncommitted(config: RunConfig) -> list[int]:
    """Numbers of the shards that are planned and not committed, from one look at the ledger's folder."""
    error = StepError("ledger: cannot be looked at")
    return redact_errors(_restricted(config), "ledger", error, lambda: _list_uncommitted(Release.at(config.output.uri)))


def summarize_shard(config: RunConfig, shard: int) -> ShardSummary:
    """Counts of a committed shard. IntegrityError if it is not."""
    error = ShardError(f"shard {shard}: its ledger cannot be read")
    return redact_errors(_restricted(config), f"shard-{shard:05d}", error, lambda: _summarize_shard(config, shard))


def count_records(config: RunConfig, shards: Sequence[int]) -> int:
    """How many records these shards have together."""
    release, error = Release.at(config.output.uri), StepError("plan: cannot be looked at")
    return redact_errors(release.restricted, "plan", error, lambda: _count_records(plan.read(release), shards))


def _list_uncommitted(release: Release) -> list[int]:
    return Ledger.open(release).missing_shards()


def _count_records(the_plan: Plan, shards: Sequence[int]) -> int:
    """As many in each shard as the plan says, and the rest in the last one."""
    last = the_plan.shards - 1
    return sum(the_plan.shard_size if n < last else the_plan.records - last * the_plan.shard_size for n in shards)


def _summarize_shard(config: RunConfig, shard: int) -> ShardSummary:
    if (table := ledger.read_shard(Release.at(config.output.uri), shard)) is None:
        raise IntegrityError(f"shard {shard}: its ledger is gone: run the same command again")
    return ledger.summarize_shard(shard, table)


def _run_shard(config: RunConfig, shard: int, progress: Callable[[int], None]) -> ShardSummary:
    release = Release.at(config.output.uri)
    if (table := ledger.read_shard(release, shard)) is not None:
        return ledger.summarize_shard(shard, table)
    key, backbone = load_key(config.key_env), backbone_of(config.model)
    the_plan = plan.read(release)
    _check_as_planned(config, the_plan, key, backbone)
    if backbone.device.type == "cpu" and the_plan.threads:  # Ray and Dask would have one
        torch.set_num_threads(the_plan.threads)
    scorer = scorer_of(config.metrics, str(backbone.device))
    config = batch_size_tuning.resolve_batch_size(config, backbone, scorer)
    compile_if_worthwhile(config, backbone, the_plan)
    writer = ShardWriter(release, shard, scorer.names)
    entries = [entry for entry in plan.read_entries(release, shard) if writer.is_pending(entry)]
    before = load_previous(config.output.uri, the_plan)
    return anonymize_shard(shard, entries, config, backbone, scorer, key, writer, progress, before)


def _check_as_planned(config: RunConfig, the_plan: Plan, key: CustodianKey, backbone: Backbone) -> None:
    """Another process than the one that planned has its own key and its own copy of the model."""
    if key.check_value != the_plan.key_check and not key.is_persistent:
        raise CustodianKeyError(
            f"{config.key_env}: not set where shards are done: set the one that the release was planned with"
        )
    if key.check_value != the_plan.key_check:
        raise CustodianKeyError(
            f"{config.key_env}: not the key that the release was planned with: set that one where shards are done"
        )
    if config.fingerprint(backbone.digest) != the_plan.fingerprint:
        raise ModelError(
            f"model.id {config.model.id!r}: other weights or settings than the release was planned with: place the "
            "same files wherever shards are done"
        )


def compile_if_worthwhile(config: RunConfig, backbone: Backbone, the_plan: Plan) -> None:
    def planned() -> float:
        return float(count_operations(config.model) * the_plan.steps * the_plan.records)

    if compilation.is_worth_compiling(config.run.compile, backbone, planned):
        compilation.compile_network(backbone, config.run.initial_batch_size)


def _finish(config: RunConfig) -> Summary:
    summary, _ = finish_release(Release.at(config.output.uri), config)
    return summary


def finish_release(release: Release, config: RunConfig) -> tuple[Summary, PublicationStatus]:
    """Assemble, report and publish a release whose shards are all committed, in one pass over its ledger."""
    the_plan, key = plan.read(release), load_key(config.key_env)
    rows = LedgerSummary(the_plan)
    with FinishedLedger(release, the_plan, config.source.carry, rows.add) as finished:
        assemble.assemble(release, config, finished)
        if not release.purged.exists():  # what would show originals is past its retention period
            report.write_restricted(release, config, finished, rows)
        status = publish.decide_and_publish(release, config, key, finished, report.write_public)
        return finished.summary, status


def _restricted(config: RunConfig) -> StoragePath:
    return Release.at(config.output.uri).restricted
