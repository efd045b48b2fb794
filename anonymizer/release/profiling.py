"""Seconds that each stage of a shard takes, and nothing about a record."""

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

# Stages in the order in which a record passes them. They overlap, and several threads decode and encode, so that their
# seconds may add up to more than the elapsed time.
STAGES: Mapping[str, str] = {
    "read": "reading the source",
    "hash": "keyed digests of originals, digests of outputs",
    "decode": "decoding and resizing originals",
    "wait": "the model waits for pictures, or for outputs to be written",
    "transfer": "to the device and back",
    "launch": "launching GPU work",
    "noise": "generating keyed noise",
    "sample": "the model: there, back, decoded",
    "score": "scores and the model's safety checker",
    "encode": "encoding outputs",
    "write": "staging outputs",
}
METADATA_KEY = b"profile"  # in the schema metadata of a shard's ledger


@dataclass(frozen=True)
class Profile:
    """Times of one shard, or of several.

    ``wall``: seconds from the first record to the commit. ``seconds``: of each stage, over all threads. ``batch_size``:
    images in a batch at the end; ``halved``: how often it was halved for lack of device memory.
    """

    shards: int
    records: int
    wall: float
    seconds: Mapping[str, float]
    batch_size: int
    halved: int
    device: str

    def to_json(self) -> str:
        """Return the profile for the schema metadata of a ledger file."""
        return json.dumps(asdict(self) | {"seconds": {name: round(s, 4) for name, s in self.seconds.items()}})

    @classmethod
    def from_json(cls, text: bytes | str) -> Profile:
        """Return the profile that ``to_json`` wrote."""
        return cls(**json.loads(text))

    def include(self, earlier: Profile) -> Profile:
        """Return the sum with an earlier attempt at the same shard; records that were retried count twice."""
        return replace(_sum([earlier, self]), shards=self.shards)

    @classmethod
    def merge(cls, profiles: Iterable[Profile]) -> Profile | None:
        """Return the sum of profiles, with the smallest ``batch_size``; None for none."""
        profiles = list(profiles)
        return _sum(profiles) if profiles else None


def _sum(profiles: list[Profile]) -> Profile:
    seconds = {name: sum(profile.seconds.get(name, 0.0) for profile in profiles) for name in STAGES}
    return Profile(
        shards=sum(profile.shards for profile in profiles),
        records=sum(profile.records for profile in profiles),
        wall=sum(profile.wall for profile in profiles),
        seconds={name: total for name, total in seconds.items() if total},
        batch_size=min(profile.batch_size for profile in profiles),
        halved=sum(profile.halved for profile in profiles),
        device=", ".join(sorted({profile.device for profile in profiles})),
    )


class Stopwatch:
    """Adds up seconds of stages over threads. A stage inside another is subtracted from the outer one."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock, self._nested = Lock(), local()

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage; callable from any thread."""
        assert stage in STAGES, stage
        with self._lock:
            self.seconds[stage] += seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a block."""
        outer, self._nested.seconds = getattr(self._nested, "seconds", 0.0), 0.0
        begin = perf_counter()
        try:
            yield
        finally:
            elapsed = perf_counter() - begin
            self.add(name, elapsed - self._nested.seconds)
            self._nested.seconds = outer + elapsed

    def time_items(self, name: str, items: Iterable[A]) -> Iterator[A]:
        """Yield the items, and time how long each takes to arrive."""
        iterator = iter(items)
        try:
            while True:
                with self.stage(name):
                    try:
                        item = next(iterator)
                    except StopIteration:
                        return
                yield item
        finally:
            if isinstance(iterator, Generator):
                iterator.close()  # it may hold files open
