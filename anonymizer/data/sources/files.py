"""List and read files on any fsspec file system, without following links out of the source."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedReader
from typing import Any
from urllib.parse import quote

from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Reason
from anonymizer.storage import filesystem
from anonymizer.storage.address import parse_address

# Left behind by operating systems and tools. These, and files that begin with "._" (macOS), are never records; every
# other file is one, and fails if it is no image.
IGNORED_NAMES = frozenset(
    [".DS_Store", ".localized", "Thumbs.db", "ehthumbs.db", "desktop.ini", ".directory", ".gitkeep"]
)
IGNORED_FOLDERS = frozenset([".git", "__MACOSX", ".ipynb_checkpoints", "@eaDir", ".Trashes", ".Spotlight-V100"])
PAGE_KEYS = 1000  # keys in one page of an S3 listing
BLOCK_BYTES = 4 * 2**20  # read at once from a file on a store
OPEN_FILES = "/proc/self/fd"  # links to the files that a process has open, as Linux knows them
URL_SAFE = "%/:?&=+,;@~!$'()*[]"  # characters of a URL that stay as they are; others are percent-encoded
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
PARQUET_SUFFIXES = (".parquet", ".pq")
# Endings of files that may accompany tar and Parquet files without being data.
SIDE_SUFFIXES = (
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


@dataclass(frozen=True)
class SourceFile:
    """A file below a source; ``relative`` to the source, ``size`` in bytes where the listing knows it."""

    path: str
    relative: str
    size: int | None = None
    problem: Reason | None = None


@dataclass(frozen=True)
class Location:
    """An existing file or folder on one fsspec file system; ``uri`` as the user typed it."""

    uri: str
    fs: Any
    path: str
    is_file: bool

    @property
    def is_local(self) -> bool:
        return filesystem.is_local(self.fs)

    @property
    def root(self) -> str:
        """The folder that the source is, or that its file lies in; nothing outside of it is read."""
        if not self.is_file:
            return self.path.rstrip("/")
        path = self.path.partition("?")[0] if filesystem.is_web(self.fs) else self.path
        return path.rpartition("/")[0]

    @property
    def concurrent_reads(self) -> int:
        return 0 if self.is_local else 8

    def files(self) -> Iterator[SourceFile]:
        """Yield all files in a stable order: the file itself, or those below the folder."""
        with self._source_errors():
            if self.is_file:
                yield SourceFile(self.path, self.path.rstrip("/").rpartition("/")[2], self.fs.size(self.path))
            elif self.is_local:
                yield from _walk_local(self.path, self.uri)
            else:
                yield from (_walk_s3 if filesystem.is_s3(self.fs) else _walk_remote)(self.fs, self.path)

    def to_uri(self, path: str) -> str:
        """Return a URI that ``to_path`` maps back; an absolute path on a local disk."""
        return path if self.is_local else str(self.fs.unstrip_protocol(path))

    def to_path(self, uri: str) -> str:
        return uri if self.is_local else str(self.fs._strip_protocol(uri))

    def version(self, path: str) -> str:
        """Return a text that changes with the file: its size with its modification time or its store's version."""
        if self.is_local:
            info = os.stat(path)
            return f"{info.st_size} {info.st_mtime_ns}"
        remote = filesystem.with_retries(lambda: self.fs.info(path))
        return f"{remote.get('size')} {filesystem.version_of(remote)}"

    def open(self, path: str) -> Any:
        """Open a seekable binary file. SourceError if a store refuses it, RecordError if it lies outside the source."""
        self._check_inside(path)
        if self.is_local:
            return open_local(path, self._local_roots(path))
        with self._source_errors():
            return filesystem.with_retries(lambda: self.fs.open(path, "rb", block_size=BLOCK_BYTES))

    @contextmanager
    def _source_errors(self) -> Iterator[None]:
        """Raise errors of a store as SourceError, without what they say about an object."""
        try:
            yield
        except Exception as error:
            if self.is_local or not filesystem.is_storage_error(error):
                raise
            raise SourceError(f"source.uri {self.uri!r}: {filesystem.explain(error)}") from None

    def read(self, path: str, max_bytes: int, size: int | None = None) -> bytes:
        """Return all bytes of a file. RecordError if it is too large, or not of the ``size`` that was listed."""
        if size is not None and size > max_bytes:
            raise RecordError(Reason.TOO_MANY_BYTES)
        self._check_inside(path)
        if self.is_local:
            return read_local(path, self._local_roots(path), max_bytes, size)
        return read_remote(self.fs, path, max_bytes, size)

    def contains(self, path: str) -> bool:
        """Return whether a path is the source's own file or lies below its folder; on a disk links are followed."""
        if self.is_local:
            return any(is_inside(os.path.realpath(path), os.path.realpath(root)) for root in self._local_roots(path))
        if filesystem.is_web(self.fs):
            address, root = (parse_address(quote(url, safe=URL_SAFE)) for url in (path, self.root))
            return path == self.path or (address is not None and root is not None and address.is_inside(root))
        return path == self.path or path.startswith(f"{self.root}/")

    def _local_roots(self, path: str) -> list[str]:
        """Return the folder of the source; of the source's own file also where it leads to, if it is a link."""
        return [self.root or "/", *([path] if path == self.path else [])]

    def _check_inside(self, path: str) -> None:
        if not self.contains(path):
            raise RecordError(Reason.OUTSIDE_SOURCE)


def locate(uri: str, networks: Sequence[str] = ()) -> Location:
    """Return the location of a URI. SourceError if nothing is there or its file system cannot be used.

    ``networks``: addresses that names of web servers may lead to, besides public ones.
    """
    try:
        fs, path = filesystem.open_fs(uri, networks)
        return Location(uri, fs, path, is_file=_is_file(fs, path))
    except ImportError as error:
        reason = f"{error}, or name a local folder"
    except Exception as error:  # each file system has errors of its own
        if filesystem.is_refused_address(error):
            reason = filesystem.explain(error)
        elif filesystem.is_not_found(error):
            reason = "no such file or folder: check the path"
        elif filesystem.is_storage_error(error) and "://" in uri:
            reason = filesystem.explain(error)
        else:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            reason = f"cannot be opened ({text}): check the address and your access"
    raise SourceError(f"source.uri {uri!r}: {reason}")


def _is_file(fs: Any, path: str) -> bool:
    """Return whether it is a file rather than a folder. FileNotFoundError if neither; raises what a store raises."""
    if filesystem.is_local(fs):
        kind = "file" if fs.isfile(path) else "directory" if fs.isdir(path) else None
    else:  # isfile and isdir of a store return False where access was refused
        kind = filesystem.with_retries(lambda: fs.info(path))["type"]
    if kind not in ("file", "directory"):
        raise FileNotFoundError
    return kind == "file"


def is_ignored(name: str) -> bool:
    """Return whether a file is never a record."""
    return name in IGNORED_NAMES or name.startswith("._")


def is_side_file(name: str) -> bool:
    """Return whether a file among archives or tables holds no data."""
    return name.lower().endswith(SIDE_SUFFIXES)


def list_data_files(location: Location, suffixes: tuple[str, ...]) -> Iterator[SourceFile]:
    """Yield the file itself, or the files of a folder; side files are left out, other suffixes marked NOT_AN_IMAGE."""
    for file in location.files():
        if location.is_file or file.relative.lower().endswith(suffixes):
            yield file
        elif not is_side_file(file.relative):
            yield replace(file, problem=Reason.NOT_AN_IMAGE)


def _walk_local(root: str, uri: str) -> Iterator[SourceFile]:
    """Walk depth first, names sorted; follow links inside the root only, and none that leads in a circle."""
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
                if not is_inside(real, real_root):
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
    """Walk depth first, names sorted."""
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
            items = filesystem.with_retries(partial(fs.ls, path, detail=True))
            children = (child for child in items if str(child["name"]).rstrip("/") != path)  # not its own marker
            stack.append(iter(sorted(children, key=lambda child: str(child["name"]))))


def _walk_s3(fs: Any, root: str) -> Iterator[SourceFile]:
    """List keys in their own order, a page at a time, since they may not fit into memory."""
    bucket, prefix, _ = fs.split_path(root.rstrip("/"))
    request = {"Bucket": bucket, "Prefix": f"{prefix}/" if prefix else "", "MaxKeys": PAGE_KEYS}
    while True:
        page = filesystem.with_retries(partial(fs.call_s3, "list_objects_v2", **request))
        for item in page.get("Contents", ()):
            relative = str(item["Key"]).removeprefix(request["Prefix"])
            *folders, name = relative.split("/")
            if name and not is_ignored(name) and IGNORED_FOLDERS.isdisjoint(folders):
                yield SourceFile(f"{bucket}/{item['Key']}", relative, item["Size"])
        if not (token := page.get("NextContinuationToken")):
            return
        request["ContinuationToken"] = token


def is_inside(path: str, root: str) -> bool:
    """Return whether a real path is a real folder, or lies below it."""
    return path == root or path.startswith(root.rstrip("/") + "/")


def open_local(path: str, roots: Iterable[str]) -> BufferedReader:
    """Open a file on a disk. RecordError if it is no file, or, once it is open, lies below none of the roots.

    What was open is checked, not only its name: a file can be swapped for a link between a check and its use.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RecordError(Reason.UNREADABLE)
        link = f"{OPEN_FILES}/{descriptor}"
        real = os.readlink(link) if os.path.islink(link) else os.path.realpath(path)
        if not any(is_inside(real, os.path.realpath(root)) for root in roots):
            raise RecordError(Reason.OUTSIDE_SOURCE)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_local(path: str, roots: Iterable[str], max_bytes: int, size: int | None = None) -> bytes:
    """Return all bytes of a file on a disk. RecordError as ``open_local``, and if its size is wrong."""
    with open_local(path, roots) as file:
        info = os.fstat(file.fileno())
        if size is not None and info.st_size != size:
            raise RecordError(Reason.CHANGED)
        if info.st_size > max_bytes:
            raise RecordError(Reason.TOO_MANY_BYTES)
        data = file.read(info.st_size)
    if len(data) != info.st_size:
        raise RecordError(Reason.CHANGED)
    return data


def read_remote(fs: Any, path: str, max_bytes: int, size: int | None = None) -> bytes:
    """Return all bytes of a file on a store. RecordError as ``read_local``, and where its address is refused."""
    read = _read_stream if filesystem.is_web(fs) else _read_bounded
    try:
        data = filesystem.with_retries(lambda: read(fs, path, max_bytes, size))
    except Exception as error:  # each file system has errors of its own
        if filesystem.is_refused_address(error):
            raise RecordError(Reason.OUTSIDE_SOURCE) from None
        raise
    if size is not None and len(data) != size:
        raise RecordError(Reason.CHANGED)
    if len(data) > max_bytes:
        raise RecordError(Reason.TOO_MANY_BYTES)
    return data


def _read_bounded(fs: Any, path: str, max_bytes: int, size: int | None) -> bytes:
    """Return the file's bytes, or one byte more than ``size`` or ``max_bytes`` where it is larger."""
    if size is None:
        size = fs.info(path).get("size")
    if size is None:  # a server that does not tell: read no more than is allowed
        with fs.open(path, "rb") as file:
            return bytes(file.read(max_bytes + 1))
    if size > max_bytes:
        raise RecordError(Reason.TOO_MANY_BYTES)
    if size == 0:  # an empty range is an error to some stores
        return b"" if fs.size(path) == 0 else b"?"
    return bytes(fs.cat_file(path, end=size + 1))


def _read_stream(fs: Any, path: str, max_bytes: int, size: int | None) -> bytes:
    """Return a web server's answer, or one byte more than ``max_bytes`` where it is larger, whatever it announces."""
    data = bytearray()
    with fs.open(path, "rb", block_size=0, size=1) as file:  # a size, so that none is asked for
        while len(data) <= max_bytes and (block := file.read(min(2**20, max_bytes + 1 - len(data)))):
            data += block
    return bytes(data)


def to_printable(text: str, safe: str = "") -> str:
    """Return any path or URI as printable UTF-8: other bytes, control characters and '%' are percent-encoded.

    Two different texts stay different; with ``safe="%"`` texts of printable characters are returned unchanged.
    """
    return "".join(
        c if (c.isprintable() and c != "%") or c in safe else quote(c, safe="", errors="surrogateescape") for c in text
    )
