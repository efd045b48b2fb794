"""Bounded, ordered prefetching of work in threads, and chunks of an iterable."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

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
    """Yield ``function(item)`` in order, with at most ``depth`` items being read, computed or waiting.

    Items are read in a thread of their own, so that the consumer never waits for a disk or a network between two
    results. Closing the generator waits for the item that is being read.
    """
    slots, results = Semaphore(depth), SimpleQueue[Future[B] | None]()
    is_stopped = False

    def read() -> None:
        try:
            iterator = iter(items)
            while slots.acquire() and not is_stopped:
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                results.put(pool.submit(function, item))
            if isinstance(iterator, Generator):
                iterator.close()  # it may hold files open
            results.put(None)
        except BaseException as error:  # raised again in the consumer's thread
            failure: Future[B] = Future()
            failure.set_exception(error)
            results.put(failure)

    reader = Thread(target=read, name="reader", daemon=True)
    reader.start()
    try:
        while (future := results.get()) is not None:
            result = future.result()
            slots.release()
            yield result
    finally:
        is_stopped = True
        slots.release()
        reader.join()
