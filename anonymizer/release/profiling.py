"""Where the time of a shard goes: seconds of each stage, and nothing about a record."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from threading import Lock, local
from time import perf_counter
from typing import TypeVar

A = TypeVar("A")

# What is done, in the order in which a record meets it. Stages overlap, and several threads decode and encode, so their
# seconds may add up to more than the time that passed.
STAGES: Mapping[str, str] = {
    "read": "reading the source",
    "hash": "keyed digests of originals, digests of outputs",
    "decode": "decoding and resizing originals",
    "wait": "the model waits for pictures, or for outputs to be written",
    "transfer": "to the device and back",
    "launch": "telling a GPU what to do",
    "noise": "drawing keyed noise",
    "sample": "the model: there, back, decoded",
    "score": "scores and the model's safety checker",
    "encode": "encoding outputs",
    "write": "staging outputs",
}
METADATA_KEY = b"profile"  # in the schema metadata of a shard's ledger


@dataclass(frozen=True)
class Profile:
    """What one shard took, or several.

    ``wall``: seconds from the first record to the commit. ``seconds``: of each stage, over all threads. ``batch_size``:
    pictures at once, in the end; ``halved``: how often it was halved because the device's memory did not suffice.
    """

    shards: int
    records: int
    wall: float
    seconds: Mapping[str, float]
    batch_size: int
    halved: int
    device: str

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"seconds": {name: round(s, 4) for name, s in self.seconds.items()}})

    @classmethod
    def from_json(cls, text: bytes | str) -> Profile:
        return cls(**json.loads(text))

    def include(self, earlier: Profile) -> Profile:
        """With what an earlier attempt at the same shard took; records that were done again count twice."""
        both = Profile.merge([earlier, self])
        assert both is not None
        return replace(both, shards=self.shards)

    @classmethod
    def merge(cls, profiles: Iterable[Profile]) -> Profile | None:
        """All of them in one; ``batch_size`` is the smallest. None of none."""
        some = list(profiles)
        if not some:
            return None
        seconds = {name: sum(one.seconds.get(name, 0.0) for one in some) for name in STAGES}
        return cls(
            shards=sum(one.shards for one in some),
            records=sum(one.records for one in some),
            wall=sum(one.wall for one in some),
            seconds={name: total for name, total in seconds.items() if total},
            batch_size=min(one.batch_size for one in some),
            halved=sum(one.halved for one in some),
            device=", ".join(sorted({one.device for one in some})),
        )


class _End:
    """What comes after the last item."""


_END = _End()


class Stopwatch:
    """Adds up seconds of stages over threads. A stage inside another is taken out of the outer one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock, self._inner = Lock(), local()

    def add(self, stage: str, seconds: float) -> None:
        assert stage in STAGES, stage
        with self._lock:
            self.seconds[stage] += seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        outside, self._inner.seconds = getattr(self._inner, "seconds", 0.0), 0.0
        begun = perf_counter()
        try:
            yield
        finally:
            passed = perf_counter() - begun
            self.add(name, passed - self._inner.seconds)
            self._inner.seconds = outside + passed

    def time_items(self, name: str, items: Iterable[A]) -> Iterator[A]:
        """The items, and the time that it takes to get at each."""
        iterator = iter(items)
        try:
            while True:
                with self.stage(name):
                    found = next(iterator, _END)
                if isinstance(found, _End):
                    return
                yield found
        finally:
            if isinstance(iterator, Generator):
                iterator.close()  # it may hold files open
