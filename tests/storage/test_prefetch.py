"""Prefetching in threads: ordered, bounded, and stopped with its consumer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from time import sleep

import pytest

from anonymizer.storage.prefetch import chunked, prefetch_map


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "reader"]


def test_results_are_in_order_however_long_each_takes() -> None:
    with ThreadPoolExecutor(4) as pool:
        slow_first = prefetch_map(lambda i: (sleep(0.02 / (1 + i)), i * i)[1], range(20), pool, depth=5)
        assert list(slow_first) == [i * i for i in range(20)]
    assert not readers()


def test_items_are_read_ahead_up_to_the_depth() -> None:
    read: list[int] = []
    full = threading.Event()

    def items() -> Iterator[int]:
        for i in range(50):
            read.append(i)
            if len(read) == 5:
                full.set()
            yield i

    with ThreadPoolExecutor(2) as pool, closing(prefetch_map(str, items(), pool, depth=4)) as results:
        assert next(results) == "0"
        assert full.wait(5)  # the fifth is read although only one was asked for
        for asked in range(2, 12):
            next(results)
            assert len(read) <= asked + 4


def test_an_error_of_the_source_is_raised_after_the_results_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("gone")

    with ThreadPoolExecutor(2) as pool:
        results = prefetch_map(str, items(), pool, depth=3)
        assert (next(results), next(results)) == ("1", "2")
        with pytest.raises(OSError, match="gone"):
            next(results)
    assert not readers()


def test_closing_early_closes_the_source() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed.set()

    with ThreadPoolExecutor(2) as pool:
        with closing(prefetch_map(str, items(), pool, depth=3)) as results:
            next(results)
        assert closed.is_set()
    assert not readers()


def test_chunks_are_lists_in_order_and_the_last_may_be_shorter() -> None:
    assert list(chunked(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(chunked(iter(""), 3)) == []
