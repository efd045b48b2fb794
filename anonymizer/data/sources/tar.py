"""Read the members of a tar archive (plain or gzip) in order, skipping what is damaged.

Nothing is extracted, so a member's name leads nowhere.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from anonymizer.data.sources.files import Location
from anonymizer.errors import RecordError
from anonymizer.records import Reason

MAX_HEADER_BYTES = 2**20  # of one member, with long names and attributes; more is damage
MAX_HEADER_READS = 200  # of one member; tarfile recurses once for each header in a chain


def open_archive(location: Location, path: str, stack: ExitStack) -> Any:
    """Open an archive's bytes, decompressed, until the stack is closed."""
    file = stack.enter_context(location.open(path))
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return stack.enter_context(gzip.GzipFile(fileobj=file)) if is_gzip else file


class _BoundedReader:
    """A file from which tarfile may read a bounded number of bytes for the headers of one member."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.tell, self.seek = file.tell, file.seek
        self.begin(0)

    def begin(self, start: int) -> None:
        self.start, self.reads = start, 0

    def read(self, size: int) -> Any:
        self.reads += 1
        if size < 0 or self.tell() + size > self.start + MAX_HEADER_BYTES or self.reads > MAX_HEADER_READS:
            raise tarfile.ReadError("the headers of a member are too large")
        return self.file.read(size)


class Archive(tarfile.TarFile):
    """Iterates over members from the file's position, storing none; ``offset`` is that of a member's first header.

    Ends at the first block that is no header; with ``ignore_zeros`` such blocks are skipped up to the end of the file.
    """

    firstmember: tarfile.TarInfo | None
    pax_headers: dict[str, str]

    def __init__(self, file: Any, ignore_zeros: bool = False) -> None:
        self.reader = _BoundedReader(file)
        super().__init__(fileobj=self.reader, mode="r", ignore_zeros=ignore_zeros)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        return iter(self.next, None)

    def next(self) -> tarfile.TarInfo | None:
        first, self.firstmember = self.firstmember, None
        return first or self._next()

    def _next(self) -> tarfile.TarInfo | None:
        while True:
            start = self.offset
            self.reader.begin(start)
            self.reader.seek(start)
            self.pax_headers.clear()  # of earlier members, which reading from an offset would not know
            try:
                member = self.tarinfo.fromtarfile(self)
                if member.size < 0 or self.offset <= start:
                    raise tarfile.ReadError("a negative size")
            except (OSError, EOFError, zlib.error):  # the rest cannot be read
                raise
            except Exception:  # a damaged header raises anything at all
                self.offset = self.reader.tell()
                if self.offset == start or not self.ignore_zeros:
                    return None
            else:
                member.offset = start
                return member


def iter_members(file: Any, start: int = 0) -> Iterator[tarfile.TarInfo | Reason]:
    """Yield the members of an archive from an offset on, and TRUNCATED for each stretch that is no header or padding.

    Damage is skipped block by block up to the next header; so are the end marks inside concatenated archives.
    """
    expected = start  # offset of the next header
    try:
        file.seek(start)
        archive = Archive(file, ignore_zeros=True)
        for member in archive:
            if member.offset > expected and not _is_zero(file, expected, member.offset):
                yield Reason.TRUNCATED
            expected = archive.offset
            yield member
        if not _is_zero(file, expected, None):
            yield Reason.TRUNCATED
    except Exception:  # a damaged archive raises anything at all
        yield Reason.TRUNCATED


def _is_zero(file: Any, start: int, end: int | None) -> bool:
    """Return whether start to end (or the file's end) holds only zero bytes, and at least one block of them."""
    file.seek(start)
    count = 0
    while end is None or start + count < end:
        block = file.read(65536 if end is None else min(65536, end - start - count))
        if block.strip(b"\0"):
            return False
        if not block:
            break
        count += len(block)
    return count >= tarfile.BLOCKSIZE


def member_problem(member: tarfile.TarInfo) -> Reason | None:
    """Return why a member cannot be read as a file, or None."""
    if member.issym() or member.islnk():
        return Reason.OUTSIDE_SOURCE
    return None if member.isreg() and not member.issparse() else Reason.UNREADABLE


def read_member(file: Any, member: tarfile.TarInfo) -> bytes:
    """Return the bytes of a member. RecordError TRUNCATED if the file ends early."""
    file.seek(member.offset_data)
    data = bytes(file.read(member.size))
    if len(data) != member.size:
        raise RecordError(Reason.TRUNCATED)
    return data
