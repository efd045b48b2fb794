"""One pass over a source before its records are grouped: what each is compared by, and who may not share a group."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from anonymizer.backbones import Backbone
from anonymizer.backbones.conditioning import conditioning_text
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data import image_codec
from anonymizer.data.sources import open_source
from anonymizer.errors import RecordError
from anonymizer.grouping.features import FeatureExtractor, Features
from anonymizer.records import Entry, Record, normalize_subject
from anonymizer.release import grouped
from anonymizer.release.feature_cache import NO_CACHE, FeatureCache
from anonymizer.release.history import PublishedHistory
from anonymizer.storage.prefetch import chunked, prefetch_map

CHUNK_RECORDS = 4096  # that are read at once, and lie in one file of the cache
NO_PERSON = -1


@dataclass(frozen=True)
class Survey:
    """The records that can be in a group, in the source's order; of copies of an original one counts.

    ``records``: all of the source; ``unusable``: those that cannot be read or decoded, or were erased. ``positions``
    (n,): places in the source. ``digests`` (n,): keyed, 64 hex digits. ``features`` (n, D) float16. ``strata`` (n,):
    equal where all columns of ``groups.by`` are. ``people`` (n,): equal where the person is; -1 where records count as
    people.
    """

    records: int
    unusable: int
    positions: npt.NDArray[np.int64]
    digests: npt.NDArray[np.bytes_]
    features: Features
    strata: npt.NDArray[np.int64]
    people: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Candidate:
    """A record that can be in a group; ``picture`` is None where its features are known already."""

    position: int
    digest: str
    stratum: int
    person: int
    picture: torch.Tensor | None


class Surveyor:
    """Read the records of a source as a shard does, and keep what grouping needs of each."""

    def __init__(
        self, config: RunConfig, backbone: Backbone, key: CustodianKey, extract: FeatureExtractor,
        previous: PublishedHistory, cache: FeatureCache = NO_CACHE,
    ) -> None:  # fmt: skip
        self.config, self.backbone, self.key, self.extract = config, backbone, key, extract
        self.previous, self.cache = previous, cache
        self.by = config.groups.columns(config.source)
        self.by_subject = config.groups.by_subject(config.source)

    def survey(self, entries: Iterable[Entry], progress: Callable[[int], None] = lambda done: None) -> Survey:
        """Return the survey of a source; ``progress`` is called with the number of records read."""
        total, candidates, features = 0, list[npt.NDArray[np.void]](), list[Features]()
        with ThreadPoolExecutor(self.config.run.threads, "codec") as pool:
            for number, chunk in enumerate(chunked(entries, CHUNK_RECORDS)):
                rows, own = self._survey_chunk(number, chunk, total, pool)
                candidates.append(rows)
                features.append(own)
                total += len(chunk)
                progress(total)
        table = np.concatenate([np.empty(0, CANDIDATE), *candidates])
        width = max((own.shape[1] for own in features), default=0)
        matrix = np.concatenate([np.empty((0, width), np.float16), *(own for own in features if len(own))])
        usable, kept = len(table), _drop_copies(table)
        table, matrix = table[kept], matrix[kept]
        names = ("position", "digest", "stratum", "person")
        positions, digests, strata, people = (np.ascontiguousarray(table[name]) for name in names)
        return Survey(total, total - usable, positions, digests, matrix, strata, people)

    def _survey_chunk(
        self, number: int, entries: Sequence[Entry], begin: int, pool: ThreadPoolExecutor
    ) -> tuple[npt.NDArray[np.void], Features]:
        batch_size = self.config.run.initial_batch_size
        records = enumerate(open_source(self.config.source).read(entries), begin)
        found: list[Candidate] = []
        features: list[Features] = []
        with closing(prefetch_map(self._look_at, records, pool, 2 * batch_size)) as looked_at:
            usable = (candidate for candidate in looked_at if candidate is not None)
            for batch in chunked(usable, batch_size):
                features.append(self._features(batch))
                found += (Candidate(c.position, c.digest, c.stratum, c.person, None) for c in batch)
        matrix = np.concatenate(features) if features else np.empty((0, 0), np.float16)
        self.cache.add(number, [candidate.digest for candidate in found], matrix)
        rows = [(c.position, c.digest.encode(), c.stratum, c.person) for c in found]
        return np.array(rows, CANDIDATE), matrix

    def _features(self, batch: Sequence[Candidate]) -> Features:
        pictures = [candidate.picture for candidate in batch if candidate.picture is not None]
        fresh = iter(self.extract(torch.stack(pictures)) if pictures else ())
        return np.stack([next(fresh) if c.picture is not None else self.cache[c.digest] for c in batch])

    def _look_at(self, item: tuple[int, Record]) -> Candidate | None:
        """Return what grouping needs of a record; None where it cannot be used, or was erased."""
        position, record = item
        digest = None if record.problem else self.key.source_hmac(record.data)
        erasure = self.key.erasure_digests(record.entry.record_id, digest, record.subject)
        if digest is None or self.previous.is_erased(erasure) or (self.by_subject and record.subject is None):
            return None
        try:
            for name in self.config.groups.generalise:
                grouped.as_number(record.columns.get(name))
            conditioning_text(self.config.model, record, self.backbone)
            picture = None if digest in self.cache else self._decode(record)
        except RecordError:
            return None
        values = json.dumps([grouped.column_value(record, name) for name in self.by])
        person = self._code("person", normalize_subject(record.subject or "")) if self.by_subject else NO_PERSON
        return Candidate(position, digest, self._code("stratum", values), person, picture)

    def _decode(self, record: Record) -> torch.Tensor:
        source, model = self.config.source, self.backbone
        return image_codec.decode(record.data, model.size, source.fit, source.limits, model.multiple).tensor

    def _code(self, purpose: str, text: str) -> int:
        """Return a keyed number (63 bits) that stands for a text."""
        return int.from_bytes(self.key.derive(purpose, text.encode())[:8], "big") >> 1


CANDIDATE = np.dtype([("position", np.int64), ("digest", "S64"), ("stratum", np.int64), ("person", np.int64)])


def _drop_copies(table: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Return the rows of one record for each original, ascending.

    Of copies in several strata, the same one is kept in whatever order they come.
    """
    order = np.lexsort((table["position"], table["person"], table["stratum"], table["digest"]))
    digests = table["digest"][order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = digests[1:] != digests[:-1]
    return np.sort(order[is_first])
