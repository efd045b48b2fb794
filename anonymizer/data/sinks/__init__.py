"""Where released pictures go: written in output order, as they come, with nothing about where they came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from anonymizer.config import OutputConfig

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PART_BYTES", "PART_ROWS", "ImageLocation", "ReleasedImage", "Sink", "open_sink"]

PART_ROWS = 10_000  # pictures in one tar or Parquet file, at most
PART_BYTES = 256 * 2**20  # encoded bytes in one tar or Parquet file, unless one picture is larger


@dataclass(frozen=True)
class ReleasedImage:
    """One picture of a release: its new id, its encoded bytes, and what the configuration asked to carry."""

    output_id: str
    data: bytes
    suffix: str
    label: str | None = None
    caption: str | None = None
    columns: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageLocation:
    """Where a picture was put: a path relative to the public folder, and the member (tar) or row (Parquet) in it."""

    output_id: str
    file: str
    member: str | None = None


class Sink(Protocol):
    """A format of the public pictures."""

    def write(self, images: Iterable[ReleasedImage], fs: Any, folder: str) -> Iterator[ImageLocation]:
        """Write pictures, already in output order, under ``folder`` of an fsspec file system; one ``Placed`` for each.

        Streams: the last file is whole when the iterator is exhausted. The same pictures give the same bytes.
        OutputError when nothing more can be written.
        """
        ...


def open_sink(config: OutputConfig, columns: Mapping[str, pa.DataType] | None = None) -> Sink:
    """The sink that the configuration names.

    ``columns``: types of the carried columns, for Parquet; without them they are taken from the first 1,000 pictures.
    """
    if config.format == "webdataset":
        from anonymizer.data.sinks.webdataset import WebDatasetSink

        return WebDatasetSink()
    if config.format == "parquet":
        from anonymizer.data.sinks.parquet import ParquetSink

        return ParquetSink(columns)
    from anonymizer.data.sinks.folder import FolderSink

    return FolderSink()
