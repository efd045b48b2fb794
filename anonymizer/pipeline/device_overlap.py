"""What goes on beside the model: on a CPU nothing, for all share its cores; on a GPU all that the host can do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

from anonymizer.noise import KeyedNoise, Noise

A = TypeVar("A")
DRAWS_PER_THREAD = 2  # of noise that each thread is ahead


class DeviceOverlap(Protocol):
    """How a device is kept busy. Neither noise nor what is computed depends on it."""

    depth: int  # batches that are sampled before the scores of the one before them are looked at

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host, on the device."""
        ...

    def prefetch_noise(self, noise: KeyedNoise, draws: Sequence[int]) -> Noise:
        """The same noise; ``draws`` are the steps that it will be asked for, in order."""
        ...

    def record_event(self) -> Any:
        """A point in what the device was told to do so far."""
        ...

    def submit_after(self, work: Callable[[], A], after: Any) -> Callable[[], A]:
        """``work`` once the device has come to ``after``, beside what it is told from now on; ask for the result."""
        ...

    def elapsed(self, begun: Any, ended: Any) -> float | None:
        """Seconds that the device took from mark to mark, both behind it; None where the host's clock tells that."""
        ...


class Sequential:
    """One thing after the other, in the thread that asks."""

    depth = 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device)

    def prefetch_noise(self, noise: KeyedNoise, draws: Sequence[int]) -> Noise:
        return noise

    def record_event(self) -> Any:
        return None

    def submit_after(self, work: Callable[[], A], after: Any) -> Callable[[], A]:
        return work

    def elapsed(self, begun: Any, ended: Any) -> float | None:
        return None


class Concurrent:
    """Noise is drawn ahead in threads, and scores are made in one of their own while the next batch is sampled.

    On CUDA copies come from pinned memory, and scoring has a stream of its own: to wait for its results is not to wait
    for the next batch.
    """

    depth = 1

    def __init__(self, device: torch.device, scoring: Executor, drawing: Executor, threads: int) -> None:
        self.device, self.scoring, self.drawing, self.draws = device, scoring, drawing, DRAWS_PER_THREAD * threads
        self.cuda = device.type == "cuda"
        self.stream = torch.cuda.Stream(device, priority=-1) if self.cuda else None

    def to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.pin_memory() if self.cuda else tensor).to(self.device, non_blocking=True)

    def prefetch_noise(self, noise: KeyedNoise, draws: Sequence[int]) -> Noise:
        return PrefetchedNoise(noise, draws, self.drawing, self.draws, pinned=self.cuda)

    def record_event(self) -> Any:
        if not self.cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def submit_after(self, work: Callable[[], A], after: Any) -> Callable[[], A]:
        def apart() -> A:
            if self.stream is None:
                return work()
            with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
                self.stream.wait_event(after)
                return work()

        return self.scoring.submit(apart).result

    def elapsed(self, begun: Any, ended: Any) -> float | None:
        return begun.elapsed_time(ended) / 1000 if self.cuda else None


@contextmanager
def overlap(device: torch.device, threads: int) -> Iterator[DeviceOverlap]:
    """What suits the device."""
    if device.type == "cpu":
        yield Sequential(device)
        return
    with ThreadPoolExecutor(1, "scorer") as scoring, ThreadPoolExecutor(threads, "noise") as drawing:
        yield Concurrent(device, scoring, drawing, threads)


class PrefetchedNoise:
    """Noise of a batch, drawn by threads before it is asked for. It must be asked for in the order of ``draws``."""

    def __init__(
        self, noise: KeyedNoise, draws: Sequence[int], pool: Executor, depth: int, *, pinned: bool = False
    ) -> None:
        self.source, self.draws, self.pool, self.depth, self.pinned = noise, draws, pool, depth, pinned
        self.left = deque(draws)
        self.waiting: deque[tuple[int, Future[torch.Tensor]]] = deque()

    def __call__(self, step: int, like: torch.Tensor) -> torch.Tensor:
        shape = tuple(like.shape)
        self._fill(shape)
        found, drawn = self.waiting.popleft()
        if found != step:
            raise ValueError(f"noise: asked for step {step}, and {found} was next: ask in the order of the draws")
        self._fill(shape)
        return drawn.result().to(device=like.device, dtype=like.dtype, non_blocking=True)

    def sample(self, number: int) -> PrefetchedNoise:
        return PrefetchedNoise(self.source.sample(number), self.draws, self.pool, self.depth, pinned=self.pinned)

    def _fill(self, shape: tuple[int, ...]) -> None:
        while self.left and len(self.waiting) < self.depth:
            step = self.left.popleft()
            self.waiting.append((step, self.pool.submit(self.source.drawn, step, shape, pinned=self.pinned)))
