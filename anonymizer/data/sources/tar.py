"""Members of a tar archive (plain or gzip), one after the other, around what is damaged.

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

MAX_HEADER_BYTES = (
    2**20
)  # a member's headers, with its long name and its attributes, that are larger than this are damage
MAX_HEADER_READS = 200  # and so are those that take more reads; tarfile goes one call deeper for each header of a chain


def open_archive(location: Location, path: str, stack: ExitStack) -> Any:
    """An archive's own bytes, packed or not, until the stack is closed."""
    file = stack.enter_context(location.open(path))
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return stack.enter_context(gzip.GzipFile(fileobj=file)) if packed else file


class _BoundedReader:
    """A file as tarfile may read it for the headers of one member, which begin at ``start``."""

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
    """Members from where the file stands, in order, none of them remembered; each begins at the first of its headers.

    Ends at whatever is no header; with ``ignore_zeros`` at the end of the file, and what is no header is skipped.
    """

    firstmember: tarfile.TarInfo | None
    pax_headers: dict[str, str]

    def __init__(self, file: Any, ignore_zeros: bool = False) -> None:
        self.window = _BoundedReader(file)
        super().__init__(fileobj=self.window, mode="r", ignore_zeros=ignore_zeros)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        return iter(self.next, None)

    def next(self) -> tarfile.TarInfo | None:
        first, self.firstmember = self.firstmember, None
        return first or self._next()

    def _next(self) -> tarfile.TarInfo | None:
        while True:
            start = self.offset
            self.window.begin(start)
            self.window.seek(start)
            self.pax_headers.clear()  # of an earlier member: whoever begins to read here would not know of them
            try:
                member = self.tarinfo.fromtarfile(self)
                if member.size < 0 or self.offset <= start:
                    raise tarfile.ReadError("a negative size")
            except (OSError, EOFError, zlib.error):  # nothing behind this can be read
                raise
            except Exception:  # a damaged header raises anything at all
                self.offset = self.window.tell()
                if self.offset == start or not self.ignore_zeros:
                    return None
            else:
                member.offset = start
                return member


def iter_members(file: Any) -> Iterator[tarfile.TarInfo | Reason]:
    """Headers of an archive; TRUNCATED wherever something that is not a header stands where one belongs.

    Damage is skipped block by block until a header follows; so are the end marks inside archives that were joined.
    """
    expected = 0  # where the next header belongs
    try:
        tar = Archive(file, ignore_zeros=True)
        for member in tar:
            if member.offset > expected and not _is_zero(file, expected, member.offset):
                yield Reason.TRUNCATED
            expected = tar.offset
            yield member
        if not _is_zero(file, expected, None):
            yield Reason.TRUNCATED
    except Exception:  # a damaged archive raises anything at all
        yield Reason.TRUNCATED


def _is_zero(file: Any, start: int, end: int | None) -> bool:
    """Whether there are only zero bytes, and at least one block of them, from start to end (or the file's end)."""
    file.seek(start)
    seen = 0
    while end is None or start + seen < end:
        block = file.read(65536 if end is None else min(65536, end - start - seen))
        if block.strip(b"\0"):
            return False
        if not block:
            break
        seen += len(block)
    return seen >= tarfile.BLOCKSIZE


def member_problem(member: tarfile.TarInfo) -> Reason | None:
    """Why a member cannot be read as a file, if so."""
    if member.issym() or member.islnk():
        return Reason.OUTSIDE_SOURCE
    return None if member.isreg() and not member.issparse() else Reason.UNREADABLE


def read_member(file: Any, member: tarfile.TarInfo) -> bytes:
    """The bytes of a member; RecordError TRUNCATED if they are not all there."""
    file.seek(member.offset_data)
    data = bytes(file.read(member.size))
    if len(data) != member.size:
        raise RecordError(Reason.TRUNCATED)
    return data
