"""WebDataset tar archives (plain or gzip): members that share a name up to its first dot are one record.

A record is located by the offset of its first member.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby, islice
from typing import Any

from anonymizer.config import SourceConfig
from anonymizer.data.sources.building import (
    RecordIds,
    build_record,
    find_subject_problem,
    folder_values,
    parse_json_object,
    read_file,
    requested_columns,
    to_text,
)
from anonymizer.data.sources.column_policy import (
    ALL_OTHERS,
    DROPPED,
    FILE_ATTRIBUTES,
    PICTURE,
    ColumnPolicy,
    Field,
    configured_columns,
    describe_folder,
    refuse_unclassified,
)
from anonymizer.data.sources.files import TAR_SUFFIXES, Location, is_ignored, list_data_files, to_printable
from anonymizer.data.sources.tar import Archive, iter_members, member_problem, open_archive, read_member
from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Entry, Reason, Record

IMAGE_SUFFIXES = frozenset(
    ["jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "avif"]
)
MAX_SIDE_BYTES = 2**20  # of a label, caption or json member; a larger one fails its record
EXTENSION_ALIASES = {"label": "cls", "caption": "txt"}  # WebDataset's own names for them
FILES_OF_THEIR_OWN = frozenset(EXTENSION_ALIASES.values())  # a json without such a key is no reason to lack the file
PROBED_SAMPLES = 1000  # first samples whose extensions and json keys are read before any work begins
MEMBER_ATTRIBUTES = Field("owner, time and attributes", DROPPED, "each member")


@dataclass(frozen=True)
class Member:
    """One file in an archive: the open archive, its header, and its name split by WebDataset's convention."""

    file: Any
    info: tarfile.TarInfo
    name: str
    key: str
    extension: str

    @classmethod
    def of(cls, file: Any, info: tarfile.TarInfo) -> Member:
        """Return the member of a header."""
        name = info.name
        while name.startswith("./"):
            name = name[2:]
        return cls(file, info, name, *_split_name(name))

    def json_keys(self) -> Sequence[str]:
        """Return the keys of a json member; none if it cannot be read, since reading its record reports that."""
        if self.extension != "json" or not self.info.isreg() or self.info.size > MAX_SIDE_BYTES:
            return ()
        try:
            values = json.loads(read_member(self.file, self.info))
        except Exception:  # a damaged archive raises anything at all
            return ()
        return tuple(values) if isinstance(values, dict) else ()


class KeyRuns:
    """Notices that the files of one key do not stand together in an archive, as WebDataset asks."""

    def __init__(self, archive: str) -> None:
        self.archive = archive
        self._has_image: dict[str, bool] = {}
        self._last: str | None = None
        self._interrupted: str | None = None

    def interrupt(self) -> None:
        """Note a damaged stretch, behind which the key before it may go on."""
        self._interrupted = self._last

    def add(self, key: str, has_image: bool) -> None:
        """Note files of a key. SourceError if others of it stand elsewhere; a second image is a duplicate instead."""
        if self._has_image.get(key, has_image) != has_image and key != self._interrupted:
            raise SourceError(
                f"source.uri: {self.archive!r}: files of one sample stand apart, so that labels and people would be "
                "lost: write it anew, sorted by name (tar --sort=name -cf)"
            )
        self._has_image.setdefault(key, has_image)
        self._last, self._interrupted = key, None


class WebDatasetSource:
    """Files below a folder that end in .tar, .tar.gz or .tgz, or one archive; a record's id is archive and key.

    Without ``source.image`` the first image of a key is its image, and each further one a record with the problem
    DUPLICATE_ID; ``source.image: seg.png`` selects one by its extension and leaves out the others.

    Columns are the extensions of members that are no images, and the keys of json members.
    """

    def __init__(self, config: SourceConfig, location: Location) -> None:
        for name in ("id", "where"):
            if getattr(config, name):
                raise SourceError(f"source.{name}: works with Parquet and listings, not with tar: leave it out")
        self.config, self.location = config, location
        self.image_extension = None if config.image == "image" else config.image.lower()
        # "folder" is no column here: the label or subject is already in the entry.
        folders = {name: None for name in ("label", "subject") if getattr(config, name) == "folder"}
        self.columns = config.model_copy(update=folders)
        named = [(name, column) for name, column in configured_columns(self.columns) if name != "image"]
        for name, column in named:
            if column == "json" and name != "drop":
                raise SourceError(f"source.{name}: 'json' is a whole member: name the keys in it that are meant")
        # A member that is dropped or restricted by its own name is not an alias of label or caption.
        hidden = (*config.drop, *config.restricted)
        self.aliases = {name: alias for name, alias in EXTENSION_ALIASES.items() if alias not in hidden}
        aliases = [(name, self.aliases[column]) for name, column in named if column in self.aliases]
        image = [("image", self.image_extension)] if self.image_extension else []
        drops_rest = ALL_OTHERS in config.drop
        self.member_policy = ColumnPolicy([*named, *aliases, *image, ("drop", "json"), ("drop", "")], drops_rest)
        self.key_policy = ColumnPolicy(named, drops_rest or "json" in config.drop)
        subject = [self.columns.subject] if self.columns.subject else []
        self.side_columns = [*requested_columns(self.columns), *subject]  # of which each record must have a member

    def entries(self) -> Iterator[Entry]:
        if ALL_OTHERS not in self.config.drop:
            self._refuse_unclassified(*self._probe_columns())
        ids = RecordIds()
        held: list[Entry] = []  # problems, until one archive has proved to be one
        unclassified = dict[str, None]()
        is_archive = False
        for file in list_data_files(self.location, TAR_SUFFIXES):
            uri, name = self.location.to_uri(file.path), to_printable(file.relative)
            runs = KeyRuns(name)
            for sample in self._samples(file.path) if file.problem is None else [file.problem]:
                if isinstance(sample, Reason):
                    record_id = f"{name}/(damaged)" if file.problem is None else name
                    held.append(Entry(ids.claim(record_id)[0], uri, problem=sample))
                    runs.interrupt()
                else:
                    is_archive = True
                if is_archive:
                    yield from held
                    held.clear()
                if not isinstance(sample, Reason):
                    yield from self._entries(sample, uri, ids, runs, unclassified)
        refuse_unclassified(unclassified)
        if not is_archive:
            raise SourceError(
                f"source.uri {self.location.uri!r}: no readable tar archive with members in it: check it with tar -t"
            )

    def _entries(
        self, sample: Iterator[Member], uri: str, ids: RecordIds, runs: KeyRuns, unclassified: dict[str, None]
    ) -> Iterator[Entry]:
        """Yield an entry for each image of a key; add the extensions without a setting to ``unclassified``."""
        first = next(sample)
        images: list[tuple[str, int | None, Reason | None]] = []
        for member in chain([first], sample):  # not stored: there may be any number of them
            if self._is_image(member.extension):
                images.append((member.name, member.info.size, member_problem(member.info)))
            elif self._is_column(member.extension):
                unclassified.update(dict.fromkeys(self.member_policy.find_unclassified([member.extension])))
        runs.add(first.key, bool(images))
        label, subject = folder_values(self.config, first.key)
        no_subject = find_subject_problem(self.config, subject) if self.config.subject == "folder" else None
        key = to_printable(first.key)
        for name, size, problem in images or [(key, None, Reason.NOT_AN_IMAGE)]:
            record_id, duplicate = ids.claim(f"{runs.archive}/{key}")
            problem = problem or duplicate or no_subject
            yield Entry(record_id, uri, name, first.info.offset, size, label, problem, subject=subject)

    def fields(self) -> list[Field]:
        extensions, keys = self._probe_columns()
        self._refuse_unclassified(extensions, keys)
        location = f"members of the first {PROBED_SAMPLES} keys"
        images = [name for name in extensions if not self._is_column(name)]
        columns = [name for name in extensions if self._is_column(name) and name != "json"]
        return [
            FILE_ATTRIBUTES,
            MEMBER_ATTRIBUTES,
            *describe_folder(self.config, "each key"),
            *(Field.for_column(name, PICTURE if self._is_image(name) else DROPPED, location) for name in images),
            *self.member_policy.describe(columns, location),
            *self.key_policy.describe(keys, f"json {location}"),
        ]

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        for uri, group in groupby(entries, key=lambda entry: entry.uri):
            path = self.location.to_path(uri)
            yield from read_file(list(group), partial(open_archive, self.location, path), self._read)

    def _read(self, file: Any, entry: Entry) -> Record:
        """Read the members of one key from its first one on, as far as they are needed."""
        if entry.size is not None and entry.size > self.config.limits.max_bytes:
            raise RecordError(Reason.TOO_MANY_BYTES)
        data: bytes | None = None
        sides: dict[str, bytes | None] = {}
        for member in self._members(file, entry):
            info, extension = member.info, member.extension
            if member.name == entry.member and data is None:
                if not info.isreg() or info.size != entry.size:
                    raise RecordError(Reason.CHANGED)
                data = read_member(file, info)
            elif self._is_column(extension):
                if self.member_policy.treatment(extension) is None:
                    raise RecordError(Reason.UNCLASSIFIED)
                if self.side_columns or (extension == "json" and not self.key_policy.drops_rest):
                    is_readable = info.isreg() and info.size <= MAX_SIDE_BYTES and extension not in sides
                    sides[extension] = read_member(file, info) if is_readable else None
            if data is not None and not self.side_columns and self.key_policy.drops_rest:
                break
        if data is None:
            raise RecordError(Reason.CHANGED)
        values = _Values(sides, self.aliases)
        if self.key_policy.find_unclassified(values.json):
            raise RecordError(Reason.UNCLASSIFIED)
        return self._build(entry, data, values)

    def _build(self, entry: Entry, data: bytes, values: _Values) -> Record:
        record = build_record(self.columns, entry, data, values.get)
        if self.columns.subject:
            record = replace(record, subject=to_text(values.get(self.columns.subject)))
            if problem := find_subject_problem(self.config, record.subject):
                raise RecordError(problem)
        if not all(map(values.has_member, self.side_columns)):
            raise RecordError(Reason.BAD_METADATA)
        return record

    def _members(self, file: Any, entry: Entry) -> Iterator[Member]:
        """Yield the members of an entry's key.

        RecordError TRUNCATED, where columns are asked for, if some may be lost: behind damage, or behind an end mark.
        """
        key, end = _split_name(entry.member or "")[0], entry.offset or 0
        file.seek(end)
        archive = Archive(file)
        for info in archive:
            if _is_skipped(info):
                end = archive.offset
                continue
            member = Member.of(file, info)
            if member.key != key:
                return
            end = archive.offset
            yield member
        following = next(iter_members(file, end), None) if self.side_columns else None
        if isinstance(following, Reason) or (following and Member.of(file, following).key == key):
            raise RecordError(Reason.TRUNCATED)

    def _samples(self, path: str) -> Iterator[Iterator[Member] | Reason]:
        """Yield the members of each key of one archive in order, and a reason for each stretch that is damaged."""
        for key, members in groupby(self._walk(path), lambda m: None if isinstance(m, Reason) else m.key):
            if key is None:
                yield from (member for member in members if isinstance(member, Reason))
            else:
                yield (member for member in members if isinstance(member, Member))

    def _probe_columns(self) -> tuple[dict[str, None], dict[str, None]]:
        """Return the extensions of the members of the first samples, and the keys of their json members."""
        extensions, keys = dict[str, None](), dict[str, None]()
        files = (file for file in list_data_files(self.location, TAR_SUFFIXES) if file.problem is None)
        samples = (sample for file in files for sample in self._samples(file.path) if not isinstance(sample, Reason))
        for sample in islice(samples, PROBED_SAMPLES):
            for member in sample:  # one at a time, while its archive is open
                extensions[member.extension] = None
                keys.update(dict.fromkeys(member.json_keys()))
        return extensions, keys

    def _refuse_unclassified(self, extensions: Iterable[str], keys: Iterable[str]) -> None:
        columns = filter(self._is_column, extensions)
        refuse_unclassified(self.member_policy.find_unclassified(columns) + self.key_policy.find_unclassified(keys))

    def _walk(self, path: str) -> Iterator[Member | Reason]:
        """Yield the files of one archive and the reasons of its damage; UNREADABLE if it cannot be opened."""
        with ExitStack() as stack:
            try:
                file = open_archive(self.location, path, stack)
            except Exception:  # storage libraries raise errors of their own
                yield Reason.UNREADABLE
                return
            for member in iter_members(file):
                if isinstance(member, Reason):
                    yield member
                    continue
                if not _is_skipped(member):
                    yield Member.of(file, member)

    def _is_image(self, extension: str) -> bool:
        if self.image_extension:
            return extension == self.image_extension
        return extension.rpartition(".")[2] in IMAGE_SUFFIXES and extension not in self.config.drop

    def _is_column(self, extension: str) -> bool:
        """Return whether it is no image, neither the selected one nor one that is left out."""
        return extension != self.image_extension and extension.rpartition(".")[2] not in IMAGE_SUFFIXES


class _Values:
    """Values of a record by name: a key of its json member, else the member of that extension or of its alias."""

    def __init__(self, sides: Mapping[str, bytes | None], aliases: Mapping[str, str]) -> None:
        self.sides, self.aliases = sides, aliases
        self.json: dict[str, object] = {}
        if "json" in sides:
            try:
                self.json = parse_json_object(sides["json"] or b"")
            except ValueError:
                raise RecordError(Reason.BAD_METADATA) from None

    def get(self, name: str) -> object:
        """Return the value, None if there is none. RecordError BAD_METADATA if it is not valid text."""
        if name in self.json:
            return self.json[name]
        member = self._member(name)
        if member not in self.sides:
            return None
        data = self.sides[member]
        try:
            if data is not None:
                return data.decode().strip()
        except UnicodeDecodeError:
            pass
        raise RecordError(Reason.BAD_METADATA)

    def has_member(self, name: str) -> bool:
        """Return whether there is a member that may hold a value: its own, or the json, whose keys may be left out."""
        member = self._member(name)
        return name in self.json or member in self.sides or ("json" in self.sides and member not in FILES_OF_THEIR_OWN)

    def _member(self, name: str) -> str:
        return name if name in self.sides else self.aliases.get(name, name)


def _is_skipped(info: tarfile.TarInfo) -> bool:
    """Return whether a member is a folder, or a file that tools leave behind; it parts no record in two."""
    return info.isdir() or is_ignored(info.name.rpartition("/")[2])


def _split_name(name: str) -> tuple[str, str]:
    """Return WebDataset's key and extension: ('a/b', 'seg.png') for 'a/b.seg.png'."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".") if not base.startswith(".") else base.rpartition(".")
    return f"{folder}{slash}{stem}", extension.lower()
