"""What the tasks of a release do, without Prefect: each takes a configuration and works alone."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import lru_cache

from anonymizer import assemble, ledger, plan, report
from anonymizer.backbones import Backbone, load_backbone
from anonymizer.config import MetricsConfig, ModelConfig, RunConfig
from anonymizer.errors import ShardError
from anonymizer.keys import load_key
from anonymizer.layout import Release
from anonymizer.ledger import ShardSummary, ShardWriter
from anonymizer.shard import Scorer, anonymize_shard


@lru_cache(maxsize=1)
def backbone_of(model: ModelConfig) -> Backbone:
    """The model, loaded once for each process."""
    return load_backbone(model)


@lru_cache(maxsize=1)
def scorer_of(metrics: MetricsConfig, device: str) -> Scorer:
    from metrics.scorer import build_scorer

    return build_scorer(metrics, device)


def prepare(config: RunConfig) -> plan.Plan:
    """Everything that can go wrong before the work: key, model, scorer, source, output. Writes the plan."""
    key, backbone = load_key(config.key_env), backbone_of(config.model)
    scorer_of(config.metrics, str(backbone.device))
    return plan.write(config, backbone, key, Release.at(config.output.uri))


def run_shard(config: RunConfig, shard: int, progress: Callable[[int], None]) -> ShardSummary:
    """One shard, unless it is committed already. ShardError tells a scheduler nothing but the shard's number."""
    release = Release.at(config.output.uri)
    if (table := ledger.read_shard(release, shard)) is not None:
        return ledger.summarize(shard, table)
    try:
        backbone = backbone_of(config.model)
        scorer = scorer_of(config.metrics, str(backbone.device))
        entries = plan.read_entries(release, shard)
        writer = ShardWriter(release, shard, scorer.names)
        return anonymize_shard(shard, entries, config, backbone, scorer, load_key(config.key_env), writer, progress)
    except Exception:
        details = release.errors / f"shard-{shard:05d}.txt"
        details.put(traceback.format_exc().encode("utf-8", "backslashreplace"))
    # Outside the handler, so that no chained exception carries a path or a value to a log or a database.
    raise ShardError(f"shard {shard}: failed, nothing of it was committed: see restricted/errors/{details.name}")


def finish(config: RunConfig) -> assemble.Summary:
    """Reconcile, assemble ``public/``, write the restricted report."""
    release = Release.at(config.output.uri)
    assemble.assemble(release, config)
    the_plan = plan.read(release)
    summary = assemble.summary(release, the_plan)
    report.write_restricted(release, the_plan, config, summary)
    return summary
