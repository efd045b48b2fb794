"""Features of originals, kept while a release is being planned, so that an interrupted planning does not begin anew.

They show originals, coarsely: they lie in the restricted half, sealed, and are removed when the plan is written. With
recipients nothing is kept, since what is encrypted to them cannot be read back; nor without a key that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from anonymizer.config import RestrictedConfig
from anonymizer.crypto import seal
from anonymizer.errors import IntegrityError
from anonymizer.grouping.features import Features
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release, SealKey
from anonymizer.storage.path import StoragePath

SEAL_KEY = "anonymizer.seal"


class FeatureCache:
    """Features by keyed digest, in one file for each chunk of the source."""

    def __init__(self, folder: StoragePath | None = None, key: SealKey | None = None, context: str = "") -> None:
        self.folder, self.key, self.context = folder, key, context
        self._digests, self._features = _read_all(folder, key, context) if folder else _empty()

    @classmethod
    def open(cls, release: Release, config: RestrictedConfig, context: str) -> FeatureCache:
        """Return the cache of a release; ``context`` differs where its features would."""
        if release.sealing_key is None or config.recipients:
            return NO_CACHE
        return cls(release.features, release.sealing_key, context)

    def __contains__(self, digest: str) -> bool:
        return self._find(digest) is not None

    def __getitem__(self, digest: str) -> Features:
        index = self._find(digest)
        if index is None:
            raise KeyError(digest)
        features: Features = self._features[index]
        return features

    def _find(self, digest: str) -> int | None:
        text = np.bytes_(digest.encode())
        index = int(np.searchsorted(self._digests, text))
        return index if index < len(self._digests) and self._digests[index] == text else None

    def add(self, number: int, digests: Sequence[str], features: Features) -> None:
        """Keep the features of a chunk, unless all of them are there."""
        if self.folder is None or not digests or all(digest in self for digest in digests):
            return
        cells = pa.array(features.ravel().view(np.uint16)).cast(pa.uint16())
        rows = pa.FixedSizeListArray.from_arrays(cells, features.shape[1])
        table = pa.table({"digest": pa.array(digests, pa.string()), "features": rows})
        data = seal.apply(parquet.to_bytes(table, {SEAL_KEY: seal.PLACEHOLDER}), self.key, f"{self.context}/{number}")
        (self.folder / _file_name(number)).write_uncommitted(data)


def _file_name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _empty() -> tuple[npt.NDArray[np.bytes_], Features]:
    return np.empty(0, "S64"), np.empty((0, 0), np.float16)


def _read_all(folder: StoragePath, key: SealKey | None, context: str) -> tuple[npt.NDArray[np.bytes_], Features]:
    """Return digests, sorted, and their features; none of a file that is damaged, or of other settings."""
    digests, features = list[npt.NDArray[np.bytes_]](), list[Features]()
    for path in folder.children():
        try:
            number = int(path.name[5:10])
            data = path.read()
            seal.check(data, key, f"{context}/{number}", path.name)
            table = parquet.ParquetTable(pa.BufferReader(data)).read()
            cells = table["features"].combine_chunks()
            matrix = cells.values.to_numpy().view(np.float16).reshape(len(table), -1)
            digests.append(np.array(table["digest"].to_pylist(), "S64"))
            features.append(matrix)
        except (IntegrityError, ValueError, OSError, KeyError, pa.ArrowException):
            continue
    if not digests or len({matrix.shape[1] for matrix in features}) > 1:
        return _empty()
    joined = np.concatenate(digests)
    order = np.argsort(joined)
    return joined[order], np.concatenate(features)[order]


NO_CACHE = FeatureCache()
