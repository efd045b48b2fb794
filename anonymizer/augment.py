"""Local samples for training: several of each picture, at levels from a range, with its label. They are NOT anonymised.

At low levels a sample is nearly its original: this is for whoever owns the originals, and no release takes it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from anonymizer.backbones.conditioning import encode_conditions
from anonymizer.boomerang import Boomerang
from anonymizer.errors import RecordError
from anonymizer.noise import KeyedNoise

LEVEL_COUNT = 16  # levels of a range that samples on a disk draw from
MAX_WAITING_BYTES = 512 * 2**20  # of pictures that wait for others of their level; beyond it a batch goes out unfilled
RANGE_TOLERANCE = 1e-3  # how far beyond [-1, 1] a picture may be, for rounding


class Reading(Protocol):
    """What a picture was taken for."""

    @property
    def predicted(self) -> str: ...
    @property
    def agrees(self) -> bool:
        """Whether that is what its label says."""
        ...


class LabelReader(Protocol):
    """Looks whether pictures show what their labels say; ``reported`` names the model that looks."""

    @property
    def versioned_name(self) -> str: ...

    def read(self, images: torch.Tensor, labels: Sequence[str]) -> Sequence[Reading]:
        """One reading for each row of (B, 3, H, W) in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Levels:
    """``count`` levels from ``low`` to ``high``, evenly spaced, both included; each sample draws one, all alike.

    A model sees a batch at one step of its schedule, so that few levels make full batches.
    """

    low: float
    high: float
    count: int = LEVEL_COUNT

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise ValueError(f"levels must be in (0, 1], the lowest first, got {self.low:g} and {self.high:g}")
        if self.count < 2:
            raise ValueError(f"levels: {self.count} of them: draw from 2 or more, or give a range that is one level")

    @property
    def values(self) -> tuple[float, ...]:
        if self.low == self.high:
            return (self.low,)
        step = (self.high - self.low) / (self.count - 1)
        return tuple(round(self.low + i * step, 6) for i in range(self.count))

    def draw(self, key: bytes) -> float:
        """The level of the sample with this key."""
        values = self.values
        return values[int.from_bytes(hashlib.sha256(b"level" + key).digest()[:8], "little") * len(values) >> 64]


def sample_key(seed: int, number: int, *record: bytes) -> bytes:
    """The 128 bits that sample ``number`` of a record is drawn from: the same wherever and beside whatever it is."""
    total = hashlib.sha256(f"anonymizer/augment/1/{seed}/{number}".encode())
    for part in record:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.digest()[:16]


def samples_per_record(labels: Sequence[str | None], samples: int) -> list[int]:
    """How many samples each record gets so that originals and samples are as many in each class.

    Records of the largest class get ``samples`` each; those of another class share what it lacks, the first of them one
    more where it does not divide. None: a record that cannot be used, and gets none.
    """
    sizes = Counter(label for label in labels if label is not None)
    wanted = max(sizes.values(), default=0) * (1 + samples)
    seen: Counter[str] = Counter()
    found = []
    for label in labels:
        if label is None:
            found.append(0)
            continue
        each, rest = divmod(wanted - sizes[label], sizes[label])
        found.append(each + (seen[label] < rest))
        seen[label] += 1
    return found


@dataclass(frozen=True)
class SampleRequest:
    """One sample that is to be drawn of ``image`` (3, H, W) in [-1, 1].

    ``told``: what the model is told of it. ``of``: what the caller knows it by.
    """

    image: torch.Tensor
    key: bytes
    level: float
    conditioning_text: str | None
    origin: Any


def batch_by_level(
    requests: Iterable[SampleRequest], size: int, max_bytes: int = MAX_WAITING_BYTES
) -> Iterator[list[SampleRequest]]:
    """Everything that is wanted, in batches of one level and shape: full ones while at most ``most`` bytes wait."""
    waiting: dict[tuple[float, torch.Size], list[SampleRequest]] = {}
    held = 0
    for one in requests:
        place = one.level, one.image.shape
        waiting.setdefault(place, []).append(one)
        held += one.image.nbytes
        if len(waiting[place]) < size:
            if held <= max_bytes:
                continue
            place = max(waiting, key=lambda place: len(waiting[place]))
        batch = waiting.pop(place)
        held -= sum(one.image.nbytes for one in batch)
        yield batch
    yield from waiting.values()


def sample_batch(boomerang: Boomerang, batch: Sequence[SampleRequest]) -> torch.Tensor:
    """One local sample for each of a batch of one level and shape: (B, 3, H, W); NaN where the model returned none."""
    backbone = boomerang.backbone
    x0 = torch.stack([one.image for one in batch]).to(backbone.device)  # (B, 3, H, W)
    said = encode_conditions(backbone, (one.conditioning_text for one in batch))
    return boomerang.sample(x0, batch[0].level, KeyedNoise([one.key for one in batch]), said)


class LocalSamples(Dataset[tuple[torch.Tensor, Any]]):
    """A map-style dataset with ``samples`` local samples of each picture of ``dataset``, drawn when they are asked for.

    ``dataset`` gives (picture, label): a float tensor (3, S, S) in [-1, 1] or a PIL image, of the model's side S. The
    pictures come back as such tensors, through ``transform`` if there is one, with their labels. Index i of the first
    ``len(dataset)`` is original i (unless ``include_originals`` is false); sample n of it follows ``len(dataset)`` * n
    later. A sample depends on seed, index and epoch alone: ``set_epoch`` gives others.

    ``condition``: what a model with classes or prompts is told of a label, such as ``str``. ``grid``: levels of the
    range that samples draw from; a batch of a loader is drawn in so many calls, each of ``batch_size`` at most.
    A loader of ``num_workers=0`` asks for whole batches; workers would each hold the model.
    """

    def __init__(
        self,
        dataset: Any,
        boomerang: Boomerang,
        levels: tuple[float, float] = (0.1, 0.4),
        samples: int = 2,
        seed: int = 0,
        *,
        include_originals: bool = True,
        transform: Callable[[torch.Tensor], Any] | None = None,
        condition: Callable[[Any], str] | None = None,
        grid: int = 4,
        batch_size: int = 32,
    ) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(f"dataset: a {type(dataset).__name__} has no length and index: give a map-style dataset")
        for name, value in (("samples", samples), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}")
        if condition is not None and boomerang.backbone.condition_kind == "nothing":
            raise ValueError(f"condition: the model {boomerang.backbone.name!r} can be told nothing: leave it out")
        self.dataset, self.boomerang, self.levels = dataset, boomerang, Levels(*levels, count=grid)
        self.samples, self.seed, self.include_originals = samples, seed, include_originals
        self.transform, self.condition, self.batch_size = transform, condition, batch_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Other samples from now on: those of ``epoch``. Call it before the loader is iterated."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset) * (self.samples + self.include_originals)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Several at once, which the model sees in batches; what a ``DataLoader`` calls."""
        places = [divmod(self._checked_index(index), len(self.dataset)) for index in indices]
        read = {record: self._read(record) for _, record in places}
        found = [read[record][0] for _, record in places]
        wanted = []
        for place, (block, record) in enumerate(places):
            if number := block + (not self.include_originals):
                image, label = read[record]
                key = sample_key(self.seed, number - 1, b"%d" % self.epoch, b"%d" % record)
                told = None if self.condition is None else self.condition(label)
                wanted.append(SampleRequest(image, key, self.levels.draw(key), told, origin=place))
        for batch in batch_by_level(wanted, self.batch_size):
            for one, image in zip(batch, self._sample(batch), strict=True):
                found[one.origin] = image
        labels = (read[record][1] for _, record in places)
        return [(self.transform(x) if self.transform else x, label) for x, label in zip(found, labels, strict=True)]

    def _checked_index(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} pictures")
        return int(index) % len(self)

    def _read(self, record: int) -> tuple[torch.Tensor, Any]:
        item = self.dataset[record]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise TypeError(f"dataset: item {record} is a {type(item).__name__}: it must be (picture, label)")
        size = self.boomerang.backbone.size
        try:
            return as_picture(item[0], size), item[1]
        except (TypeError, ValueError) as error:
            raise type(error)(f"dataset: item {record}: {error}") from None

    def _sample(self, batch: Sequence[SampleRequest]) -> torch.Tensor:
        name = self.boomerang.backbone.name
        try:
            made = sample_batch(self.boomerang, batch).cpu()
        except RecordError:
            told = ", ".join(sorted({repr(one.conditioning_text) for one in batch}))
            raise ValueError(f"condition: among {told} is a class that the model {name!r} does not know") from None
        if not made.isfinite().all():
            raise ValueError(f"the model {name!r} returned NaN or infinity: use float32, or leave these levels out")
        return made.clone()  # outside of inference mode: a network can be trained on it


def as_picture(image: Any, size: int) -> torch.Tensor:
    """A PIL image or a float tensor as (3, size, size) in [-1, 1]. TypeError or ValueError for what is neither."""
    if isinstance(image, Image.Image):
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1)  # (3, H, W)
        image = torch.from_numpy(pixels / np.float32(127.5) - np.float32(1))
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"a picture is a {type(image).__name__}: it must be a PIL image or a tensor")
    if not image.is_floating_point():
        raise TypeError(f"a picture of {image.dtype}: it must be of floats in [-1, 1]: divide by 127.5, subtract 1")
    if image.shape != (3, size, size):
        raise ValueError(f"a picture of {tuple(image.shape)}: the model works on (3, {size}, {size}): resize it before")
    if not image.isfinite().all() or image.abs().max() > 1 + RANGE_TOLERANCE:
        raise ValueError("a picture with values outside of [-1, 1]: Normalize(0.5, 0.5) brings [0, 1] there")
    return image.float()
