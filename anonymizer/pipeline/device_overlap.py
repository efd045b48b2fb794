"""What goes on beside the model: on a CPU nothing, for all share its cores; on a GPU all that the host can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch

from anonymizer.noise import KeyedNoise, Noise
from anonymizer.storage.prefetch import prefetch_map

A = TypeVar("A")
DRAWS_PER_THREAD = 2  # noise tensors that each thread draws ahead


class Sequential:
    """One step after the other, in the thread that asks. Neither noise nor outputs depend on how work overlaps."""

    depth = 0  # batches that are sampled before the scores of an earlier one are looked at

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the host on the device."""
        return tensor.to(self.device)

    def prefetch_noise(self, noise: KeyedNoise, steps: Sequence[int]) -> Noise:
        """Return the same noise, which will be asked for these steps in this order."""
        return noise

    def record_event(self) -> Any:
        """Return a point in the device's queue of work; None where the host waits for each step."""
        return None

    def submit_after(self, work: Callable[[], A], event: Any) -> Callable[[], A]:
        """Return a function for the result of ``work``, which begins once the device has come to ``event``."""
        return work

    def elapsed(self, begin: Any, end: Any) -> float | None:
        """Return seconds of the device between two events that have passed; None where the host's clock has them."""
        return None


class Concurrent(Sequential):
    """Noise is drawn ahead in threads, and scores are made in one of their own while the next batch is sampled.

    On CUDA, copies come from pinned memory, and scoring has a stream of its own: to wait for its results is not to wait
    for the next batch.
    """

    depth = 1

    def __init__(self, device: torch.device, scoring: Executor, drawing: Executor, threads: int) -> None:
        super().__init__(device)
        self.scoring, self.drawing, self.draws = scoring, drawing, DRAWS_PER_THREAD * threads
        self.is_cuda = device.type == "cuda"
        self.stream = torch.cuda.Stream(device, priority=-1) if self.is_cuda else None

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.pin_memory() if self.is_cuda else tensor).to(self.device, non_blocking=True)

    def prefetch_noise(self, noise: KeyedNoise, steps: Sequence[int]) -> Noise:
        return PrefetchedNoise(noise, steps, self.drawing, self.draws, pinned=self.is_cuda)

    def record_event(self) -> Any:
        if not self.is_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def submit_after(self, work: Callable[[], A], event: Any) -> Callable[[], A]:
        def run_on_stream() -> A:
            if self.stream is None:
                return work()
            with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
                self.stream.wait_event(event)
                return work()

        return self.scoring.submit(run_on_stream).result

    def elapsed(self, begin: Any, end: Any) -> float | None:
        return begin.elapsed_time(end) / 1000 if self.is_cuda else None


@contextmanager
def open_overlap(device: torch.device, threads: int) -> Iterator[Sequential]:
    """Start what suits the device."""
    if device.type == "cpu":
        yield Sequential(device)
        return
    with ThreadPoolExecutor(1, "scorer") as scoring, ThreadPoolExecutor(threads, "noise") as drawing:
        yield Concurrent(device, scoring, drawing, threads)


class PrefetchedNoise:
    """Noise of a batch, drawn by threads before it is asked for; the order of ``steps`` must be kept."""

    def __init__(
        self, noise: KeyedNoise, steps: Sequence[int], pool: Executor, depth: int, *, pinned: bool = False
    ) -> None:
        self.source, self.steps, self.pool, self.depth, self.pinned = noise, steps, pool, depth, pinned
        self.drawn: Iterator[tuple[int, torch.Tensor]] | None = None

    def __call__(self, step: int, like: torch.Tensor) -> torch.Tensor:
        if self.drawn is None:
            draw = partial(self.source.drawn, shape=tuple(like.shape), pinned=self.pinned)
            self.drawn = prefetch_map(lambda step: (step, draw(step)), self.steps, self.pool, self.depth)
        following, noise = next(self.drawn)
        if following != step:
            raise ValueError(f"noise: asked for step {step}, and {following} was next: ask in the order of the draws")
        return noise.to(device=like.device, dtype=like.dtype, non_blocking=True)

    def sample(self, number: int) -> PrefetchedNoise:
        return PrefetchedNoise(self.source.sample(number), self.steps, self.pool, self.depth, pinned=self.pinned)
