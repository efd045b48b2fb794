"""The journey of one shard: read, decode, Boomerang, score, gate, encode, stage, commit."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

import torch

from anonymizer import images
from anonymizer.ahead import ahead
from anonymizer.backbones import Backbone
from anonymizer.backbones.tiles import Tiled
from anonymizer.batches import Decoded, batches
from anonymizer.boomerang import Boomerang
from anonymizer.carried import to_json
from anonymizer.config import RunConfig
from anonymizer.errors import RecordError
from anonymizer.fit import squared
from anonymizer.keys import CustodianKey
from anonymizer.ledger import Row, ShardSummary, ShardWriter
from anonymizer.noise import KeyedNoise
from anonymizer.policy import gate
from anonymizer.previous import KEPT, NOTHING, Previous
from anonymizer.previous import scores as scores_of
from anonymizer.records import Decision, Entry, Reason, Record, Scores, Status
from anonymizer.sources import open_source, printable
from anonymizer.told import condition, told, unsafe

SCORES = {score.name for score in fields(Scores)}
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
class Attempt:
    """One way through Boomerang: at the level that was asked for, or at a stronger one."""

    level: float
    fingerprint: str  # of the settings at this level: an output is what a run at this level would have given
    columns: Mapping[str, Any]  # of the ledger


@dataclass(frozen=True)
class Drawn:
    """Outputs (B, 3, H, W) on the CPU of one attempt, their scores, and the seconds that each record took.

    ``unsafe``: what the model's own safety checker objects to.
    """

    items: Sequence[Decoded]
    attempt: Attempt
    outputs: torch.Tensor
    scores: Sequence[Scores]
    unsafe: Sequence[bool]
    started: datetime
    seconds: float

    def where(self, kept: Sequence[int]) -> Drawn:
        """Some of them."""
        items, scores = [self.items[i] for i in kept], [self.scores[i] for i in kept]
        unsafe = [self.unsafe[i] for i in kept]
        return replace(self, items=items, scores=scores, unsafe=unsafe, outputs=self.outputs[list(kept)])


def anonymize_shard(
    shard: int,
    entries: Sequence[Entry],
    config: RunConfig,
    backbone: Backbone,
    scorer: Scorer,
    key: CustodianKey,
    writer: ShardWriter,
    progress: Callable[[int], None] = lambda done: None,
    previous: Previous = NOTHING,
) -> ShardSummary:
    """Take every record of a shard to one of its three ends, and commit.

    Decoding and encoding run in threads beside the model. ``progress`` is told how many records ended. A record that
    cannot be used becomes a row; anything else that goes wrong leaves the shard uncommitted and is raised.
    """
    begun = time.monotonic()
    journey = _Journey(shard, config, backbone, scorer, key, writer, previous)
    rows: list[Row] = []
    with ThreadPoolExecutor(config.run.threads, "codec") as pool:
        records = open_source(config.source).read(entries)
        decoded = ahead(journey.decode, records, pool, depth=journey.ahead)
        writes: deque[Future[list[Row]]] = deque()
        with closing(decoded):
            for good, others in batches(decoded, journey.at_once):
                rows += [journey.without_drawing(item) for item in others]
                for drawn in journey.draw(good):
                    writes.append(pool.submit(journey.finish, drawn))
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
        self,
        shard: int,
        config: RunConfig,
        backbone: Backbone,
        scorer: Scorer,
        key: CustodianKey,
        writer: ShardWriter,
        previous: Previous,
    ):
        self.config, self.scorer, self.key, self.writer = config, scorer, key, writer
        self.backbone = Tiled(backbone, config.model.tile_overlap) if config.source.fit == "tiles" else backbone
        self.previous = previous
        self.boomerang = Boomerang(self.backbone, config.boomerang.sampler, config.boomerang.steps)
        self.attempts = [self._attempt(shard, level) for level in (config.boomerang.level, *config.policy.escalate)]

    def _attempt(self, shard: int, level: float) -> Attempt:
        t_boom = self.boomerang.t_boom(level)
        fingerprint = self.config.at(level).fingerprint(self.backbone.digest)
        columns = {
            "level": level,
            "t_boom": t_boom,
            "log_snr": self.boomerang.log_snr(t_boom),
            "sampler": self.config.boomerang.sampler,
            "steps": len(self.boomerang.grid(t_boom)) - 1,
            "model": self.config.model.public_name,
            "model_digest": self.backbone.digest,
            "config_fingerprint": fingerprint,
            "code_version": version("anonymizer"),
            "shard": shard,
        }
        return Attempt(level, fingerprint, columns)

    @property
    def ahead(self) -> int:
        """Records that are decoded before their turn; few where they may be large."""
        return 2 if self.config.source.fit == "tiles" else 2 * self.config.run.batch_size

    def at_once(self, picture: torch.Tensor) -> int:
        """How many pictures of this shape have about as many pixels as a batch of the model's size."""
        return max(1, self.config.run.batch_size * self.backbone.size**2 // (picture.shape[-2] * picture.shape[-1]))

    def decode(self, record: Record) -> Decoded:
        hmac = None if record.problem else self.key.source_hmac(record.data)
        subject = None if record.subject is None else self.key.subject_hmac(record.subject)
        if self.previous.is_erased(hmac, subject):
            return Decoded(Record(record.entry), hmac, problem=Reason.WITHDRAWN)  # and nothing more of the person
        if hmac is None:
            return Decoded(record, problem=record.problem)
        slim = replace(record, data=b"")  # the encoded bytes are not needed any more
        if (row := self.previous.row(hmac)) is not None:
            return Decoded(slim, hmac, kept=row)
        try:
            said = told(self.config.model, record, self.backbone)
            source, model = self.config.source, self.backbone
            picture = images.decode(record.data, model.size, source.fit, source.limits, model.multiple)
        except RecordError as error:
            return Decoded(slim, hmac, problem=error.reason)
        return Decoded(slim, hmac, picture, said)

    def draw(self, batch: Sequence[Decoded]) -> Iterator[Drawn]:
        """Outputs of a batch; those that came too close are drawn again at a stronger level, while there is one."""
        for attempt in self.attempts:
            if not batch:
                return
            drawn = self.sample(batch, attempt)
            close = [
                i
                for i, scores in enumerate(drawn.scores)
                if attempt is not self.attempts[-1] and gate(scores, self.config).reason is Reason.TOO_CLOSE
            ]
            if rest := sorted(set(range(len(batch))) - set(close)):
                yield drawn.where(rest)
            batch = [replace(item, earlier=(*item.earlier, _tried(attempt, drawn.scores[i])))
                     for i, item in enumerate(batch) if i in close]  # fmt: skip

    def sample(self, batch: Sequence[Decoded], attempt: Attempt) -> Drawn:
        started, begun = datetime.now(UTC), time.monotonic()
        x0 = torch.stack([item.picture.tensor for item in batch if item.picture])  # (B, 3, H, W)
        x0 = x0.to(self.backbone.device)
        noise = KeyedNoise([self.key.noise_key(item.source_hmac or "", attempt.fingerprint) for item in batch])
        said = condition(self.backbone, (item.told for item in batch))
        outputs = self.boomerang.sample(x0, attempt.level, noise, said)
        seen = (x0, outputs)
        if self.config.source.fit == "tiles":  # scorers look at squares, or at the middle of what is none
            seen = (squared(x0, self.backbone.size), squared(outputs, self.backbone.size))
        scores = self.scorer.score(self.scorer.embed(seen[0]), seen[1])
        if len(scores) != len(batch):
            raise ValueError(f"scorer: {len(scores)} scores for {len(batch)} outputs: it must give one for each")
        objections = unsafe(self.config.model, self.backbone, outputs)
        return Drawn(
            batch, attempt, outputs.cpu(), scores, objections, started, (time.monotonic() - begun) / len(batch)
        )

    def finish(self, drawn: Drawn) -> list[Row]:
        pairs = zip(drawn.items, drawn.outputs, drawn.scores, drawn.unsafe, strict=True)
        return [self._finish_one(drawn, *pair) for pair in pairs]

    def without_drawing(self, item: Decoded) -> Row:
        """The row of a record that no output is drawn of: there is one, or there cannot be one."""
        if item.kept is None:
            decision = Decision(Status.FAILED, item.problem)
            return self._row(item, self.attempts[0], decision, attempts=0, started=datetime.now(UTC), seconds=0.0)
        unknown = SCORES - self.scorer.names.keys()  # a score is nothing without the name of the model that made it
        said = {name: None if name in unknown else item.kept[name] for name in KEPT}
        record_id, fingerprint = item.record.entry.record_id, item.kept["config_fingerprint"]
        output_id = self.key.output_id(record_id, item.source_hmac or "", fingerprint)
        decision = gate(scores_of(said), self.config)
        return self._row(item, self.attempts[0], decision, **said, output_id=output_id, attempts=0, kept=True)

    def _finish_one(self, drawn: Drawn, item: Decoded, output: torch.Tensor, scores: Scores, unsafe: bool) -> Row:
        out, attempt = self.config.output, drawn.attempt
        shape = (item.picture.width, item.picture.height) if item.picture else None
        about: dict[str, Any] = {
            "attempts": len(item.earlier) + 1,
            "earlier": json.dumps(item.earlier) if item.earlier else None,
            "started": drawn.started,
            "seconds": drawn.seconds,
        }
        try:
            encoded = images.encode(output, shape, out.image, out.quality, out.size, self.config.source.fit)
        except RecordError as error:
            return self._row(item, attempt, Decision(Status.FAILED, error.reason), **about)
        output_id = self.key.output_id(item.record.entry.record_id, item.source_hmac or "", attempt.fingerprint)
        self.writer.put(output_id, images.SUFFIXES[out.image], encoded.data)
        return self._row(
            item,
            attempt,
            Decision(Status.QUARANTINED, Reason.UNSAFE) if unsafe else gate(scores, self.config),
            **about,
            **asdict(scores),
            output_id=output_id,
            sha256=hashlib.sha256(encoded.data).hexdigest(),
            bytes=len(encoded.data),
            width=encoded.width,
            height=encoded.height,
        )

    def _row(self, item: Decoded, attempt: Attempt, decision: Decision, **rest: Any) -> Row:
        record = item.record
        nothing: dict[str, Any] = dict.fromkeys(("output_id", "clip_similarity", "lpips", "identity_distance"))
        own: dict[str, Any] = {
            "record_id": record.entry.record_id,
            "source_uri": printable(record.entry.uri),
            "source_hmac": item.source_hmac,
            "status": decision.status,
            "reason": decision.reason,
            "label": record.label,
            "caption": record.caption,
            "carried": to_json(record.columns),
            "restricted": to_json(record.restricted),
            "subject": record.subject,
        }
        return Row(**(nothing | dict(attempt.columns) | own | rest))


def _tried(attempt: Attempt, scores: Scores) -> dict[str, Any]:
    finite = {name: None if value is None or math.isnan(value) else value for name, value in asdict(scores).items()}
    return {"level": attempt.level, "reason": Reason.TOO_CLOSE} | finite
