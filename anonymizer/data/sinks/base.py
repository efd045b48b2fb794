"""What all sinks share: images with their locations, the protocol of a sink, and the division into parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from anonymizer.storage.path import translate_storage_errors

PART_ROWS = 10_000  # most images in one tar or Parquet file
PART_BYTES = 256 * 2**20  # most encoded bytes in one tar or Parquet file, unless a single image is larger


@dataclass(frozen=True)
class ReleasedImage:
    """One image of a release: its new id, its encoded bytes, and the columns that are carried along."""

    output_id: str
    data: bytes
    suffix: str
    label: str | None = None
    caption: str | None = None
    columns: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageLocation:
    """The file of an image, relative to the public folder, and its member (tar) or row (Parquet) in it."""

    output_id: str
    file: str
    member: str | None = None


class Sink(Protocol):
    """A format of the public images."""

    def write(self, images: Iterable[ReleasedImage], fs: Any, folder: str) -> Iterator[ImageLocation]:
        """Write images, already in output order, under ``folder`` of an fsspec file system; yield where each lies.

        Streams: the last file is complete when the iterator is exhausted. The same images give the same bytes.
        OutputError when nothing more can be written.
        """
        ...


class Divider:
    """Numbers consecutive chunks of at most so many rows and bytes; a single larger addition is a chunk of its own."""

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self.max_rows, self.max_bytes = max_rows, max_bytes
        self.number = self.rows = self.bytes = 0

    def add(self, *images: ReleasedImage) -> int:
        """Return the number of the chunk that these images belong to."""
        size = sum(len(image.data) for image in images)
        if self.rows and (self.rows + len(images) > self.max_rows or self.bytes + size > self.max_bytes):
            self.number += 1
            self.rows = self.bytes = 0
        self.rows += len(images)
        self.bytes += size
        return self.number


def make_folder(fs: Any, path: str) -> None:
    """Make a folder where it is missing. OutputError if that fails."""
    with translate_storage_errors(fs):
        fs.makedirs(path, exist_ok=True)
