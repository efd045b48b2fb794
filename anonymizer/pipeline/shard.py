"""The journey of a shard's records: read, decode, condition, sample, score, gate, encode, stage, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from anonymizer.backbones import Backbone
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data.sources import open_source
from anonymizer.devices import device_name
from anonymizer.pipeline.batch_sampling import BatchSampler, Scorer
from anonymizer.pipeline.group_job import GroupJob
from anonymizer.pipeline.release_job import ReleaseJob
from anonymizer.pipeline.stages import open_stages
from anonymizer.records import Entry, ShardSummary
from anonymizer.release.history import EMPTY_HISTORY, PublishedHistory
from anonymizer.release.ledger import LedgerRow, ShardWriter
from anonymizer.release.profiling import Profile, Stopwatch


def anonymize_shard(
    shard: int,
    entries: Sequence[Entry],
    config: RunConfig,
    backbone: Backbone,
    scorer: Scorer,
    key: CustodianKey,
    writer: ShardWriter,
    progress: Callable[[int], None] = lambda done: None,
    previous: PublishedHistory = EMPTY_HISTORY,
) -> ShardSummary:
    """Process a shard and commit it; each record is released, quarantined or failed, or waits for a group.

    ``progress`` is called with the number of records that have ended. A record that cannot be used becomes a row; any
    other error leaves the shard uncommitted and is raised.
    """
    begun, watch = time.monotonic(), Stopwatch()
    settings = shard, config, backbone, scorer, key, writer, previous, watch
    job = ReleaseJob(*settings) if config.boomerang.k == 1 else GroupJob(*settings, entries=entries)
    batch_size = config.run.initial_batch_size
    rows: list[LedgerRow] = []
    with open_stages(backbone.device, config.run.threads, watch) as stages:
        sampler = BatchSampler(job, batch_size, stages.overlap, watch)
        records = open_source(config.source).read(entries)
        items = job.begin(stages.decode(job.decode, records, job.prefetch_depth(batch_size)))
        for ended in stages.write(job.finish, sampler.run(items)):
            rows += ended
            progress(len(rows))
    wall, device = time.monotonic() - begun, device_name(backbone.device)
    profile = Profile(1, len(entries), wall, dict(watch.seconds), sampler.batch_size, sampler.halved, device)
    return writer.commit(rows, len(entries), wall, profile)
