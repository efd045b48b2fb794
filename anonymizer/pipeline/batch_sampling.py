"""From decoded records to outputs and their scores, a batch at a time; too close an output is drawn again, stronger."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import Any, Protocol, TypeVar

import torch

from anonymizer.backbones import Backbone
from anonymizer.backbones.conditioning import encode_conditions, flag_unsafe
from anonymizer.backbones.tiling import TiledBackbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data.geometry import pad_to_square
from anonymizer.devices import device_name, empty_cache, is_out_of_memory
from anonymizer.errors import ModelError
from anonymizer.noise import KeyedNoise, Noise
from anonymizer.pipeline.batching import Decoded
from anonymizer.pipeline.device_overlap import DeviceOverlap
from anonymizer.policy.gates import gate
from anonymizer.records import Reason, Scores
from anonymizer.release.profiling import Profile, Stopwatch

A = TypeVar("A")


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
class BatchJob:
    """Records that are sampled together, at their ``attempt``-th level."""

    items: Sequence[Decoded]
    attempt: int

    @property
    def shape(self) -> torch.Size:
        """(3, H, W) of each picture."""
        assert self.items[0].picture is not None
        return self.items[0].picture.tensor.shape


@dataclass(frozen=True)
class SampledBatch:
    """Originals and outputs (B, 3, H, W) on the device, which may still be at it between the marks."""

    x0: torch.Tensor
    outputs: torch.Tensor
    started: datetime
    begun_at: float
    events: tuple[Any, Any]


@dataclass(frozen=True)
class ScoredBatch:
    """Outputs (B, 3, H, W) on the CPU of one attempt, their scores, and the seconds that each record took.

    ``unsafe``: what the model's own safety checker objects to. ``problem``: why there are no outputs.
    """

    items: Sequence[Decoded]
    attempt: Attempt
    outputs: torch.Tensor
    scores: Sequence[Scores]
    unsafe: Sequence[bool]
    started: datetime
    seconds: float
    problem: Reason | None = None

    def subset(self, indices: Sequence[int]) -> ScoredBatch:
        """Some of them."""
        items, scores = [self.items[i] for i in indices], [self.scores[i] for i in indices]
        unsafe = [self.unsafe[i] for i in indices]
        return replace(self, items=items, scores=scores, unsafe=unsafe, outputs=self.outputs[list(indices)])


class BatchSampler:
    """What the model and the scorer do for one shard.

    Where the device's memory does not suffice for a batch, it is drawn in halves, and later batches are no larger.
    """

    def __init__(
        self, shard: int, config: RunConfig, backbone: Backbone, scorer: Scorer, key: CustodianKey, overlap: DeviceOverlap,  # noqa: E501
        watch: Stopwatch,
    ) -> None:  # fmt: skip
        self.config, self.scorer, self.key, self.overlap, self.watch = config, scorer, key, overlap, watch
        self.backbone = TiledBackbone(backbone, config.model.tile_overlap) if config.source.fit == "tiles" else backbone
        self.boomerang = Boomerang(self.backbone, config.boomerang.sampler, config.boomerang.steps)
        self.attempts = [self._attempt(shard, level) for level in (config.boomerang.level, *config.policy.escalate)]
        self.batch_size, self.halved = config.run.initial_batch_size, 0
        self.jobs: deque[BatchJob] = deque()
        self.scoring: deque[tuple[BatchJob, Callable[[], ScoredBatch]]] = deque()
        self.last = -math.inf  # when the last batch was scored

    def _attempt(self, shard: int, level: float) -> Attempt:
        t_boom = self.boomerang.t_boom(level)
        fingerprint = self.config.at_level(level).fingerprint(self.backbone.digest)
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

    def batch_size_for(self, picture: torch.Tensor) -> int:
        """How many pictures of this shape have about as many pixels as a batch of the model's size."""
        return max(1, self.batch_size * self.backbone.size**2 // (picture.shape[-2] * picture.shape[-1]))

    def submit(self, batch: Sequence[Decoded]) -> Iterator[ScoredBatch]:
        """Begin with a batch. What comes out is of it or, where scoring goes on beside sampling, of those before it.

        Outputs that came too close are drawn again at a stronger level, while there is one.
        """
        if batch:
            self.jobs.append(BatchJob(batch, 0))
        yield from self._run_jobs(max_pending=self.overlap.depth)

    def drain(self) -> Iterator[ScoredBatch]:
        """What is not out yet."""
        yield from self._run_jobs(max_pending=0)

    def _run_jobs(self, max_pending: int) -> Iterator[ScoredBatch]:
        while self.jobs or len(self.scoring) > max_pending:
            lost: ScoredBatch | None = None
            if self.jobs and len(self.scoring) <= self.overlap.depth:
                job = self.jobs.popleft()
                sampled, lost = self._run_or_halve(job, partial(self.sample, job.items, self.attempts[job.attempt]))
                if sampled is not None:
                    work = partial(self.score, job, sampled)
                    self.scoring.append((job, self.overlap.submit_after(work, sampled.events[1])))
            else:
                job = self.scoring[0][0]
                drawn, lost = self._run_or_halve(job, lambda: self.scoring.popleft()[1]())
                if drawn is not None:
                    yield from self._requeue_too_close(job, drawn)
            if lost is not None:
                yield lost

    def _requeue_too_close(self, job: BatchJob, drawn: ScoredBatch) -> Iterator[ScoredBatch]:
        """What is not too close; the rest is drawn again before anything else."""
        last = job.attempt + 1 == len(self.attempts)
        close = [
            i
            for i, scores in enumerate(drawn.scores)
            if not last and gate(scores, self.config).reason is Reason.TOO_CLOSE
        ]
        if close:
            again = [_with_earlier_attempt(job.items[i], drawn.attempt, drawn.scores[i]) for i in close]
            self.jobs.appendleft(BatchJob(again, job.attempt + 1))
        if rest := sorted(set(range(len(job.items))) - set(close)):
            yield drawn.subset(rest)

    def profile(self, wall: float, records: int) -> Profile:
        """What the shard took."""
        device = device_name(self.backbone.device)
        return Profile(1, records, wall, dict(self.watch.seconds), self.batch_size, self.halved, device)

    def sample(self, batch: Sequence[Decoded], attempt: Attempt) -> SampledBatch:
        """Tell the device what to do; a GPU is not waited for."""
        started, begun = datetime.now(UTC), time.monotonic()
        with self.watch.stage("transfer"):
            x0 = self.overlap.to_device(torch.stack([item.picture.tensor for item in batch if item.picture]))
        keyed = KeyedNoise([self.key.noise_key(item.source_hmac or "", attempt.fingerprint) for item in batch])
        noise = TimedNoise(self.overlap.prefetch_noise(keyed, self.boomerang.draws(attempt.level)), self.watch)
        first = self.overlap.record_event()
        with self.watch.stage("sample" if first is None else "launch"):
            said = encode_conditions(self.backbone, (item.conditioning_text for item in batch))
            outputs = self.boomerang.sample(x0, attempt.level, noise, said)
        return SampledBatch(x0, outputs, started, begun, (first, self.overlap.record_event()))

    def score(self, job: BatchJob, sampled: SampledBatch) -> ScoredBatch:
        """Scores of what was sampled, once it is there, and the outputs on the CPU."""
        x0, outputs = sampled.x0, sampled.outputs
        with self.watch.stage("score"):
            seen = (x0, outputs)
            if self.config.source.fit == "tiles":  # scorers look at squares, or at the middle of what is none
                seen = (pad_to_square(x0, self.backbone.size), pad_to_square(outputs, self.backbone.size))
            scores = self.scorer.score(self.scorer.embed(seen[0]), seen[1])
            if len(scores) != len(outputs):
                raise ValueError(f"scorer: {len(scores)} scores for {len(outputs)} outputs: it must give one for each")
            objections = flag_unsafe(self.config.model, self.backbone, outputs)
        with self.watch.stage("transfer"):
            outputs = outputs.cpu()
        if (seconds := self.overlap.elapsed(*sampled.events)) is not None:
            self.watch.add("sample", seconds)
        ended = time.monotonic()
        each = (ended - max(sampled.begun_at, self.last)) / len(outputs)
        self.last = ended
        return ScoredBatch(job.items, self.attempts[job.attempt], outputs, scores, objections, sampled.started, each)

    def _run_or_halve(self, job: BatchJob, work: Callable[[], A]) -> tuple[A | None, ScoredBatch | None]:
        """What ``work`` gives; or nothing where memory did not suffice, and the end of a record that never fits.

        Nobody may hold on to what failed, which holds on to what it left on the device.
        """
        try:
            return work(), None
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        empty_cache(self.backbone.device)
        self.halved += 1
        return None, self._halve(job)

    def _halve(self, job: BatchJob) -> ScoredBatch | None:
        count, (height, width) = len(job.items), job.shape[-2:]
        if count > 1:
            self.batch_size = max(1, count // 2 * height * width // self.backbone.size**2)
            self.jobs.extendleft(
                [BatchJob(job.items[count // 2 :], job.attempt), BatchJob(job.items[: count // 2], job.attempt)]
            )
            return None
        if height * width <= self.backbone.size**2:
            raise ModelError(
                f"model.id: one picture of {width} x {height} is more than {self.backbone.device} has memory for: set "
                "model.dtype=bfloat16, model.vae_tiling=true or a smaller model.size, or end what else runs on it"
            )
        nothing = torch.full((1, *job.shape), math.nan)
        attempt, problem = self.attempts[job.attempt], Reason.OUT_OF_MEMORY
        return ScoredBatch(job.items, attempt, nothing, [Scores()], [False], datetime.now(UTC), 0.0, problem)


@dataclass(frozen=True)
class TimedNoise:
    """Noise, and the time that is spent waiting for it."""

    noise: Noise
    watch: Stopwatch

    def __call__(self, step: int, like: torch.Tensor) -> torch.Tensor:
        with self.watch.stage("noise"):
            return self.noise(step, like)

    def sample(self, number: int) -> TimedNoise:
        return TimedNoise(self.noise.sample(number), self.watch)


def _with_earlier_attempt(item: Decoded, attempt: Attempt, scores: Scores) -> Decoded:
    """A record that came too close, and how it did."""
    finite = {name: None if value is None or math.isnan(value) else value for name, value in asdict(scores).items()}
    tried = {"level": attempt.level, "reason": Reason.TOO_CLOSE} | finite
    return replace(item, earlier=(*item.earlier, tried))
