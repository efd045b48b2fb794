"""Batches: of one level and shape, full where memory allows, and the same samples whatever the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from anonymizer.augment import sample_key
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig, SourceConfig
from anonymizer.data.image_codec import DecodedImage
from anonymizer.noise import KeyedNoise
from anonymizer.pipeline.batch_sampling import BatchSampler
from anonymizer.pipeline.batching import batch_items
from anonymizer.pipeline.boomerang_job import BoomerangJob
from anonymizer.pipeline.device_overlap import Sequential
from anonymizer.pipeline.item import Item
from anonymizer.records import Decision, Entry, Record, Status
from anonymizer.release.profiling import Stopwatch
from tests.support.ideal_gaussian import IdealGaussian

LARGE = 2**40  # bytes


def make_items(count: int, levels: Sequence[float] = (0.2, 0.4), side: int = 8) -> list[Item]:
    gen = torch.Generator().manual_seed(0)
    items = []
    for i in range(count):
        picture = DecodedImage(torch.rand((3, side, side), generator=gen) * 2 - 1, side, side)
        record = Record(Entry(str(i), f"{i}.png"))
        items.append(Item(record, picture, level=levels[i % len(levels)], noise_key=sample_key(0, i)))
    return items


def tensor_of(item: Item) -> torch.Tensor:
    assert item.picture is not None
    return item.picture.tensor


def ids(batch: Sequence[Item]) -> list[int]:
    return [int(item.record.entry.record_id) for item in batch]


class PassAll(BoomerangJob[Item]):
    max_waiting_bytes = LARGE

    def gate(self, item: Item) -> None:
        item.decision = Decision(Status.RELEASED)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_sample_is_boomerangs_own_whatever_its_batch(size: int) -> None:
    backbone, boomerang = IdealGaussian(), Boomerang(IdealGaussian(), "ddim", 2)
    job = PassAll(SourceConfig(uri="in"), ModelConfig(), backbone, "ddim", 2)
    sampler = BatchSampler(job, size, Sequential(backbone.device), Stopwatch())
    sampled = 0
    for batch in sampler.run(make_items(7)):
        assert len({item.level for item in batch}) == 1 and len(batch) <= size
        for item in batch:
            alone = boomerang.sample(tensor_of(item)[None], item.level, KeyedNoise([item.noise_key]))[0]
            assert item.output is not None
            torch.testing.assert_close(item.output, alone, atol=1e-6, rtol=0)
        sampled += len(batch)
    assert sampled == 7


def test_batches_are_full_but_for_the_last_of_each_level() -> None:
    batches = list(batch_items(make_items(90, [0.1, 0.2, 0.3]), lambda item: 8, LARGE))
    assert sorted(record_id for batch in batches for record_id in ids(batch)) == list(range(90))
    assert sorted(len(batch) for batch in batches) == [6] * 3 + [8] * 9


def test_pictures_that_wait_take_bounded_memory() -> None:
    items, taken, most = make_items(300, [round(0.1 + i / 100, 2) for i in range(30)]), 0, 20
    each = tensor_of(items[0]).nbytes

    def count_taken() -> Iterator[Item]:
        nonlocal taken
        for item in items:
            taken += 1
            yield item

    yielded = 0
    for batch in batch_items(count_taken(), lambda item: 16, most * each):
        assert taken - yielded <= most + 1
        yielded += len(batch)
        assert len({item.level for item in batch}) == 1
    assert yielded == 300


@pytest.mark.parametrize("max_waiting_bytes", [0, LARGE])
def test_pictures_of_other_shapes_are_in_other_batches(max_waiting_bytes: int) -> None:
    items = [*make_items(4, [0.2]), *make_items(4, [0.2], side=6)]
    batches = list(batch_items(items, lambda item: 8, max_waiting_bytes))
    assert [tensor_of(batch[0]).shape[-1] for batch in batches] == [8, 6]


def test_by_default_nothing_waits_for_the_same_shape() -> None:
    items = make_items(9, [0.2, 0.2, 0.4])
    items[3].fail("empty")
    assert [ids(batch) for batch in batch_items(items, lambda item: 2)] == [[0, 1], [3], [2], [4], [5], [6, 7], [8]]


def test_published_outputs_have_batches_of_their_own_and_do_not_break_those_of_new_ones() -> None:
    items = make_items(16, levels=(0.2,))
    for item in items[::4]:
        item.published, item.level = torch.zeros(3, 8, 8), 0.0
    batches = list(batch_items(items, lambda item: 4))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4]
    assert all(len({item.published is None for item in batch}) == 1 for batch in batches)


def test_a_published_output_is_scored_as_it_is_and_nothing_is_sampled() -> None:
    class Seen(PassAll):
        def score(self, batch: Sequence[Item], x0: torch.Tensor, outputs: torch.Tensor) -> None:
            seen.append((x0, outputs))

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    model = IdealGaussian()
    items = make_items(3)
    for i, item in enumerate(items):
        item.published, item.level = torch.full((3, 8, 8), i / 4), 0.0
    job = Seen(SourceConfig(uri="x"), ModelConfig(), model, "ddim", 2)
    (batch,) = BatchSampler(job, 4, Sequential(model.device), Stopwatch()).run(items)
    assert model.calls == [] and len(batch) == 3
    ((x0, outputs),) = seen
    assert torch.equal(x0, torch.stack([tensor_of(item) for item in items]))
    assert torch.equal(outputs, torch.stack([torch.full((3, 8, 8), i / 4) for i in range(3)]))
