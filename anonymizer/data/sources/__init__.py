"""Where originals come from: each format lists its records, then reads them, one ``Record`` for each ``Entry``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

from anonymizer.config import SourceConfig
from anonymizer.data.sources.coercion import check_carry
from anonymizer.data.sources.column_policy import Field, sample_metadata
from anonymizer.data.sources.files import (
    IGNORED_NAMES,
    PARQUET_SUFFIXES,
    TAR_SUFFIXES,
    Location,
    is_side_file,
    locate,
    to_printable,
)
from anonymizer.errors import SourceError
from anonymizer.records import Entry, Record

__all__ = ["IGNORED_NAMES", "Field", "Source", "detect_format", "open_source", "sample_metadata", "to_printable"]

LISTING_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")


class Source(Protocol):
    """A dataset that can be listed and read."""

    def entries(self) -> Iterator[Entry]:
        """Every record in a stable order, without reading a picture.

        SourceError if the source cannot be used, or has a column that nobody has classified.
        """
        ...

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        """One record for each entry, in the same order: its bytes, or the reason why there are none. Streams."""
        ...

    def fields(self) -> list[Field]:
        """What it holds besides the pixels, and what becomes of it, without reading a picture. SourceError likewise."""
        ...


def open_source(config: SourceConfig) -> Source:
    """The source that the configuration names; cheap, and repeated for each shard. SourceError if it is missing."""
    check_carry(config)
    location = locate(config.uri)
    name = detect_format(location) if config.format == "auto" else config.format
    if name == "webdataset":
        from anonymizer.data.sources.webdataset import WebDatasetSource

        return WebDatasetSource(config, location)
    if name == "parquet":
        from anonymizer.data.sources.parquet import ParquetSource

        return ParquetSource(config, location)
    if name == "listing":
        from anonymizer.data.sources.listing import ListingSource

        return ListingSource(config, location)
    from anonymizer.data.sources.folder import FolderSource

    return FolderSource(config, location)


def detect_format(location: Location) -> str:
    """The format by what lies there: a file by its suffix; a folder by its first thousand files, side files apart.

    A folder is tar or Parquet when all of them are; else it is a folder of pictures.
    """
    kinds = {"webdataset": TAR_SUFFIXES, "parquet": PARQUET_SUFFIXES}
    if location.is_file:
        for kind, suffixes in (kinds | {"listing": LISTING_SUFFIXES}).items():
            if location.path.lower().endswith(suffixes):
                return kind
        known = ", ".join(TAR_SUFFIXES + PARQUET_SUFFIXES + LISTING_SUFFIXES)
        raise SourceError(
            f"source.uri {location.uri!r}: a file of unknown format: set source.format, or name a folder, or a file "
            f"that ends in {known}"
        )
    data = (file.relative.lower() for file in location.files() if not is_side_file(file.relative))
    names = list(islice(data, 1000))
    for kind, suffixes in kinds.items():
        if names and all(name.endswith(suffixes) for name in names):
            return kind
    return "folder"
