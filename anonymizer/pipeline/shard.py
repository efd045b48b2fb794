"""The journey of a shard's records: read, decode, condition, sample, score, gate, encode, stage, commit."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch

from anonymizer.backbones import Backbone
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data import image_codec
from anonymizer.data.geometry import pad_to_square, resize
from anonymizer.data.passthrough_columns import to_json
from anonymizer.data.sources import open_source
from anonymizer.data.sources.files import to_printable
from anonymizer.devices import device_name
from anonymizer.errors import RecordError
from anonymizer.pipeline.batch_sampling import BatchSampler, Scorer
from anonymizer.pipeline.boomerang_job import BoomerangJob
from anonymizer.pipeline.item import Item
from anonymizer.pipeline.stages import open_stages
from anonymizer.policy.gates import gate
from anonymizer.records import Decision, Entry, Reason, Record, Scores, ShardSummary, Status
from anonymizer.release.history import EMPTY_HISTORY, REUSED_COLUMNS, PublishedHistory
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
    """Process a shard and commit it; each record is released, quarantined or failed.

    ``progress`` is called with the number of records that have ended. A record that cannot be used becomes a row; any
    other error leaves the shard uncommitted and is raised.
    """
    begun, watch = time.monotonic(), Stopwatch()
    job = ReleaseJob(shard, config, backbone, scorer, key, writer, previous, watch)
    batch_size = config.run.initial_batch_size
    rows: list[LedgerRow] = []
    with open_stages(backbone.device, config.run.threads, watch) as stages:
        sampler = BatchSampler(job, batch_size, stages.overlap, watch)
        records = open_source(config.source).read(entries)
        items = stages.decode(job.decode, records, job.prefetch_depth(batch_size))
        for row in stages.write(job.finish, sampler.run(items)):
            rows.append(row)
            progress(len(rows))
    wall, device = time.monotonic() - begun, device_name(backbone.device)
    profile = Profile(1, len(entries), wall, dict(watch.seconds), sampler.batch_size, sampler.halved, device)
    return writer.commit(rows, len(entries), wall, profile)


@dataclass(slots=True)
class ReleaseItem(Item):
    """An item of a release."""

    source_hmac: str | None = None
    attempt: int = 0  # the level that it is sampled at: that of the configuration, then those of ``policy.escalate``
    earlier: list[Mapping[str, Any]] = field(default_factory=list)  # level, reason and scores of outputs too close
    reused: Mapping[str, Any] | None = None  # columns of an output that an earlier release published
    data: bytes = b""  # the encoded output of an earlier release
    output_id: str | None = None
    sha256: str | None = None  # of the encoded output


class ReleaseJob(BoomerangJob[ReleaseItem]):
    """The stages of a release, in the order in which an item meets them."""

    def __init__(
        self, shard: int, config: RunConfig, backbone: Backbone, scorer: Scorer, key: CustodianKey,
        writer: ShardWriter, previous: PublishedHistory, watch: Stopwatch,
    ) -> None:  # fmt: skip
        super().__init__(config.source, config.model, backbone, config.boomerang.sampler, config.boomerang.steps)
        self.config, self.scorer, self.key = config, scorer, key
        self.writer, self.previous, self.watch = writer, previous, watch
        constants = {
            "shard": shard,
            "sampler": config.boomerang.sampler,
            "model": config.model.public_name,
            "model_digest": backbone.digest,
            "code_version": version("anonymizer"),
        }
        self.attempts = [  # what the ledger says of an output at each level
            {
                **constants,
                **self.level_columns(level),
                "config_fingerprint": config.at_level(level).fingerprint(backbone.digest),
            }
            for level in (config.boomerang.level, *config.policy.escalate)
        ]

    def decode(self, record: Record) -> ReleaseItem:
        """Decode a record, unless it was published or erased before, or cannot be used."""
        item = ReleaseItem(replace(record, data=b""))
        with self.watch.stage("hash"):
            item.source_hmac = None if record.problem else self.key.source_hmac(record.data)
        digests = self.key.erasure_digests(record.entry.record_id, item.source_hmac, record.subject)
        if self.previous.is_erased(digests):
            item.record = Record(record.entry)  # and nothing more of the person
            item.fail(Reason.WITHDRAWN)
        elif item.source_hmac is None:
            item.fail(record.problem)
        else:
            try:
                with self.watch.stage("decode"):
                    self.decode_image(item, record.data)
                if (row := self.previous.find_row(item.source_hmac)) is not None:
                    self._reuse(item, row)
                else:
                    self._begin_attempt(item, 0)
            except RecordError as error:
                item.fail(error.reason)
        return item

    def _reuse(self, item: ReleaseItem, row: Mapping[str, Any]) -> None:
        """Take up what was published before: it is scored and gated as this run's settings say, never sampled again."""
        assert item.picture is not None
        with self.watch.stage("read"):
            item.data = self.previous.read_image(row["sha256"])
        with self.watch.stage("decode"):
            model, (height, width) = self.backbone, item.picture.tensor.shape[-2:]
            published = image_codec.decode(item.data, model.size, self.source.fit, multiple=model.multiple).tensor
            if published.shape[-2:] != (height, width):  # of a model of another size
                published = resize(published[None], (height, width))[0]
        item.reused, item.published = {name: row[name] for name in REUSED_COLUMNS} | {"kept": True}, published

    def _begin_attempt(self, item: ReleaseItem, attempt: int) -> None:
        columns = self.attempts[attempt]
        item.attempt, item.level = attempt, columns["level"]
        item.noise_key = self.key.noise_key(item.source_hmac or "", columns["config_fingerprint"])

    def score(self, batch: Sequence[ReleaseItem], x0: torch.Tensor, outputs: torch.Tensor) -> None:
        if self.is_tiled:  # scorers look at squares, or at the middle of what is none
            x0, outputs = (pad_to_square(images, self.backbone.size) for images in (x0, outputs))
        scores = self.scorer.score(self.scorer.embed(x0), outputs)
        if len(scores) != len(batch):
            raise ValueError(f"scorer: {len(scores)} scores for {len(batch)} outputs: it must give one for each")
        for item, item_scores in zip(batch, scores, strict=True):
            item.scores = item_scores

    def gate(self, item: ReleaseItem) -> None:
        """Release or quarantine an output; a new one that came too close is sampled again at the next level, if any."""
        decision, is_new = gate(item.scores, self.config), item.reused is None
        if is_new and decision.reason is Reason.TOO_CLOSE and item.attempt + 1 < len(self.attempts):
            scores = {k: None if v is None or math.isnan(v) else v for k, v in asdict(item.scores).items()}
            item.earlier.append({"level": item.level, "reason": Reason.TOO_CLOSE} | scores)
            self._begin_attempt(item, item.attempt + 1)
        else:
            item.decision = Decision(Status.QUARANTINED, Reason.UNSAFE) if item.is_unsafe else decision

    def finish(self, item: ReleaseItem) -> LedgerRow:
        """Encode and stage an item's output, and return its row."""
        if item.output is not None and item.reused is not None:
            self._stage(item, item.reused["config_fingerprint"], item.data)
        elif item.output is not None:
            self._encode(item, item.output)
        record, decision = item.record, item.decision
        assert decision is not None
        columns: dict[str, Any] = {
            **self.attempts[item.attempt],
            "record_id": record.entry.record_id,
            "source_uri": to_printable(record.entry.uri),
            "source_hmac": item.source_hmac,
            "output_id": item.output_id,
            "status": decision.status,
            "reason": decision.reason,
            "attempts": len(item.earlier) + (item.picture is not None and item.reused is None),
            "earlier": json.dumps(item.earlier) if item.earlier else None,
            "started": item.started,
            "seconds": item.seconds,
            "label": record.label,
            "caption": record.caption,
            "carried": to_json(record.columns),
            "restricted": to_json(record.restricted),
            "subject": record.subject,
            **asdict(item.scores if item.output_id else Scores()),
        }
        if item.encoded is not None:
            columns |= {"sha256": item.sha256, "bytes": len(item.encoded.data)}
            columns |= {"width": item.encoded.width, "height": item.encoded.height}
        return LedgerRow(**columns | dict((item.output_id and item.reused) or {}))

    def _encode(self, item: ReleaseItem, output: torch.Tensor) -> None:
        out, picture = self.config.output, item.picture
        shape = (picture.width, picture.height) if picture else None
        try:
            with self.watch.stage("encode"):
                encoded = image_codec.encode(output, shape, out.image, out.quality, out.size, self.config.source.fit)
        except RecordError as error:
            item.fail(error.reason)
            return
        item.encoded = encoded
        self._stage(item, self.attempts[item.attempt]["config_fingerprint"], encoded.data)
        with self.watch.stage("hash"):
            item.sha256 = hashlib.sha256(encoded.data).hexdigest()

    def _stage(self, item: ReleaseItem, fingerprint: str, data: bytes) -> None:
        item.output_id = self.key.output_id(item.record.entry.record_id, item.source_hmac or "", fingerprint)
        with self.watch.stage("write"):
            self.writer.put(item.output_id, image_codec.SUFFIXES[self.config.output.image], data)
