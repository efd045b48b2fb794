"""The journey of one shard: read, decode, Boomerang, score, gate, encode, stage, commit."""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import Any

import torch

from anonymizer.backbones import Backbone
from anonymizer.backbones.conditioning import conditioning_text
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data import image_codec
from anonymizer.data.passthrough_columns import to_json
from anonymizer.data.sources import open_source, to_printable
from anonymizer.errors import RecordError
from anonymizer.pipeline.batch_sampling import Attempt, BatchSampler, ScoredBatch, Scorer
from anonymizer.pipeline.batching import Decoded, batch_by_shape
from anonymizer.pipeline.device_overlap import overlap
from anonymizer.policy.gates import gate
from anonymizer.records import Decision, Entry, Reason, Record, Scores, ShardSummary, Status
from anonymizer.release.history import EMPTY_HISTORY, REUSED_COLUMNS, PublishedHistory
from anonymizer.release.history import read_scores as scores_of
from anonymizer.release.ledger import LedgerRow, ShardWriter
from anonymizer.release.profiling import Stopwatch
from anonymizer.storage.prefetch import prefetch_map

SCORE_NAMES = {score.name for score in fields(Scores)}


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
    """Take every record of a shard to one of its three ends, and commit.

    Decoding and encoding run in threads beside the model. ``progress`` is told how many records ended. A record that
    cannot be used becomes a row; anything else that goes wrong leaves the shard uncommitted and is raised.
    """
    begun, watch, threads = time.monotonic(), Stopwatch(), config.run.threads
    rows: list[LedgerRow] = []
    with ThreadPoolExecutor(threads, "codec") as pool, overlap(backbone.device, threads) as beside:
        drawing = BatchSampler(shard, config, backbone, scorer, key, beside, watch)
        journey = _ShardPipeline(config, drawing, key, writer, previous)
        writes: deque[Future[list[LedgerRow]]] = deque()

        def written(at_most: int) -> None:
            """Look after what is being written, until no more than so many batches are."""
            while writes and (len(writes) > at_most or writes[0].done()):
                with watch.stage("wait"):
                    rows.extend(writes.popleft().result())
            progress(len(rows))

        records = watch.time_items("read", open_source(config.source).read(entries))
        with closing(prefetch_map(journey.decode, records, pool, depth=journey.prefetch_depth)) as decoded:
            for good, others in batch_by_shape(watch.time_items("wait", decoded), drawing.batch_size_for):
                rows += [journey.row_without_output(item) for item in others]
                writes.extend(pool.submit(journey.finish, drawn) for drawn in drawing.submit(good))
                written(at_most=2)
            writes.extend(pool.submit(journey.finish, drawn) for drawn in drawing.drain())
        written(at_most=0)
    wall = time.monotonic() - begun
    return writer.commit(rows, len(entries), wall, drawing.profile(wall, len(entries)))


class _ShardPipeline:
    """The steps of one shard beside the drawing, in the order in which a record meets them."""

    def __init__(
        self,
        config: RunConfig,
        drawing: BatchSampler,
        key: CustodianKey,
        writer: ShardWriter,
        previous: PublishedHistory,
    ) -> None:
        self.config, self.drawing, self.key, self.writer, self.previous = config, drawing, key, writer, previous
        self.first, self.watch = drawing.attempts[0], drawing.watch

    @property
    def prefetch_depth(self) -> int:
        """Records that are decoded before their turn; few where they may be large."""
        return 2 if self.config.source.fit == "tiles" else 2 * self.config.run.initial_batch_size

    def decode(self, record: Record) -> Decoded:
        with self.watch.stage("hash"):
            hmac = None if record.problem else self.key.source_hmac(record.data)
        subject = None if record.subject is None else self.key.subject_hmac(record.subject)
        if self.previous.is_erased(hmac, subject):
            return Decoded(Record(record.entry), hmac, problem=Reason.WITHDRAWN)  # and nothing more of the person
        if hmac is None:
            return Decoded(record, problem=record.problem)
        slim = replace(record, data=b"")  # the encoded bytes are not needed any more
        if (row := self.previous.find_row(hmac)) is not None:
            return Decoded(slim, hmac, previous_row=row)
        try:
            said = conditioning_text(self.config.model, record, self.drawing.backbone)
            source, model = self.config.source, self.drawing.backbone
            with self.watch.stage("decode"):
                picture = image_codec.decode(record.data, model.size, source.fit, source.limits, model.multiple)
        except RecordError as error:
            return Decoded(slim, hmac, problem=error.reason)
        return Decoded(slim, hmac, picture, said)

    def finish(self, drawn: ScoredBatch) -> list[LedgerRow]:
        pairs = zip(drawn.items, drawn.outputs, drawn.scores, drawn.unsafe, strict=True)
        return [self._finish_one(drawn, *pair) for pair in pairs]

    def row_without_output(self, item: Decoded) -> LedgerRow:
        """The row of a record that no output is drawn of: there is one, or there cannot be one."""
        if item.previous_row is None:
            decision = Decision(Status.FAILED, item.problem)
            return self._row(item, self.first, decision, attempts=0, started=datetime.now(UTC), seconds=0.0)
        unknown = (
            SCORE_NAMES - self.drawing.scorer.names.keys()
        )  # a score is nothing without the name of the model that made it
        said = {name: None if name in unknown else item.previous_row[name] for name in REUSED_COLUMNS}
        record_id, fingerprint = item.record.entry.record_id, item.previous_row["config_fingerprint"]
        output_id = self.key.output_id(record_id, item.source_hmac or "", fingerprint)
        decision = gate(scores_of(said), self.config)
        return self._row(item, self.first, decision, **said, output_id=output_id, attempts=0, kept=True)

    def _finish_one(
        self, drawn: ScoredBatch, item: Decoded, output: torch.Tensor, scores: Scores, unsafe: bool
    ) -> LedgerRow:
        out, attempt = self.config.output, drawn.attempt
        shape = (item.picture.width, item.picture.height) if item.picture else None
        about: dict[str, Any] = {
            "attempts": len(item.earlier) + 1,
            "earlier": json.dumps(item.earlier) if item.earlier else None,
            "started": drawn.started,
            "seconds": drawn.seconds,
        }
        if drawn.problem is not None:
            return self._row(item, attempt, Decision(Status.FAILED, drawn.problem), **about)
        try:
            with self.watch.stage("encode"):
                encoded = image_codec.encode(output, shape, out.image, out.quality, out.size, self.config.source.fit)
        except RecordError as error:
            return self._row(item, attempt, Decision(Status.FAILED, error.reason), **about)
        output_id = self.key.output_id(item.record.entry.record_id, item.source_hmac or "", attempt.fingerprint)
        with self.watch.stage("write"):
            self.writer.put(output_id, image_codec.SUFFIXES[out.image], encoded.data)
        with self.watch.stage("hash"):
            digest = hashlib.sha256(encoded.data).hexdigest()
        return self._row(
            item,
            attempt,
            Decision(Status.QUARANTINED, Reason.UNSAFE) if unsafe else gate(scores, self.config),
            **about,
            **asdict(scores),
            output_id=output_id,
            sha256=digest,
            bytes=len(encoded.data),
            width=encoded.width,
            height=encoded.height,
        )

    def _row(self, item: Decoded, attempt: Attempt, decision: Decision, **rest: Any) -> LedgerRow:
        record = item.record
        nothing: dict[str, Any] = dict.fromkeys(("output_id", "clip_similarity", "lpips", "identity_distance"))
        own: dict[str, Any] = {
            "record_id": record.entry.record_id,
            "source_uri": to_printable(record.entry.uri),
            "source_hmac": item.source_hmac,
            "status": decision.status,
            "reason": decision.reason,
            "label": record.label,
            "caption": record.caption,
            "carried": to_json(record.columns),
            "restricted": to_json(record.restricted),
            "subject": record.subject,
        }
        return LedgerRow(**(nothing | dict(attempt.columns) | own | rest))
