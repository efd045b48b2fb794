"""A release's own stages: decode, begin, score, gate, encode, stage."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import torch

from anonymizer.backbones import Backbone
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data import image_codec
from anonymizer.data.geometry import pad_to_square, resize
from anonymizer.data.image_codec import EncodedImage
from anonymizer.data.passthrough_columns import to_json
from anonymizer.data.sources.files import to_printable
from anonymizer.errors import RecordError
from anonymizer.pipeline.batch_sampling import Scorer
from anonymizer.pipeline.boomerang_job import BoomerangJob
from anonymizer.pipeline.item import Item
from anonymizer.policy.gates import gate, nearest
from anonymizer.records import Decision, Reason, Record, Scores, Status
from anonymizer.release.history import REUSED_COLUMNS, PublishedHistory
from anonymizer.release.ledger import LedgerRow, ShardWriter
from anonymizer.release.profiling import Stopwatch


@dataclass(slots=True)
class ReleaseItem(Item):
    """An item of a release."""

    source_hmac: str | None = None
    content: str = ""  # keyed digest of what it is drawn from: noise and id depend on it
    attempt: int = 0  # the level that it is sampled at: that of the configuration, then those of ``policy.escalate``
    earlier: list[Mapping[str, Any]] = field(default_factory=list)  # level, reason and scores of outputs too close
    reused: Mapping[str, Any] | None = None  # columns of an output that an earlier release published
    data: bytes = b""  # the encoded output of an earlier release
    output_id: str | None = None
    sha256: str | None = None  # of the encoded output

    @property
    def drawn(self) -> Sequence[ReleaseItem]:
        return (self,)


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
        item.content = item.source_hmac or ""
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

    def begin(self, items: Iterable[ReleaseItem]) -> Iterator[ReleaseItem]:
        """Yield items that are ready to be sampled, and those that have ended or were published before."""
        for item in items:
            if item.decision is None and item.reused is None:
                self._begin_attempt(item, 0)
            yield item

    def _begin_attempt(self, item: ReleaseItem, attempt: int) -> None:
        columns = self.attempts[attempt]
        item.attempt, item.level = attempt, columns["level"]
        for one in item.drawn:
            one.attempt, one.level = item.attempt, item.level
            one.noise_key = self.key.noise_key(one.content, columns["config_fingerprint"])

    def score(self, batch: Sequence[ReleaseItem], x0: torch.Tensor, outputs: torch.Tensor) -> None:
        if self.is_tiled:  # scorers look at squares, or at the middle of what is none
            x0, outputs = (pad_to_square(images, self.backbone.size) for images in (x0, outputs))
        scores = self.scorer.score(self.scorer.embed(x0), outputs)
        if len(scores) != len(batch):
            raise ValueError(f"scorer: {len(scores)} scores for {len(batch)} outputs: it must give one for each")
        for item, item_scores in zip(batch, scores, strict=True):
            item.scores = item_scores

    def gate(self, item: ReleaseItem) -> None:
        """Release or quarantine outputs; where a new one came too close, all are sampled again at the next level."""
        decisions, is_new = [gate(one.scores, self.config) for one in item.drawn], item.reused is None
        is_close = any(decision.reason is Reason.TOO_CLOSE for decision in decisions)
        if is_new and is_close and item.attempt + 1 < len(self.attempts):
            closest = asdict(nearest([one.scores for one in item.drawn]))
            scores = {k: None if v is None or math.isnan(v) else v for k, v in closest.items()}
            item.earlier.append({"level": item.level, "reason": Reason.TOO_CLOSE} | scores)
            self._begin_attempt(item, item.attempt + 1)
            return
        for one, decision in zip(item.drawn, decisions, strict=True):
            one.decision = Decision(Status.QUARANTINED, Reason.UNSAFE) if one.is_unsafe else decision
        item.decision = item.drawn[0].decision

    def finish(self, item: ReleaseItem) -> list[LedgerRow]:
        """Encode and stage an item's outputs, all or none, and return the rows of its records."""
        try:
            encoded = [(one, self._encode(one, one.output)) for one in item.drawn if one.output is not None]
        except RecordError as error:
            item.fail(error.reason)
        else:
            for one, image in encoded:
                self._stage(one, image)
        return self.rows(item)

    def rows(self, item: ReleaseItem) -> list[LedgerRow]:
        """Return a row for each record of an item that has ended."""
        return [self.row(item, item)]

    def row(self, item: ReleaseItem, made: ReleaseItem) -> LedgerRow:
        """Return the row of a record; ``made`` has the output, and how it came about."""
        record, decision = item.record, made.decision
        assert decision is not None
        columns: dict[str, Any] = {
            **self.attempts[made.attempt],
            "record_id": record.entry.record_id,
            "source_uri": to_printable(record.entry.uri),
            "source_hmac": item.source_hmac,
            "output_id": made.output_id,
            "status": decision.status,
            "reason": decision.reason,
            "attempts": len(made.earlier) + bool(made.noise_key),
            "earlier": json.dumps(made.earlier) if made.earlier else None,
            "started": made.started,
            "seconds": made.seconds,
            "label": record.label,
            "caption": record.caption,
            "carried": to_json(record.columns),
            "restricted": to_json(record.restricted),
            "subject": record.subject,
            **asdict(made.scores if made.output_id else Scores()),
        }
        if made.encoded is not None:
            columns |= {"sha256": made.sha256, "bytes": len(made.encoded.data)}
            columns |= {"width": made.encoded.width, "height": made.encoded.height}
        return LedgerRow(**columns | dict((made.output_id and made.reused) or {}))

    def output_id(self, item: ReleaseItem, fingerprint: str) -> str:
        """Return the id of an output that was made with these settings."""
        return self.key.output_id(item.record.entry.record_id, item.content, fingerprint)

    def _encode(self, item: ReleaseItem, output: torch.Tensor) -> EncodedImage | None:
        """Return an encoded output; None for one that was published before. Raises RecordError."""
        if item.reused is not None:
            return None
        out, picture = self.config.output, item.picture
        shape = (picture.width, picture.height) if picture else None
        with self.watch.stage("encode"):
            return image_codec.encode(output, shape, out.image, out.quality, out.size, self.config.source.fit)

    def _stage(self, item: ReleaseItem, encoded: EncodedImage | None) -> None:
        columns = self.attempts[item.attempt] if item.reused is None else item.reused
        item.output_id = self.output_id(item, columns["config_fingerprint"])
        data = item.data if encoded is None else encoded.data
        with self.watch.stage("write"):
            self.writer.put(item.output_id, image_codec.SUFFIXES[self.config.output.image], data)
        if encoded is not None:
            with self.watch.stage("hash"):
                item.encoded, item.sha256 = encoded, hashlib.sha256(encoded.data).hexdigest()
