"""Local samples for training: several of each picture, at levels from a range, with its label. They are NOT anonymised.

At low levels a sample is nearly its original: it is for those who own the originals, and no release takes it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from anonymizer.backbones.conditioning import encode_conditions
from anonymizer.boomerang import Boomerang
from anonymizer.errors import RecordError
from anonymizer.noise import KeyedNoise
from anonymizer.storage.prefetch import chunked

LEVEL_COUNT = 16  # levels of a range that samples on a disk draw from
RANGE_TOLERANCE = 1e-3  # how far beyond [-1, 1] a picture may be, for rounding


@dataclass(frozen=True)
class Levels:
    """``count`` levels from ``low`` to ``high``, evenly spaced, both included; each sample draws one uniformly.

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
        """Return the level of the sample with this key."""
        values = self.values
        return values[int.from_bytes(hashlib.sha256(b"level" + key).digest()[:8], "little") * len(values) >> 64]


def sample_key(seed: int, number: int, *record: bytes) -> bytes:
    """Return the 128-bit noise key of sample ``number`` of a record, whatever its batch, process and device."""
    total = hashlib.sha256(f"anonymizer/augment/1/{seed}/{number}".encode())
    for part in record:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.digest()[:16]


def samples_per_record(labels: Sequence[str | None], samples: int) -> list[int]:
    """Return how many samples each record gets, so that originals and samples together are as many in each class.

    Records of the largest class get ``samples`` each. The samples that another class lacks are divided among its
    records; the remainder goes to the first of them. A record that cannot be used has no label and gets none.
    """
    sizes = Counter(label for label in labels if label is not None)
    class_total = max(sizes.values(), default=0) * (1 + samples)
    seen: Counter[str] = Counter()
    counts = []
    for label in labels:
        if label is None:
            counts.append(0)
            continue
        each, remainder = divmod(class_total - sizes[label], sizes[label])
        counts.append(each + (seen[label] < remainder))
        seen[label] += 1
    return counts


class LocalSamples(Dataset[tuple[torch.Tensor, Any]]):
    """A map-style dataset with ``samples`` local samples of each picture of ``dataset``, sampled on access.

    ``dataset`` gives (picture, label): a float tensor (3, S, S) in [-1, 1] or a PIL image, of the model's side S. The
    pictures come back as such tensors, through ``transform`` if there is one, with their labels. Index i of the first
    ``len(dataset)`` is original i (unless ``include_originals`` is false); its sample n follows ``len(dataset)`` * n
    later. A sample depends on seed, index and epoch alone: ``set_epoch`` gives others.

    ``condition``: maps a label to the class or prompt of a model that takes one, such as ``str``. ``grid``: levels of
    the range that samples draw from; a batch of a loader takes so many calls, each of ``batch_size`` at most.
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
        """Switch to the samples of ``epoch``; call it before the loader is iterated."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset) * (self.samples + self.include_originals)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """Return several pictures, which the model sees in batches of one level; a ``DataLoader`` calls this."""
        places = [divmod(self._checked_index(index), len(self.dataset)) for index in indices]
        records = {record: self._read(record) for _, record in places}
        pairs = [records[record] for _, record in places]
        keys_by_level: dict[float, list[tuple[int, bytes]]] = defaultdict(list)  # level -> index and noise key
        for at, (block, record) in enumerate(places):
            if number := block + (not self.include_originals):
                key = sample_key(self.seed, number - 1, b"%d" % self.epoch, b"%d" % record)
                keys_by_level[self.levels.draw(key)].append((at, key))
        for level, keys in keys_by_level.items():
            for batch in chunked(keys, self.batch_size):
                samples = self._sample([pairs[at] for at, _ in batch], level, KeyedNoise([key for _, key in batch]))
                for (at, _), sample in zip(batch, samples, strict=True):
                    pairs[at] = sample, pairs[at][1]
        return [(self.transform(x) if self.transform else x, label) for x, label in pairs]

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

    def _sample(self, pairs: Sequence[tuple[torch.Tensor, Any]], level: float, noise: KeyedNoise) -> torch.Tensor:
        """Return one local sample (3, size, size) for each picture and its label."""
        backbone = self.boomerang.backbone
        x0 = torch.stack([image for image, _ in pairs]).to(backbone.device)  # (B, 3, H, W)
        texts = [self.condition(label) if self.condition else None for _, label in pairs]
        try:
            condition = encode_conditions(backbone, texts)
        except RecordError:
            names = ", ".join(sorted({repr(text) for text in texts}))
            raise ValueError(
                f"condition: among {names} is a class that the model {backbone.name!r} does not know"
            ) from None
        samples = self.boomerang.sample(x0, level, noise, condition).cpu()
        if not samples.isfinite().all():
            raise ValueError(
                f"the model {backbone.name!r} returned NaN or infinity: use float32, or leave these levels out"
            )
        return samples.clone()  # outside of inference mode: a network can be trained on it


def as_picture(image: Any, size: int) -> torch.Tensor:
    """Return a PIL image or a float tensor as (3, size, size) in [-1, 1]. Raises TypeError or ValueError."""
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
