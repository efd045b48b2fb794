"""Stages around the model: written behind it in order, bounded, and ended with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from time import sleep

import pytest
import torch

from anonymizer.pipeline.stages import WRITE_DEPTH, open_stages
from anonymizer.release.profiling import Stopwatch

CPU = torch.device("cpu")


def codec_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("codec")]


def test_items_are_written_in_order_whatever_their_batches() -> None:
    with open_stages(CPU, 3, Stopwatch()) as stages:
        assert list(stages.write(str, [[1, 2], [3], [], [4, 5, 6]])) == ["1", "2", "3", "4", "5", "6"]
    assert not codec_threads()


def test_no_more_batches_wait_to_be_written_than_the_queue_holds() -> None:
    taken: list[int] = []

    def batches() -> Iterator[list[int]]:
        for number in range(10):
            taken.append(number)
            yield [number]

    def write(number: int) -> int:
        if number == 0:
            sleep(0.2)
        return number

    with open_stages(CPU, 1, Stopwatch()) as stages:
        written = stages.write(write, batches())
        assert next(written) == 0
        assert len(taken) == WRITE_DEPTH + 1
        assert list(written) == list(range(1, 10))


def test_an_error_of_a_stage_is_raised_and_ends_the_threads() -> None:
    def fail(item: int) -> int:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), open_stages(CPU, 2, Stopwatch()) as stages:
        list(stages.write(fail, [[1]]))
    with pytest.raises(RuntimeError, match="broken"), open_stages(CPU, 2, Stopwatch()) as stages:
        list(stages.decode(fail, range(9), depth=2))
    assert not codec_threads() and not [thread for thread in threading.enumerate() if thread.name == "reader"]


def test_decoding_that_is_abandoned_ends_with_the_stages() -> None:
    with open_stages(CPU, 2, Stopwatch()) as stages:
        assert next(stages.decode(str, iter(range(100)), depth=2)) == "0"
    assert not codec_threads() and not [thread for thread in threading.enumerate() if thread.name == "reader"]
