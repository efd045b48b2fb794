"""Work that threads do ahead of whoever asks for it, in order and bounded."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


def chunked(items: Iterable[A], size: int) -> Iterator[list[A]]:
    """Yield lists of ``size`` items in order; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def prefetch_map(
    function: Callable[[A], B], items: Iterable[A], pool: Executor, depth: int
) -> Generator[B, None, None]:
    """``function`` of each item, in order, at most ``depth`` of them being read, worked on or waiting.

    Items are taken in a thread of their own, so that whoever asks never waits for a disk or a network in between. Close
    it to stop early: it returns when the item that is being read is there.
    """
    feeder = _Feeder(function, items, pool, depth)
    feeder.start()
    try:
        while (future := feeder.waiting.get()) is not None:
            result = future.result()
            feeder.slots.release()
            yield result
    finally:
        feeder.stop()


class _Feeder(Thread, Generic[A, B]):
    """Takes items while there is room, and has each worked on."""

    def __init__(self, function: Callable[[A], B], items: Iterable[A], pool: Executor, depth: int) -> None:
        super().__init__(name="reader", daemon=True)
        self.work, self.slots, self.stopped = (function, items, pool), Semaphore(depth), Event()
        self.waiting: SimpleQueue[Future[B] | None] = SimpleQueue()

    def run(self) -> None:
        function, items, pool = self.work
        try:
            iterator = iter(items)
            while self.slots.acquire() and not self.stopped.is_set():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                self.waiting.put(pool.submit(function, item))
            if isinstance(iterator, Generator):
                iterator.close()  # it may hold files open
            self.waiting.put(None)
        except BaseException as error:  # it belongs to whoever asks
            failed: Future[B] = Future()
            failed.set_exception(error)
            self.waiting.put(failed)

    def stop(self) -> None:
        self.stopped.set()
        self.slots.release()
        self.join()
