"""From decoded items to decided ones, a batch at a time: sample, score, gate, and sample again what came too close."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, Protocol

import torch

from anonymizer.backbones import Backbone
from anonymizer.backbones.conditioning import encode_conditions, flag_unsafe
from anonymizer.config import ModelConfig
from anonymizer.devices import empty_cache, is_out_of_memory
from anonymizer.errors import ModelError
from anonymizer.noise import KeyedNoise, Noise
from anonymizer.pipeline.batching import I, batch_items
from anonymizer.pipeline.device_overlap import Sequential
from anonymizer.records import Reason, Scores
from anonymizer.release.profiling import Stopwatch


class Scorer(Protocol):
    """Scores outputs against originals; both (B, 3, H, W) in [-1, 1]."""

    names: Mapping[str, str]  # score column -> the model that fills it

    def embed(self, originals: torch.Tensor) -> Any:
        """Return what scores need of the originals, so that these are embedded once."""
        ...

    def score(self, reference: Any, outputs: torch.Tensor) -> Sequence[Scores]:
        """Return one ``Scores`` for each row."""
        ...


class SamplingJob(ABC, Generic[I]):
    """What a release, an augmentation and an enhancement do each in its own way between decoding and encoding."""

    backbone: Backbone
    model: ModelConfig
    max_waiting_bytes = 0  # see ``batch_items``

    def working_sides(self, item: I) -> tuple[int, int]:
        """Return the height and width at which the model works on an item."""
        assert item.picture is not None
        height, width = item.picture.tensor.shape[-2:]
        return height, width

    def noise_steps(self, level: float) -> Sequence[int] | None:
        """Return the steps that ``sample`` asks noise for, in order; None where it is not drawn ahead."""
        return None

    @abstractmethod
    def sample(self, x0: torch.Tensor, level: float, noise: Noise, condition: object) -> torch.Tensor:
        """Return one output for each item drawn from ``x0`` (B, 3, H, W), pictures in [-1, 1], on its device."""

    def score(self, batch: Sequence[I], x0: torch.Tensor, outputs: torch.Tensor) -> None:
        """Note in each item what the gate has to know; ``x0`` and ``outputs`` are on the device."""

    @abstractmethod
    def gate(self, item: I) -> None:
        """Decide on an item; one that is left without a decision is sampled again, as it is then."""


class BatchSampler(Generic[I]):
    """Sample, score and gate items in batches.

    Where the device's memory does not suffice for a batch, it is sampled in halves, and later batches are no larger.
    """

    def __init__(self, job: SamplingJob[I], batch_size: int, overlap: Sequential, watch: Stopwatch) -> None:
        self.job, self.batch_size, self.overlap, self.watch = job, batch_size, overlap, watch
        self.halved = 0  # batches
        self._queue: deque[list[I]] = deque()
        self._scoring: deque[tuple[list[I], Callable[[], None]]] = deque()
        self._last_scored = -math.inf

    def run(self, items: Iterable[I]) -> Iterator[list[I]]:
        """Yield batches of items that have a decision, in any order."""
        for batch in batch_items(items, self.batch_size_for, self.job.max_waiting_bytes):
            if batch[0].decision is not None:
                yield batch
                continue
            self._queue.append(batch)
            yield from self._advance(self.overlap.depth)
        yield from self._advance(0)

    def batch_size_for(self, item: I) -> int:
        """Return how many items of this size have outputs of about as many pixels as a batch of the model's size."""
        pixels = math.prod(self.job.working_sides(item)) * len(item.drawn)
        return max(1, self.batch_size * self.job.backbone.size**2 // pixels)

    def _advance(self, max_scoring: int) -> Iterator[list[I]]:
        """Work until nothing is queued, and no more than so many batches wait for their scores."""
        while self._queue or len(self._scoring) > max_scoring:
            if self._queue and len(self._scoring) <= self.overlap.depth:
                batch = self._queue.popleft()
                self._run_or_halve(batch, partial(self._sample, batch))
            else:
                batch = self._scoring[0][0]
                if self._run_or_halve(batch, lambda: self._scoring.popleft()[1]()):
                    self._gate(batch)
            if decided := [item for item in batch if item.decision is not None]:
                yield decided

    def _sample(self, batch: list[I]) -> None:
        """Give a batch to the device, and have it scored once it is there; a GPU is not waited for."""
        started, begun, level = datetime.now(UTC), time.monotonic(), batch[0].level
        with self.watch.stage("transfer"):
            x0 = self.overlap.to_device(torch.stack([item.picture.tensor for item in batch if item.picture]))
        published = [item.published for item in batch if item.published is not None]
        first = self.overlap.record_event()
        if published:
            with self.watch.stage("transfer"):
                outputs = self.overlap.to_device(torch.stack(published))
        else:
            outputs = self._draw(batch, x0, level, "sample" if first is None else "launch")
        last = self.overlap.record_event()

        def score() -> None:
            with self.watch.stage("score"):
                self.job.score(batch, x0, outputs)
                unsafe = flag_unsafe(self.job.model, self.job.backbone, outputs)
            with self.watch.stage("transfer"):
                rows = outputs.cpu()
            if (on_device := self.overlap.elapsed(first, last)) is not None:
                self.watch.add("sample", on_device)
            ended = time.monotonic()
            drawn = [one for item in batch for one in item.drawn]
            seconds = (ended - max(begun, self._last_scored)) / len(drawn)
            self._last_scored = ended
            for one, output, is_unsafe in zip(drawn, rows, unsafe, strict=True):
                one.output, one.is_unsafe, one.started, one.seconds = output, is_unsafe, started, seconds

        self._scoring.append((batch, self.overlap.submit_after(score, last)))

    def _draw(self, batch: list[I], x0: torch.Tensor, level: float, stage: str) -> torch.Tensor:
        drawn = [one for item in batch for one in item.drawn]
        keyed, steps = KeyedNoise([one.noise_key for one in drawn]), self.job.noise_steps(level)
        noise = TimedNoise(keyed if steps is None else self.overlap.prefetch_noise(keyed, steps), self.watch)
        with self.watch.stage(stage):
            condition = encode_conditions(self.job.backbone, (one.conditioning_text for one in drawn))
            return self.job.sample(x0, level, noise, condition)

    def _gate(self, batch: list[I]) -> None:
        """Decide on each item; those that are to be sampled again are, before anything else."""
        for item in batch:
            self.job.gate(item)
        if again := [item for item in batch if item.decision is None]:
            self._queue.appendleft(again)

    def _run_or_halve(self, batch: list[I], work: Callable[[], None]) -> bool:
        """Return whether ``work`` is done; False where memory did not suffice, and the batch was halved.

        The error is dropped before the cache is emptied: its traceback holds what the failed work left on the device.
        """
        try:
            work()
            return True
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        empty_cache(self.job.backbone.device)
        self.halved += 1
        self._halve(batch)
        return False

    def _halve(self, batch: list[I]) -> None:
        """Queue both halves; one picture that never fits fails, unless no picture can be expected to."""
        half, (height, width), size = len(batch) // 2, self.job.working_sides(batch[0]), self.job.backbone.size
        if half:
            self.batch_size = max(1, half * len(batch[0].drawn) * height * width // size**2)
            self._queue.extendleft([batch[half:], batch[:half]])
        elif height * width <= size**2:
            raise ModelError(
                f"model.id: one picture of {width} x {height} is more than {self.job.backbone.device} has memory for: "
                "set model.dtype=bfloat16, model.vae_tiling=true or a smaller model.size, or end what else runs on it"
            )
        else:
            batch[0].fail(Reason.OUT_OF_MEMORY)


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
