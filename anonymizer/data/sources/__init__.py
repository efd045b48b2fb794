"""Sources of originals: each format lists its records, then reads them, one ``Record`` for each ``Entry``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from anonymizer.config import SourceConfig
from anonymizer.data.metadata import find_metadata
from anonymizer.data.sources.column_policy import Field, check_carry
from anonymizer.data.sources.files import PARQUET_SUFFIXES, TAR_SUFFIXES, Location, is_side_file, locate
from anonymizer.data.sources.folder import FolderSource
from anonymizer.data.sources.listing import ListingSource
from anonymizer.data.sources.parquet import ParquetSource
from anonymizer.data.sources.webdataset import WebDatasetSource
from anonymizer.errors import SourceError
from anonymizer.records import Entry, Record
from anonymizer.storage.address import is_network

__all__ = ["Field", "Source", "detect_format", "open_source", "sample_metadata"]

LISTING_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
REENCODED = "dropped: pictures are encoded afresh from pixels"
METADATA_TREATMENTS = {
    "exif": "dropped, after its orientation is applied: pictures are encoded afresh from pixels",
    "icc": "used to convert colours, then dropped",
}


class Source(Protocol):
    """A dataset that can be listed and read."""

    def entries(self) -> Iterator[Entry]:
        """Yield every record in a stable order, without reading an image.

        SourceError if the source cannot be used, or has a column without a setting.
        """
        ...

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        """Yield one record for each entry, in the same order: its bytes, or the reason why it has none."""
        ...

    def fields(self) -> list[Field]:
        """Return its attributes besides the pixels and their treatment, without reading an image. SourceError also."""
        ...


FORMATS: dict[str, Callable[[SourceConfig, Location], Source]] = {
    "folder": FolderSource,
    "listing": ListingSource,
    "parquet": ParquetSource,
    "webdataset": WebDatasetSource,
}


def open_source(config: SourceConfig) -> Source:
    """Open the configured source; cheap, and repeated for each shard. SourceError if it is missing."""
    check_carry(config)
    location = locate(config.uri, [entry for entry in config.allow if is_network(entry)])
    return FORMATS[detect_format(location) if config.format == "auto" else config.format](config, location)


def detect_format(location: Location) -> str:
    """Return the format of a file by its suffix, or of a folder by its first thousand files except side files.

    A folder is tar or Parquet when all of them are; else it is a folder of images.
    """
    formats = {"webdataset": TAR_SUFFIXES, "parquet": PARQUET_SUFFIXES}
    if location.is_file:
        for name, suffixes in (formats | {"listing": LISTING_SUFFIXES}).items():
            if location.path.lower().endswith(suffixes):
                return name
        known = ", ".join(TAR_SUFFIXES + PARQUET_SUFFIXES + LISTING_SUFFIXES)
        raise SourceError(
            f"source.uri {location.uri!r}: a file of unknown format: set source.format, or name a folder, or a file "
            f"that ends in {known}"
        )
    files = (file.relative.lower() for file in location.files() if not is_side_file(file.relative))
    names = list(islice(files, 1000))
    for name, suffixes in formats.items():
        if names and all(file.endswith(suffixes) for file in names):
            return name
    return "folder"


def sample_metadata(source: Source, limit: int = 200) -> list[Field]:
    """Return the kinds of metadata inside up to ``limit`` images from all over the source, with their counts."""
    counts: Counter[str] = Counter()
    total = 0
    for record in source.read(sample_evenly(source.entries(), limit)):
        kinds = find_metadata(record.data) if record.problem is None else ["unreadable"]
        if kinds != ["unreadable"]:
            total += 1
            counts.update(kinds)
    fields = [
        Field.for_column(f"{kind} of pictures", METADATA_TREATMENTS.get(kind, REENCODED), f"{n} of {total} pictures")
        for kind, n in sorted(counts.items())
    ]
    return [*fields, Field("other metadata of pictures", REENCODED, f"0 of {total} pictures")]


def sample_evenly(entries: Iterable[Entry], limit: int) -> list[Entry]:
    """Return usable entries at equal distances: at most ``limit``, and at least half as many where there are enough."""
    sample: list[Entry] = []
    step = 1
    for number, entry in enumerate(entry for entry in entries if entry.problem is None):
        if number % step == 0:
            sample.append(entry)
        if len(sample) > limit:
            sample, step = sample[::2], 2 * step
    return sample
