"""The journey of one shard: read, decode, Boomerang, score, gate, encode, stage, commit."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

import torch

from anonymizer import images
from anonymizer.backbones import Backbone
from anonymizer.boomerang import Boomerang
from anonymizer.carried import to_json
from anonymizer.config import RunConfig
from anonymizer.errors import RecordError
from anonymizer.keys import CustodianKey
from anonymizer.ledger import Row, ShardSummary, ShardWriter
from anonymizer.noise import KeyedNoise
from anonymizer.policy import gate
from anonymizer.records import Decision, Entry, Reason, Record, Scores, Status
from anonymizer.sources import open_source, printable

A = TypeVar("A")
B = TypeVar("B")


class Scorer(Protocol):
    """Scores outputs against originals; both (B, 3, H, W) in [-1, 1]."""

    names: Mapping[str, str]  # score column -> the model that made it

    def embed(self, originals: torch.Tensor) -> Any:
        """What is kept of the originals, so that they are embedded once."""
        ...

    def score(self, reference: Any, outputs: torch.Tensor) -> Sequence[Scores]:
        """One ``Scores`` for each row."""
        ...


@dataclass(frozen=True)
class Decoded:
    """A record with its picture, or with the reason why there is none."""

    record: Record
    source_hmac: str | None = None
    picture: images.Picture | None = None
    problem: Reason | None = None


def anonymize_shard(
    shard: int,
    entries: Sequence[Entry],
    config: RunConfig,
    backbone: Backbone,
    scorer: Scorer,
    key: CustodianKey,
    writer: ShardWriter,
    progress: Callable[[int], None] = lambda done: None,
) -> ShardSummary:
    """Take every record of a shard to one of its three ends, and commit.

    Decoding and encoding run in threads beside the model. ``progress`` is told how many records ended. A record that
    cannot be used becomes a row; anything else that goes wrong leaves the shard uncommitted and is raised.
    """
    begun = time.monotonic()
    journey = _Journey(shard, config, backbone, scorer, key, writer)
    rows: list[Row] = []
    with ThreadPoolExecutor(config.run.threads, "codec") as pool:
        records = open_source(config.source).read(entries)
        decoded = _ahead(journey.decode, records, pool, depth=2 * config.run.batch_size)
        writes: deque[Future[list[Row]]] = deque()
        with closing(decoded):
            for good, bad in _batches(decoded, config.run.batch_size):
                rows += [journey.failed(item) for item in bad]
                if good:
                    writes.append(pool.submit(journey.finish, *journey.sample(good)))
                while writes and (len(writes) > 2 or writes[0].done()):
                    rows += writes.popleft().result()
                progress(len(rows))
        while writes:
            rows += writes.popleft().result()
            progress(len(rows))
    return writer.commit(rows, len(entries), time.monotonic() - begun)


class _Journey:
    """The steps of one shard, in the order in which a record meets them."""

    def __init__(
        self, shard: int, config: RunConfig, backbone: Backbone, scorer: Scorer, key: CustodianKey, writer: ShardWriter
    ):
        self.config, self.backbone, self.scorer, self.key, self.writer = config, backbone, scorer, key, writer
        self.boomerang = Boomerang(backbone, config.boomerang.sampler, config.boomerang.steps)
        self.fingerprint = config.fingerprint(backbone.digest)
        t_boom = self.boomerang.t_boom(config.boomerang.level)
        self.settings: dict[str, Any] = {
            "level": config.boomerang.level,
            "t_boom": t_boom,
            "log_snr": self.boomerang.log_snr(t_boom),
            "sampler": config.boomerang.sampler,
            "steps": len(self.boomerang.grid(t_boom)) - 1,
            "model_digest": backbone.digest,
            "config_fingerprint": self.fingerprint,
            "code_version": version("anonymizer"),
            "shard": shard,
        }

    def decode(self, record: Record) -> Decoded:
        if record.problem is not None:
            return Decoded(record, problem=record.problem)
        hmac = self.key.source_hmac(record.data)
        slim = replace(record, data=b"")  # the encoded bytes are not needed any more
        try:
            picture = images.decode(record.data, self.backbone.size, self.config.source.fit, self.config.source.limits)
        except RecordError as error:
            return Decoded(slim, hmac, problem=error.reason)
        return Decoded(slim, hmac, picture)

    def sample(
        self, batch: Sequence[Decoded]
    ) -> tuple[Sequence[Decoded], torch.Tensor, Sequence[Scores], datetime, float]:
        """Outputs (B, 3, H, W) on the CPU, their scores, and the seconds that each record took."""
        started, begun = datetime.now(UTC), time.monotonic()
        x0 = torch.stack([item.picture.tensor for item in batch if item.picture])  # (B, 3, H, W)
        x0 = x0.to(self.backbone.device)
        noise = KeyedNoise([self._noise_key(item) for item in batch])
        outputs = self.boomerang.sample(x0, self.config.boomerang.level, noise)
        scores = self.scorer.score(self.scorer.embed(x0), outputs)
        return batch, outputs.cpu(), scores, started, (time.monotonic() - begun) / len(batch)

    def finish(
        self,
        batch: Sequence[Decoded],
        outputs: torch.Tensor,
        scores: Sequence[Scores],
        started: datetime,
        seconds: float,
    ) -> list[Row]:
        return [self._finish_one(*item, started, seconds) for item in zip(batch, outputs, scores, strict=True)]

    def failed(self, item: Decoded) -> Row:
        return self._row(
            item, Decision(Status.FAILED, item.problem), attempts=0, started=datetime.now(UTC), seconds=0.0
        )

    def _finish_one(
        self, item: Decoded, output: torch.Tensor, scores: Scores, started: datetime, seconds: float
    ) -> Row:
        out = self.config.output
        shape = (item.picture.width, item.picture.height) if item.picture else None
        try:
            encoded = images.encode(output, shape, out.image, out.quality, out.size)
        except RecordError as error:
            return self._row(item, Decision(Status.FAILED, error.reason), attempts=1, started=started, seconds=seconds)
        decision = gate(scores, self.config.metrics)
        digest = item.source_hmac or ""
        output_id = self.key.output_id(item.record.entry.record_id, digest, self.fingerprint)
        self.writer.put(output_id, images.SUFFIXES[out.image], encoded.data)
        return self._row(
            item,
            decision,
            attempts=1,
            started=started,
            seconds=seconds,
            output_id=output_id,
            clip_similarity=scores.clip_similarity,
            lpips=scores.lpips,
            identity_distance=scores.identity_distance,
            sha256=hashlib.sha256(encoded.data).hexdigest(),
            bytes=len(encoded.data),
            width=encoded.width,
            height=encoded.height,
        )

    def _noise_key(self, item: Decoded) -> bytes:
        return self.key.noise_key(item.source_hmac or "", self.fingerprint)

    def _row(self, item: Decoded, decision: Decision, **rest: Any) -> Row:
        record = item.record
        nothing: dict[str, Any] = dict.fromkeys(("output_id", "clip_similarity", "lpips", "identity_distance"))
        return Row(
            record_id=record.entry.record_id,
            source_uri=printable(record.entry.uri),
            source_hmac=item.source_hmac,
            status=decision.status,
            reason=decision.reason,
            label=record.label,
            caption=record.caption,
            carried=to_json(record.columns),
            **self.settings,
            **(nothing | rest),
        )


def _ahead(
    function: Callable[[A], B], items: Iterable[A], pool: ThreadPoolExecutor, depth: int
) -> Generator[B, None, None]:
    """``function`` of each item, in order, at most ``depth`` of them being worked on or waiting."""
    waiting: deque[Future[B]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _batches(items: Iterable[Decoded], size: int) -> Iterator[tuple[list[Decoded], list[Decoded]]]:
    """Full batches of usable records, and with each the unusable ones met on the way."""
    good: list[Decoded] = []
    bad: list[Decoded] = []
    for item in items:
        (good if item.picture else bad).append(item)
        if len(good) == size:
            yield good, bad
            good, bad = [], []
    if good or bad:
        yield good, bad
