"""Finding and reading files on any fsspec file system, without following links out of the source."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Entry, Reason, Record
from anonymizer.storage import filesystem

# What operating systems and tools leave behind. These, and files that begin with "._" (macOS), are never records; every
# other file is one, and one that is no picture ends as a failed row.
IGNORED_NAMES = frozenset(
    {".DS_Store", ".localized", "Thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", ".gitkeep"}
)
PAGE_KEYS = 1000  # keys of a store that are listed at once
BLOCK_BYTES = 4 * 2**20  # bytes that are fetched from a store at once, where a file is read piece by piece
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
PARQUET_SUFFIXES = (".parquet", ".pq")
# What may stand beside tar and Parquet files without being data: how a name may end.
SIDE_FILE_SUFFIXES = (
    ".md",
    ".txt",
    ".json",
    ".yaml",
    ".yml",
    ".gitattributes",
    ".gitignore",
    ".crc",
    "_success",
    "_metadata",
)
IGNORED_FOLDERS = frozenset({".git", "__MACOSX", ".ipynb_checkpoints", "@eaDir", ".Trashes", ".Spotlight-V100"})


@dataclass(frozen=True)
class SourceFile:
    """A file below a source: where it is, its path relative to the source, its size where the listing knows it."""

    path: str
    relative: str
    size: int | None = None
    problem: Reason | None = None


@dataclass(frozen=True)
class Location:
    """An existing file or folder on one fsspec file system; ``uri`` is what the user typed."""

    uri: str
    fs: Any
    path: str
    is_file: bool

    @property
    def is_local(self) -> bool:
        return filesystem.is_local(self.fs)

    @property
    def concurrent_reads(self) -> int:
        """How many files to read at a time."""
        return 0 if self.is_local else 8

    def files(self) -> Iterator[SourceFile]:
        """All files, in a stable order: the file itself, or what lies below the folder."""
        with self._source_errors():
            if self.is_file:
                yield SourceFile(self.path, self.path.rstrip("/").rpartition("/")[2], self.fs.size(self.path))
            else:
                walk = _walk_s3 if filesystem.is_s3(self.fs) else _walk_remote
                yield from _walk_local(self.path, self.uri) if self.is_local else walk(self.fs, self.path)

    def to_uri(self, path: str) -> str:
        """A name for the path that ``to_path`` undoes; an absolute path on a local disk."""
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    def to_path(self, uri: str) -> str:
        return uri if self.is_local else str(self.fs._strip_protocol(uri))

    def version(self, path: str) -> str:
        """What changes when the file does: its size, and when it was written or what its store knows it by."""
        if self.is_local:
            info = os.stat(path)
            return f"{info.st_size} {info.st_mtime_ns}"
        known = filesystem.with_retries(lambda: self.fs.info(path))
        return f"{known.get('size')} {filesystem.version_of(known)}"

    def open(self, path: str) -> Any:
        """The file, opened for reading bytes; may seek. SourceError if a store refuses it."""
        if self.is_local:
            return open(path, "rb")
        with self._source_errors():
            return filesystem.with_retries(lambda: self.fs.open(path, "rb", block_size=BLOCK_BYTES))

    @contextmanager
    def _source_errors(self) -> Iterator[None]:
        """What a store says of itself, as a SourceError; nothing of what it says of an object."""
        try:
            yield
        except Exception as error:
            if self.is_local or not filesystem.is_storage_error(error):
                raise
            raise SourceError(f"source.uri {self.uri!r}: {filesystem.explain(error)}") from None

    def read(self, path: str, max_bytes: int, size: int | None = None) -> bytes:
        """All bytes of a file; RecordError when it is larger than ``most``, or not ``size`` bytes as it was listed."""
        if size is not None and size > max_bytes:
            raise RecordError(Reason.TOO_MANY_BYTES)
        if self.is_local:
            root = os.path.dirname(self.path) if self.is_file else self.path
            return _read_local(path, max_bytes, size, os.path.realpath(root))
        return _read_remote(self.fs, path, max_bytes, size)


def locate(uri: str) -> Location:
    """What a URI names; SourceError if nothing is there or its file system cannot be used."""
    try:
        fs, path = filesystem.open_fs(uri)
        return Location(uri, fs, path, is_file=_is_file(fs, path))
    except ImportError as error:
        raise SourceError(f"source.uri {uri!r}: {error}, or name a local folder") from None
    except FileNotFoundError as error:
        what = "no such file or folder: check the path" if filesystem.is_not_found(error) else filesystem.explain(error)
        raise SourceError(f"source.uri {uri!r}: {what}") from None
    except Exception as error:  # each file system has errors of its own
        if filesystem.is_storage_error(error) and "://" in uri:
            raise SourceError(f"source.uri {uri!r}: {filesystem.explain(error)}") from None
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"source.uri {uri!r}: cannot be opened ({text}): check the address and your access") from None


def _is_file(fs: Any, path: str) -> bool:
    """Whether it is a file or a folder. FileNotFoundError if neither; raises what a store says if it cannot tell."""
    if filesystem.is_local(fs):
        kind = "file" if fs.isfile(path) else "directory" if fs.isdir(path) else None
    else:  # whose isfile and isdir say no where they were refused
        kind = filesystem.with_retries(lambda: fs.info(path))["type"]
    if kind not in ("file", "directory"):
        raise FileNotFoundError
    return kind == "file"


def is_ignored(name: str) -> bool:
    return name in IGNORED_NAMES or name.startswith("._")


def is_side_file(name: str) -> bool:
    return name.lower().endswith(SIDE_FILE_SUFFIXES)


def list_data_files(location: Location, suffixes: tuple[str, ...]) -> Iterator[SourceFile]:
    """The file itself, or the files of a folder that end so; any other, side files apart, is marked NOT_AN_IMAGE."""
    for file in location.files():
        if location.is_file or file.relative.lower().endswith(suffixes):
            yield file
        elif not is_side_file(file.relative):
            yield replace(file, problem=Reason.NOT_AN_IMAGE)


def _walk_local(root: str, uri: str) -> Iterator[SourceFile]:
    """Depth first, names sorted. Links are followed inside the root only; a link that leads in a circle is left out."""
    real_root = os.path.realpath(root)
    try:
        stack = [(root, "", real_root, iter(sorted(os.listdir(root))))]
    except OSError as error:
        raise SourceError(f"source.uri {uri!r}: cannot be listed ({error.strerror}): check its permissions") from None
    while stack:
        folder, prefix, real_folder, names = stack[-1]
        name = next(names, None)
        if name is None:
            stack.pop()
            continue
        path, relative, real = os.path.join(folder, name), prefix + name, os.path.join(real_folder, name)
        if is_ignored(name):
            continue
        try:
            if os.path.islink(path):
                real = os.path.realpath(path)
                if not _is_inside(real, real_root):
                    yield SourceFile(path, relative, problem=Reason.OUTSIDE_SOURCE)
                    continue
            info = os.stat(path)
            if stat.S_ISDIR(info.st_mode):
                if name not in IGNORED_FOLDERS and all(real != open_folder[2] for open_folder in stack):
                    stack.append((path, relative + "/", real, iter(sorted(os.listdir(path)))))
            elif stat.S_ISREG(info.st_mode):
                yield SourceFile(path, relative, info.st_size)
            else:  # a pipe, a socket, a device: never opened
                yield SourceFile(path, relative, problem=Reason.UNREADABLE)
        except OSError:
            yield SourceFile(path, relative, problem=Reason.UNREADABLE)


def _walk_remote(fs: Any, root: str) -> Iterator[SourceFile]:
    base = root.rstrip("/")
    stack: list[Iterator[dict[str, Any]]] = [iter([{"name": root, "type": "directory"}])]
    while stack:
        item = next(stack[-1], None)
        if item is None:
            stack.pop()
            continue
        path = str(item["name"]).rstrip("/")
        name = path.rpartition("/")[2]
        if item["type"] != "directory":
            if not is_ignored(name):
                yield SourceFile(path, path.removeprefix(base).lstrip("/"), item.get("size"))
        elif name not in IGNORED_FOLDERS:
            found = filesystem.with_retries(partial(fs.ls, path, detail=True))
            inside = (i for i in found if str(i["name"]).rstrip("/") != path)  # not its own marker
            stack.append(iter(sorted(inside, key=lambda i: str(i["name"]))))


def _walk_s3(fs: Any, root: str) -> Iterator[SourceFile]:
    """Keys in their own order, a page at a time: there may be more than fit into memory."""
    bucket, prefix, _ = fs.split_path(root.rstrip("/"))
    prefix = f"{prefix}/" if prefix else ""
    page: dict[str, Any] = {"NextContinuationToken": None}
    while "NextContinuationToken" in page:
        token = page["NextContinuationToken"]
        asked = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS} | (
            {"ContinuationToken": token} if token else {}
        )
        page = filesystem.with_retries(partial(fs.call_s3, "list_objects_v2", **asked))
        for item in page.get("Contents", ()):
            relative = str(item["Key"]).removeprefix(prefix)
            *folders, name = relative.split("/")
            if name and not is_ignored(name) and IGNORED_FOLDERS.isdisjoint(folders):
                yield SourceFile(f"{bucket}/{item['Key']}", relative, item["Size"])


def read_uri(uri: str, max_bytes: int) -> bytes:
    """All bytes of the file that a URI or an absolute path names; RecordError as ``Location.read``."""
    fs, path = filesystem.open_fs(uri)
    return (
        _read_local(path, max_bytes, None, "/") if filesystem.is_local(fs) else _read_remote(fs, path, max_bytes, None)
    )


def _is_inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _read_local(path: str, max_bytes: int, size: int | None, root: str) -> bytes:
    if not _is_inside(os.path.realpath(path), root):
        raise RecordError(Reason.OUTSIDE_SOURCE)
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise RecordError(Reason.UNREADABLE)
        if size is not None and info.st_size != size:
            raise RecordError(Reason.CHANGED)
        if info.st_size > max_bytes:
            raise RecordError(Reason.TOO_MANY_BYTES)
        data = file.read(info.st_size)
    if len(data) != info.st_size:
        raise RecordError(Reason.CHANGED)
    return data


def _read_remote(fs: Any, path: str, max_bytes: int, size: int | None) -> bytes:
    return filesystem.with_retries(lambda: _read_once(fs, path, max_bytes, size))


def _read_once(fs: Any, path: str, max_bytes: int, size: int | None) -> bytes:
    planned = size
    if size is None:
        size = fs.info(path).get("size")
    if size is None:  # a server that does not say: read no more than is allowed
        with fs.open(path, "rb") as file:
            data = bytes(file.read(max_bytes + 1))
    elif size > max_bytes:
        raise RecordError(Reason.TOO_MANY_BYTES)
    elif size == 0:  # a range of nothing is an error to some stores
        data = b"" if fs.size(path) == 0 else b"?"
    else:
        data = bytes(fs.cat_file(path, end=size + 1))
    if planned is not None and len(data) != planned:
        raise RecordError(Reason.CHANGED)
    if len(data) > max_bytes:
        raise RecordError(Reason.TOO_MANY_BYTES)
    return data


def read_each(entries: Iterable[Entry], read: Callable[[Entry], Record], concurrency: int = 0) -> Iterator[Record]:
    """``read`` of each entry, in order; what it raises becomes the record's problem.

    With ``ahead``, as many are read at a time in threads, which hides the latency of a store far away.
    """
    if concurrency == 0:
        yield from (_read_or_fail(entry, read) for entry in entries)
        return
    with ThreadPoolExecutor(concurrency, "reader") as pool:
        waiting: deque[Future[Record]] = deque()
        try:
            for entry in entries:
                waiting.append(pool.submit(_read_or_fail, entry, read))
                if len(waiting) > concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def failed_record(entry: Entry, problem: Reason | None = None) -> Record:
    """The record of an entry that cannot be used: for the reason known at planning, or else for this one."""
    return Record(entry, label=entry.label, subject=entry.subject, problem=entry.problem or problem)


def _read_or_fail(entry: Entry, read: Callable[[Entry], Record]) -> Record:
    if entry.problem is not None:
        return failed_record(entry)
    try:
        return read(entry)
    except RecordError as error:
        return failed_record(entry, error.reason)
    except Exception:  # storage libraries raise errors of their own; one record that cannot be had is a row
        return failed_record(entry, Reason.UNREADABLE)


class RecordIds:
    """Gives each record an id of its own; a second claim to the same id gets '%#2' behind it, and a problem.

    ``printable`` never leaves a '%#' in a text, so the id that a duplicate gets is one that no record can have.
    """

    def __init__(self) -> None:
        self._claims: dict[str, int] = {}

    def claim(self, record_id: str) -> tuple[str, Reason | None]:
        count = self._claims[record_id] = self._claims.get(record_id, 0) + 1
        return (record_id, None) if count == 1 else (f"{record_id}%#{count}", Reason.DUPLICATE_ID)

    def __len__(self) -> int:
        return len(self._claims)


def to_printable(text: str, safe: str = "") -> str:
    """Valid, visible UTF-8 for any path or URI: other bytes, control characters and '%' are percent-encoded.

    Two different texts stay different; with ``keep="%"`` texts without odd characters also stay as they are.
    """
    return "".join(c if (c.isprintable() and c != "%") or c in safe else _percent_encode(c) for c in text)


def _percent_encode(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogateescape"))
