"""Read a finished release in a script or notebook: its tables as DataFrames, its images as PIL images."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cached_property

import pandas as pd
import pyarrow as pa
from PIL import Image

from anonymizer.data.released_images import read_images
from anonymizer.errors import OutputError
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST, Release
from anonymizer.storage.path import StoragePath


class OpenedRelease:
    """A release, or its public half alone, read lazily and never written.

    Nothing is verified here: ``anonymizer.verify`` does that. ``ledger`` and ``figures`` need the restricted half.
    """

    def __init__(self, uri: str) -> None:
        """Raises OutputError if there is no manifest at ``uri``: neither a release nor a public half."""
        self.uri = uri
        root = StoragePath.from_uri(uri)
        release = Release(root)
        self._release = None if (root / MANIFEST).exists() else release
        self._public = root if self._release is None else release.public_or_candidate
        if not (self._public / MANIFEST).exists():
            raise OutputError(f"release {uri!r}: has no {MANIFEST}: name a finished release or its public half")

    def __repr__(self) -> str:
        return f"OpenedRelease({self.uri!r}, {len(self.manifest):,} images)"

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """One row for each released image, indexed by ``output_id``."""
        manifest: pd.DataFrame = parquet.read(self._public / MANIFEST).to_pandas()
        return manifest.set_index("output_id")

    @cached_property
    def ledger(self) -> pd.DataFrame:
        """One row for each record that was read, shard by shard, in no order within one. It names originals."""
        folder = self._restricted_half.ledger
        tables = [parquet.read(folder / name) for name in folder.list_files()]
        ledger: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        return ledger

    @cached_property
    def figures(self) -> pd.DataFrame:
        """One row for each figure of the last audit, with its interval. Raises OutputError if there was none."""
        path = self._restricted_half.audit / "figures.parquet"
        if not path.exists():
            raise OutputError(f"release {self.uri!r}: was not audited: call anonymizer.audit first")
        figures: pd.DataFrame = parquet.read(path).to_pandas()
        return figures

    def images(self) -> Iterator[tuple[str, Image.Image]]:
        """Yield ``(output_id, image)`` for each released image, RGB, in the order of the manifest."""
        rows = parquet.read(self._public / MANIFEST).select(["output_id", "file", "member"]).to_pylist()
        for row, data in read_images(self._public, rows):
            with Image.open(io.BytesIO(data)) as image:
                yield row["output_id"], image.convert("RGB")

    @property
    def _restricted_half(self) -> Release:
        if self._release is None:
            raise OutputError(f"release {self.uri!r}: is a public half: open the whole release for ledger and figures")
        return self._release


def open_release(uri: str) -> OpenedRelease:
    """Open the release, or the public half of one, at a path or any fsspec URI. Raises OutputError."""
    return OpenedRelease(uri)
