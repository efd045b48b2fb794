"""Stages around the model: items are decoded ahead of it and written behind it, by threads, in order and bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from anonymizer.pipeline.device_overlap import Sequential, open_overlap
from anonymizer.release.profiling import Stopwatch
from anonymizer.storage.prefetch import prefetch_map

A = TypeVar("A")
B = TypeVar("B")

WRITE_DEPTH = 2  # batches that wait to be written


@dataclass(frozen=True)
class Stages:
    """Threads that work beside the model, and the time that each stage takes."""

    pool: Executor
    overlap: Sequential
    watch: Stopwatch
    stack: ExitStack

    def decode(self, function: Callable[[A], B], records: Iterable[A], depth: int) -> Iterator[B]:
        """Yield ``function`` of each record, at most ``depth`` of them being read, decoded or waiting."""
        decoded = prefetch_map(function, self.watch.time_items("read", records), self.pool, depth)
        return self.watch.time_items("wait", self.stack.enter_context(closing(decoded)))

    def write(self, function: Callable[[A], B], batches: Iterable[list[A]]) -> Iterator[B]:
        """Yield ``function`` of each item; batches are taken in the thread that asks, which is the model's."""
        writing: deque[Future[list[B]]] = deque()

        def write_batch(batch: list[A]) -> list[B]:
            return [function(item) for item in batch]

        def wait(depth: int) -> Iterator[B]:
            while writing and (len(writing) > depth or writing[0].done()):
                with self.watch.stage("wait"):
                    written = writing.popleft().result()
                yield from written

        for batch in batches:
            writing.append(self.pool.submit(write_batch, batch))
            yield from wait(WRITE_DEPTH)
        yield from wait(0)


@contextmanager
def open_stages(device: torch.device, threads: int, watch: Stopwatch) -> Iterator[Stages]:
    """Start ``threads`` that decode and write beside the model on ``device``; they end with the context."""
    with ThreadPoolExecutor(threads, "codec") as pool, open_overlap(device, threads) as overlap, ExitStack() as stack:
        yield Stages(pool, overlap, watch, stack)
