"""Local samples for training: their levels, keys and numbers, and a dataset that samples on access."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

from anonymizer.augment import Levels as Range
from anonymizer.augment import LocalSamples, sample_key, samples_per_record
from anonymizer.backbones import load_backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError
from anonymizer.noise import KeyedNoise
from tests.support.class_conditional_model import class_conditional_model
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import NotFinite


def boomerang(backbone: Any = None) -> Boomerang:
    return Boomerang(backbone or IdealGaussian(), "ddim", 2)


def test_levels_are_spread_evenly_over_the_range_and_drawn_uniformly() -> None:
    levels = Range(0.1, 0.4)
    assert (levels.values[0], levels.values[-1], len(levels.values)) == (0.1, 0.4, 16)
    np.testing.assert_allclose(np.diff(levels.values), 0.02, atol=1e-9)
    counts = Counter(levels.draw(sample_key(0, i, b"x")) for i in range(16_000))
    assert counts.keys() == set(levels.values)
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())
    assert Range(0.3, 0.3).values == (0.3,)


@pytest.mark.parametrize("wrong", [(0, 0.4), (0.4, 0.3), (0.5, 1.1), (float("nan"), 0.5), (0.1, 0.4, 1)])
def test_invalid_levels_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="levels"):
        Range(*wrong)  # type: ignore[arg-type]


def test_seed_number_and_each_part_of_a_record_make_another_key() -> None:
    parts = [(0, 0, b"a", b"b"), (1, 0, b"a", b"b"), (0, 1, b"a", b"b"), (0, 0, b"ab", b""), (0, 0, b"a", b"c")]
    assert len({sample_key(*part) for part in parts}) == 5  # type: ignore[arg-type]
    assert sample_key(0, 0, b"a") == sample_key(0, 0, b"a") and len(sample_key(2**80, 0)) == 16


@given(st.lists(st.sampled_from(["a", "b", "c", None])), st.integers(0, 3))
def test_originals_and_samples_are_as_many_in_each_class(labels: list[str | None], samples: int) -> None:
    found = samples_per_record(labels, samples)
    assert len(found) == len(labels)
    totals: Counter[str] = Counter()
    of: dict[str, list[int]] = {}
    for label, count in zip(labels, found, strict=True):
        assert count >= 0
        if label is None:
            assert count == 0
        else:
            totals[label] += 1 + count
            of.setdefault(label, []).append(count)
    assert len(set(totals.values())) <= 1
    assert all(max(counts) - min(counts) <= 1 for counts in of.values())
    if of:
        assert set(max(of.values(), key=len)) == {samples}


def toys(count: int = 6) -> TensorDataset:
    gen = torch.Generator().manual_seed(1)
    return TensorDataset(torch.rand(count, 3, 8, 8, generator=gen) * 2 - 1, torch.arange(count) % 3)


def everything(dataset: LocalSamples) -> torch.Tensor:
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def test_originals_come_first_and_each_sample_has_its_originals_label() -> None:
    data = toys()
    found = LocalSamples(data, boomerang(), samples=2)
    assert len(found) == 18
    for i in range(6):
        assert torch.equal(found[i][0], data[i][0])
        for n in range(3):
            assert found[i + 6 * n][1] == data[i][1]
    x = everything(found)
    assert x.shape == (18, 3, 8, 8) and x.dtype == torch.float32 and x.abs().max() <= 1
    assert len({row.numpy().tobytes() for row in x}) == 18
    assert torch.equal(found[-1][0], x[17])
    with pytest.raises(IndexError, match="index 18 of 18"):
        found[18]


def test_without_originals_the_samples_are_the_same() -> None:
    both, samples = LocalSamples(toys(), boomerang()), LocalSamples(toys(), boomerang(), include_originals=False)
    assert len(samples) == 12 and torch.equal(everything(samples), everything(both)[6:])


def test_a_sample_is_a_local_sample_of_its_original_at_a_level_of_the_range() -> None:
    data, found = toys(), LocalSamples(toys(), boomerang(), levels=(0.2, 0.5), samples=1, seed=7)
    levels = Range(0.2, 0.5, count=4)
    for i in range(6):
        key = sample_key(7, 0, b"0", b"%d" % i)
        x = boomerang().sample(data[i][0][None], levels.draw(key), KeyedNoise([key]))[0]
        torch.testing.assert_close(found[6 + i][0], x, atol=1e-6, rtol=0)


def test_seed_and_epoch_give_other_samples_and_the_same_ones_again() -> None:
    first, other = LocalSamples(toys(), boomerang()), LocalSamples(toys(), boomerang(), seed=1)
    x = everything(first)
    assert not (everything(other)[6:] == x[6:]).flatten(1).all(1).any()
    first.set_epoch(1)
    later = everything(first)
    assert torch.equal(later[:6], x[:6]) and not (later[6:] == x[6:]).flatten(1).all(1).any()
    first.set_epoch(0)
    assert torch.equal(everything(first), x)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gets_the_same_samples_as_single_indices(workers: int) -> None:
    found = LocalSamples(toys(), boomerang())
    start = "forkserver" if workers else None  # a fork of a process in which Prefect has run may fail at its end
    loader = DataLoader(found, batch_size=5, num_workers=workers, multiprocessing_context=start)
    loaded = [x for batch, _ in loader for x in batch]
    torch.testing.assert_close(torch.stack(loaded), everything(found), atol=1e-6, rtol=0)


def test_the_model_sees_batches() -> None:
    backbone = IdealGaussian()
    found = LocalSamples(toys(32), boomerang(backbone), levels=(0.3, 0.3), samples=1, include_originals=False)
    for _ in DataLoader(found, batch_size=32):
        pass
    assert len(backbone.calls) == 2  # two steps for all of them
    backbone.calls.clear()
    found.batch_size = 8
    for _ in DataLoader(Subset(found, range(16)), batch_size=16):
        pass
    assert len(backbone.calls) == 4


def test_a_network_can_be_trained_on_the_samples() -> None:
    network = torch.nn.Conv2d(3, 3, 8)
    for x, label in DataLoader(LocalSamples(toys(), boomerang()), batch_size=6, shuffle=True):
        torch.nn.functional.cross_entropy(network(x).flatten(1), label).backward()
    x, _ = LocalSamples(toys(), boomerang())[7]
    network(x[None]).sum().backward()
    assert network.weight.grad is not None


def test_pictures_of_pil_are_taken_as_they_are_and_come_back_through_the_transform() -> None:
    grey, colour = Image.new("L", (8, 8), 255), Image.new("RGB", (8, 8), (0, 255, 51))
    found = LocalSamples([(grey, "a"), (colour, "b")], boomerang(), transform=lambda x: (x + 1) / 2)
    assert torch.equal(found[0][0], torch.ones(3, 8, 8)) and found[5][1] == "b"
    torch.testing.assert_close(found[1][0][:, 0, 0], torch.tensor([0.0, 1.0, 0.2]))
    assert found[2][0].min() >= 0


class ClassRecorder(IdealGaussian):
    """Remembers the classes that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.condition_kind, self.classes = "class", []

    def condition(self, texts: Sequence[str]) -> object:
        self.classes += texts
        return None


def test_a_model_with_classes_is_given_each_label() -> None:
    backbone = ClassRecorder()
    everything(LocalSamples(toys(), boomerang(backbone), samples=1, condition=lambda label: f"c{int(label)}"))
    assert backbone.classes == [f"c{i % 3}" for i in range(6)]
    with pytest.raises(ValueError, match="condition: the model 'ideal' can be told nothing"):
        LocalSamples(toys(), boomerang(), condition=str)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ((torch.zeros(3, 8, 8, dtype=torch.uint8), 0), TypeError, "item 0: a picture of torch.uint8"),
        ((torch.zeros(3, 9, 8), 0), ValueError, r"item 0: a picture of \(3, 9, 8\): the model works on \(3, 8, 8\)"),
        ((torch.zeros(8, 8), 0), ValueError, "resize it before"),
        ((torch.full((3, 8, 8), 255.0), 0), ValueError, "outside of"),
        ((torch.full((3, 8, 8), torch.nan), 0), ValueError, "outside of"),
        (("a path", 0), TypeError, "a picture is a str: it must be a PIL image or a tensor"),
        (({"image": 1},), TypeError, "item 0 is a tuple: it must be"),
        ({"image": 1, "label": 2}, TypeError, "item 0 is a dict: it must be"),
    ],
)
def test_items_that_are_no_labelled_picture_are_refused(item: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LocalSamples([item], boomerang())[1]


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="a set has no length and index"):
        LocalSamples({1}, boomerang())
    for wrong in ({"samples": 0}, {"batch_size": 0}, {"levels": (0, 0.4)}, {"grid": 1}):
        with pytest.raises(ValueError, match=r"samples|batch_size|levels"):
            LocalSamples(toys(), boomerang(), **wrong)


def test_a_sample_that_is_not_finite_is_no_training_picture() -> None:
    white = [(torch.ones(3, 8, 8), 0)]
    with pytest.raises(ValueError, match="'ideal' returned NaN or infinity"):
        LocalSamples(white, boomerang(NotFinite()))[1]


def test_classes_are_given_by_number_or_name(tmp_path: Path) -> None:
    backbone = load_backbone(ModelConfig(id=str(class_conditional_model(tmp_path / "model", 2))))
    data = TensorDataset(toys(2).tensors[0], torch.arange(2))
    by_number = LocalSamples(data, boomerang(backbone), samples=1, condition=lambda label: str(int(label)))
    by_name = LocalSamples(data, boomerang(backbone), samples=1, condition=lambda label: ["cat", "dog"][label])
    assert torch.equal(everything(by_number), everything(by_name))
    with pytest.raises(ValueError, match=r"among 'emu' is a class that the model .* does not know"):
        LocalSamples(data, boomerang(backbone), condition=lambda label: "emu")[2]
    with pytest.raises(ModelError, match="needs a class"):
        LocalSamples(data, boomerang(backbone))[2]
