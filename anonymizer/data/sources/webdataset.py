"""WebDataset tar archives (plain or gzip): members that share a name up to its first dot are one record.

Members are found again by their offset.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from anonymizer.config import SourceConfig
from anonymizer.data.sources import tar
from anonymizer.data.sources.coercion import requested_columns, to_json_value, to_text
from anonymizer.data.sources.column_policy import (
    ALL_OTHERS,
    DROPPED,
    FILE_ATTRIBUTES,
    PICTURE,
    TREATMENTS,
    ColumnPolicy,
    Field,
    configured_columns,
    refuse_unclassified,
)
from anonymizer.data.sources.files import (
    TAR_SUFFIXES,
    Location,
    RecordIds,
    failed_record,
    is_ignored,
    list_data_files,
    read_each,
    to_printable,
)
from anonymizer.data.sources.folder import parent_label
from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Entry, Reason, Record

IMAGE_SUFFIXES = frozenset(
    ["jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif"]
)
MAX_SIDE_BYTES = 2**20  # a label, caption or json member larger than this is not one
EXTENSION_ALIASES = {"label": "cls", "caption": "txt"}  # WebDataset's own names for them
PROBED_SAMPLES = 1000  # samples, the first ones, whose json members are read for their keys before any work begins
MEMBER_ATTRIBUTES = Field("owner, time and attributes", DROPPED, "each member")


@dataclass(frozen=True)
class Member:
    """One file in an archive: what reads it, its header, its name, and what that says by WebDataset's convention."""

    file: Any
    info: tarfile.TarInfo
    name: str
    key: str
    extension: str


@dataclass
class Sample:
    """Consecutive members of one key; ``images`` holds (name, size, problem), ``sides`` the other extensions."""

    key: str
    offset: int
    images: list[tuple[str, int, Reason | None]] = field(default_factory=list)
    side_extensions: list[str] = field(default_factory=list)


class WebDatasetSource:
    """Files below a folder that end in .tar, .tar.gz or .tgz, or one archive; a record's id is archive and key.

    Without ``source.image`` the first picture of a key is its picture, and each further one a record with the problem
    DUPLICATE_ID; ``source.image: seg.png`` picks one by its extension, and the others are then left aside as asked.

    Columns are the extensions of members that are no pictures, and the keys of json members.
    """

    def __init__(self, config: SourceConfig, location: Location) -> None:
        for name in ("id", "where"):
            if getattr(config, name):
                raise SourceError(f"source.{name}: works with Parquet and listings, not with tar: leave it out")
        self.config, self.location = config, location
        self.chosen = None if config.image == "image" else config.image.lower()
        uses = [(name, column) for name, column in configured_columns(config) if name != "image"]
        uses = [use for use in uses if use not in (("label", "folder"), ("subject", "folder"))]
        for name, column in uses:
            if column == "json" and name != "drop":
                raise SourceError(f"source.{name}: 'json' is a whole member: name the keys in it that are meant")
        # A member that is dropped or restricted by its own name does not stand in for another name.
        self.others = {n: o for n, o in EXTENSION_ALIASES.items() if o not in (*config.drop, *config.restricted)}
        others = [(name, self.others[column]) for name, column in uses if column in self.others]
        picture = [("image", self.chosen)] if self.chosen else []
        rest = ALL_OTHERS in config.drop
        self.members = ColumnPolicy([*uses, *others, *picture, ("drop", "json"), ("drop", "")], rest)
        self.keys = ColumnPolicy(uses, rest or "json" in config.drop)
        self.wanted = bool(requested_columns(config)) or config.subject is not None

    def entries(self) -> Iterator[Entry]:
        if ALL_OTHERS not in self.config.drop:
            self._refuse_unclassified(*self._probe_columns())
        ids = RecordIds()
        held: list[Entry] = []  # damage and files that are no archives, until one archive has proved to be one
        unclassified = dict[str, None]()
        healthy = False
        for file in list_data_files(self.location, TAR_SUFFIXES):
            uri, name = self.location.to_uri(file.path), to_printable(file.relative)
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
                    unclassified.update(dict.fromkeys(self.members.find_unclassified(sample.side_extensions)))
                    yield from self._entries(sample, uri, ids.claim, name)
        refuse_unclassified(unclassified)
        if not healthy:
            raise SourceError(
                f"source.uri {self.location.uri!r}: no readable tar archive with members in it: check it with tar -t"
            )

    def _entries(self, sample: Sample, uri: str, claim: Any, archive: str) -> Iterator[Entry]:
        name, folder = f"{archive}/{to_printable(sample.key)}", parent_label(sample.key)
        label = folder if self.config.label == "folder" else None
        subject = folder if self.config.subject == "folder" else None
        nothing = [(to_printable(sample.key), None, Reason.NOT_AN_IMAGE)]
        for member, size, problem in sample.images or nothing:
            record_id, duplicate = claim(name)
            reason = problem or duplicate
            yield Entry(record_id, uri, member, sample.offset, size, label, reason, subject=subject)

    def fields(self) -> list[Field]:
        extensions, keys = self._probe_columns()
        self._refuse_unclassified(extensions, keys)
        found, folder = f"members of the first {PROBED_SAMPLES} keys", []
        if uses := [TREATMENTS[name] for name in ("label", "subject") if getattr(self.config, name) == "folder"]:
            folder = [Field("folder", " and ".join(uses), "each key")]
        pictures = {extension: PICTURE if self._is_picture(extension) else DROPPED for extension in extensions}
        return [
            FILE_ATTRIBUTES,
            MEMBER_ATTRIBUTES,
            *folder,
            *(Field.for_column(name, what, found) for name, what in pictures.items() if not self._is_column(name)),
            *self.members.describe((name for name in extensions if self._is_column(name) and name != "json"), found),
            *self.keys.describe(keys, f"json {found}"),
        ]

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        for uri, group in groupby(entries, key=lambda entry: entry.uri):
            yield from self._read_archive(self.location.to_path(uri), list(group))

    def _read_archive(self, path: str, entries: list[Entry]) -> Iterator[Record]:
        if all(entry.problem for entry in entries):  # not an archive, it may be
            yield from map(failed_record, entries)
            return
        with ExitStack() as stack:
            try:
                file = tar.open_archive(self.location, path, stack)
            except Exception:  # storage libraries raise errors of their own
                yield from (failed_record(entry, Reason.UNREADABLE) for entry in entries)
                return
            yield from read_each(entries, lambda entry: self._read(file, entry))

    def _read(self, file: Any, entry: Entry) -> Record:
        """The members of one key, from its first one on, as far as they are needed."""
        config = self.config
        if entry.size is not None and entry.size > config.limits.max_bytes:
            raise RecordError(Reason.TOO_MANY_BYTES)
        file.seek(entry.offset)
        data: bytes | None = None
        sides: dict[str, bytes | None] = {}
        key = _split_name(entry.member or "")[0]
        for member in tar.Archive(file):
            name = _strip_dot_slash(member.name)
            member_key, extension = _split_name(name)
            if member_key != key:
                break
            if name == entry.member and data is None:
                if not member.isreg() or member.size != entry.size:
                    raise RecordError(Reason.CHANGED)
                data = tar.read_member(file, member)
            elif self._is_column(extension):
                if self.members.treatment(extension) is None:
                    raise RecordError(Reason.UNCLASSIFIED)
                if member.isreg() and (self.wanted or (extension == "json" and not self.keys.rest)):
                    sides[extension] = tar.read_member(file, member) if member.size <= MAX_SIDE_BYTES else None
            if data is not None and not self.wanted and self.keys.rest:
                break
        if data is None:
            raise RecordError(Reason.CHANGED)
        values = _Values(sides, self.others)
        if self.keys.find_unclassified(values.json):
            raise RecordError(Reason.UNCLASSIFIED)
        label = entry.label if config.label in (None, "folder") else to_text(values[config.label])
        caption = None if config.caption is None else to_text(values[config.caption])
        columns, restricted = (
            {n: to_json_value(values[n]) for n in asked} for asked in (config.carry, config.restricted)
        )
        subject = entry.subject if config.subject in (None, "folder") else to_text(values[config.subject])
        return Record(entry, data, label, caption, columns, restricted, subject)

    def _samples(self, path: str) -> Iterator[Sample | Reason]:
        """Keys of one archive in order; where it is damaged, the reason, and then what can be read behind it."""
        sample: Sample | None = None
        for member in self._walk(path):
            if isinstance(member, Reason):
                if sample:
                    yield sample
                sample = None
                yield member
                continue
            if sample is None or sample.key != member.key:
                if sample:
                    yield sample
                sample = Sample(member.key, member.info.offset)
            if self._is_picture(member.extension):
                sample.images.append((member.name, member.info.size, tar.member_problem(member.info)))
            elif self._is_column(member.extension):
                sample.side_extensions.append(member.extension)
        if sample:
            yield sample

    def _probe_columns(self) -> tuple[dict[str, None], dict[str, None]]:
        """Extensions of the members of the first keys, and the keys that are in their json members."""
        extensions, keys = dict[str, None](), dict[str, None]()
        samples, last = 0, None
        for file in list_data_files(self.location, TAR_SUFFIXES):
            for member in self._walk(file.path) if file.problem is None else []:
                if isinstance(member, Reason):
                    continue
                samples += last != (file.path, member.key)
                if samples > PROBED_SAMPLES:
                    return extensions, keys
                last = file.path, member.key
                extensions[member.extension] = None
                if member.extension == "json":
                    keys.update(dict.fromkeys(_json_keys(member)))
        return extensions, keys

    def _refuse_unclassified(self, extensions: Iterable[str], keys: Iterable[str]) -> None:
        columns = [extension for extension in extensions if self._is_column(extension)]
        refuse_unclassified(self.members.find_unclassified(columns) + self.keys.find_unclassified(keys))

    def _walk(self, path: str) -> Iterator[Member | Reason]:
        """The files of one archive, what is damaged in it, and UNREADABLE if it cannot be opened."""
        with ExitStack() as stack:
            try:
                file = tar.open_archive(self.location, path, stack)
            except Exception:  # storage libraries raise errors of their own
                yield Reason.UNREADABLE
                return
            for member in tar.iter_members(file):
                if isinstance(member, Reason):
                    yield member
                    continue
                name = _strip_dot_slash(member.name)
                if not member.isdir() and not is_ignored(name.rpartition("/")[2]):
                    yield Member(file, member, name, *_split_name(name))

    def _is_picture(self, extension: str) -> bool:
        if self.chosen:
            return extension == self.chosen
        return extension.rpartition(".")[2] in IMAGE_SUFFIXES and extension not in self.config.drop

    def _is_column(self, extension: str) -> bool:
        """Whether it is neither the picture nor another one, which is left aside."""
        return extension != self.chosen and extension.rpartition(".")[2] not in IMAGE_SUFFIXES


class _Values:
    """Values of a record by name: a member with that extension, else a key of its json member; None if absent."""

    def __init__(self, sides: dict[str, bytes | None], others: Mapping[str, str]) -> None:
        self.sides, self.others = sides, others
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
        extension = name if name in self.sides else self.others.get(name, name)
        if extension not in self.sides:
            return None
        data = self.sides[extension]
        try:
            return None if data is None else data.decode().strip()
        except UnicodeDecodeError:
            raise RecordError(Reason.BAD_METADATA) from None


def _json_keys(member: Member) -> Sequence[str]:
    """Keys of a json member; none of one that cannot be read, which is told when its record is read."""
    if not member.info.isreg() or member.info.size > MAX_SIDE_BYTES:
        return ()
    try:
        found = json.loads(tar.read_member(member.file, member.info))
    except Exception:  # a damaged archive raises anything at all
        return ()
    return tuple(found) if isinstance(found, dict) else ()


def _strip_dot_slash(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name


def _split_name(name: str) -> tuple[str, str]:
    """WebDataset's convention: ('a/b', 'seg.png') for 'a/b.seg.png'."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".") if not base.startswith(".") else base.rpartition(".")
    return f"{folder}{slash}{stem}", extension.lower()
