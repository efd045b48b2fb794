"""WebDataset tar archives (plain or gzip): members that share a name up to its first dot are one record.

Nothing is extracted, so a member's name leads nowhere. Members are found again by their offset.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from anonymizer.config import SourceConfig
from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Entry, Reason, Record
from anonymizer.sources.files import TAR_SUFFIXES, Ids, Location, data_files, is_ignored, printable, read_each, unusable
from anonymizer.sources.values import plain, text, wanted_columns

IMAGE_SUFFIXES = frozenset(
    ["jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif"]
)
SIDE_BYTES = 2**20  # a label, caption or json member larger than this is not one
HEADER_BYTES = 2**20  # a member's headers, with its long name and its attributes, that are larger than this are damage
OTHER_NAMES = {"label": "cls", "caption": "txt"}  # WebDataset's own names for them


@dataclass
class Sample:
    """Consecutive members of one key; ``images`` holds (name, size, problem)."""

    key: str
    offset: int
    images: list[tuple[str, int, Reason | None]] = field(default_factory=list)


class WebDatasetSource:
    """Files below a folder that end in .tar, .tar.gz or .tgz, or one archive; a record's id is archive and key.

    Without ``source.image`` the first picture of a key is its picture, and each further one a record with the problem
    DUPLICATE_ID; ``source.image: seg.png`` picks one by its extension, and the others are then left aside as asked.
    """

    def __init__(self, config: SourceConfig, location: Location) -> None:
        for name in ("id", "where"):
            if getattr(config, name):
                raise SourceError(f"source.{name}: works with Parquet and listings, not with tar: leave it out")
        self.config, self.location = config, location
        self.chosen = None if config.image == "image" else config.image.lower()
        self.wanted = [name for name in wanted_columns(config) if (config.label, name) != ("folder", "folder")]

    def entries(self) -> Iterator[Entry]:
        ids = Ids()
        held: list[Entry] = []  # damage and files that are no archives, until one archive has proved to be one
        healthy = False
        for file in data_files(self.location, TAR_SUFFIXES):
            uri, name = self.location.to_uri(file.path), printable(file.relative)
            for sample in self._samples(file.path) if file.problem is None else [file.problem]:
                if isinstance(sample, Reason):
                    bad = f"{name}/(damaged)" if file.problem is None else name
                    held.append(Entry(ids.claim(bad)[0], uri, problem=sample))
                else:
                    healthy = True
                if healthy:
                    yield from held
                    held = []
                if isinstance(sample, Sample):
                    yield from self._entries(sample, uri, ids.claim, name)
        if not healthy:
            raise SourceError(
                f"source.uri {self.location.uri!r}: no readable tar archive with members in it: check it with tar -t"
            )

    def _entries(self, sample: Sample, uri: str, claim: Any, archive: str) -> Iterator[Entry]:
        name = f"{archive}/{printable(sample.key)}"
        label = self._folder_label(sample.key)
        if not sample.images:
            record_id, _ = claim(name)
            yield Entry(record_id, uri, printable(sample.key), sample.offset, label=label, problem=Reason.NOT_AN_IMAGE)
        for member, size, problem in sample.images:
            record_id, duplicate = claim(name)
            yield Entry(record_id, uri, member, sample.offset, size, label, problem or duplicate)

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        for uri, group in groupby(entries, key=lambda entry: entry.uri):
            yield from self._read_archive(self.location.to_path(uri), list(group))

    def _read_archive(self, path: str, entries: list[Entry]) -> Iterator[Record]:
        if all(entry.problem for entry in entries):  # not an archive, it may be
            yield from map(unusable, entries)
            return
        with ExitStack() as stack:
            try:
                file = self._open(path, stack)
            except Exception:  # storage libraries raise errors of their own
                yield from (unusable(entry, Reason.UNREADABLE) for entry in entries)
                return
            yield from read_each(entries, lambda entry: self._read(file, entry))

    def _read(self, file: Any, entry: Entry) -> Record:
        """The members of one key, from its first one on, as far as they are needed."""
        if entry.size is not None and entry.size > self.config.limits.max_bytes:
            raise RecordError(Reason.TOO_MANY_BYTES)
        file.seek(entry.offset)
        data: bytes | None = None
        sides: dict[str, bytes | None] = {}
        key = _key(entry.member or "")[0]
        for member in _Archive(file):
            name = _clean(member.name)
            member_key, extension = _key(name)
            if member_key != key:
                break
            if name == entry.member and data is None:
                if not member.isreg() or member.size != entry.size:
                    raise RecordError(Reason.CHANGED)
                data = _content(file, member)
            elif self.wanted and extension not in IMAGE_SUFFIXES and member.isreg():
                sides[extension] = _content(file, member) if member.size <= SIDE_BYTES else None
            if data is not None and not self.wanted:
                break
        if data is None:
            raise RecordError(Reason.CHANGED)
        values = _Values(sides)
        label = entry.label if self.config.label in (None, "folder") else text(values[self.config.label])
        caption = None if self.config.caption is None else text(values[self.config.caption])
        return Record(entry, data, label, caption, {name: plain(values[name]) for name in self.config.carry})

    def _open(self, path: str, stack: ExitStack) -> Any:
        file = stack.enter_context(self.location.open(path))
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        return stack.enter_context(gzip.GzipFile(fileobj=file)) if packed else file

    def _samples(self, path: str) -> Iterator[Sample | Reason]:
        """Keys of one archive in order; where it is damaged, the reason, and then what can be read behind it."""
        sample: Sample | None = None
        with ExitStack() as stack:
            try:
                file = self._open(path, stack)
            except Exception:  # storage libraries raise errors of their own
                yield Reason.UNREADABLE
                return
            for member in _members(file):
                if isinstance(member, Reason):
                    if sample:
                        yield sample
                    sample = None
                    yield member
                    continue
                name = _clean(member.name)
                if member.isdir() or is_ignored(name.rpartition("/")[2]):
                    continue
                key, extension = _key(name)
                if sample is None or sample.key != key:
                    if sample:
                        yield sample
                    sample = Sample(key, member.offset)
                if extension == self.chosen or (self.chosen is None and extension.rpartition(".")[2] in IMAGE_SUFFIXES):
                    sample.images.append((name, member.size, _member_problem(member)))
        if sample:
            yield sample

    def _folder_label(self, key: str) -> str | None:
        folder = key.rpartition("/")[0] if self.config.label == "folder" else ""
        return printable(folder, keep="%") or None


class _Values:
    """Values of a record by name: a member with that extension, else a key of its json member; None if absent."""

    def __init__(self, sides: dict[str, bytes | None]) -> None:
        self.sides = sides
        self.json: dict[str, object] = {}
        if "json" in sides:
            try:
                found = json.loads(sides["json"] or b"")
            except (ValueError, RecursionError):
                raise RecordError(Reason.BAD_METADATA) from None
            self.json = found if isinstance(found, dict) else {}

    def __getitem__(self, name: str) -> object:
        if name in self.json:
            return self.json[name]
        extension = name if name in self.sides else OTHER_NAMES.get(name, name)
        if extension not in self.sides:
            return None
        data = self.sides[extension]
        try:
            return None if data is None else data.decode().strip()
        except UnicodeDecodeError:
            raise RecordError(Reason.BAD_METADATA) from None


class _Window:
    """A file as tarfile may read it for one member: no further than HEADER_BYTES behind ``start``."""

    def __init__(self, file: Any) -> None:
        self.file, self.start = file, 0
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> Any:
        if size < 0 or self.tell() + size > self.start + HEADER_BYTES:
            raise tarfile.ReadError("the headers of a member are too large")
        return self.file.read(size)


class _Archive(tarfile.TarFile):
    """Members from where the file stands, in order, none of them remembered; each begins at the first of its headers.

    Ends at whatever is no header; with ``ignore_zeros`` at the end of the file, and what is no header is skipped.
    """

    firstmember: tarfile.TarInfo | None
    pax_headers: dict[str, str]

    def __init__(self, file: Any, ignore_zeros: bool = False) -> None:
        self.window = _Window(file)
        super().__init__(fileobj=self.window, mode="r", ignore_zeros=ignore_zeros)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        return iter(self.next, None)

    def next(self) -> tarfile.TarInfo | None:
        first, self.firstmember = self.firstmember, None
        return first or self._next()

    def _next(self) -> tarfile.TarInfo | None:
        while True:
            start = self.window.start = self.offset
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


def _members(file: Any) -> Iterator[tarfile.TarInfo | Reason]:
    """Headers of an archive; TRUNCATED wherever something that is not a header stands where one belongs.

    Damage is skipped block by block until a header follows; so are the end marks inside archives that were joined.
    """
    expected = 0  # where the next header belongs
    try:
        tar = _Archive(file, ignore_zeros=True)
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


def _member_problem(member: tarfile.TarInfo) -> Reason | None:
    if member.issym() or member.islnk():
        return Reason.OUTSIDE_SOURCE
    return None if member.isreg() and not member.issparse() else Reason.UNREADABLE


def _content(file: Any, member: tarfile.TarInfo) -> bytes:
    file.seek(member.offset_data)
    data = bytes(file.read(member.size))
    if len(data) != member.size:
        raise RecordError(Reason.TRUNCATED)
    return data


def _clean(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name


def _key(name: str) -> tuple[str, str]:
    """WebDataset's convention: ('a/b', 'seg.png') for 'a/b.seg.png'."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".") if not base.startswith(".") else base.rpartition(".")
    return f"{folder}{slash}{stem}", extension.lower()
