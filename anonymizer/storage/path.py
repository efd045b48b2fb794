"""A file, folder or prefix on any fsspec file system, with atomic and conditional writes."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from anonymizer.errors import OutputError
from anonymizer.storage import filesystem

T = TypeVar("T")

NO_LINKS = getattr(os, "O_NOFOLLOW", 0)  # to files elsewhere, which would be written


@contextlib.contextmanager
def translate_storage_errors(fs: Any = None) -> Iterator[None]:
    """Raise errors of the storage as OutputErrors that name no file, since file names hold ids."""
    try:
        yield
    except Exception as error:
        if not filesystem.is_storage_error(error):
            raise
        if fs is None or filesystem.is_local(fs):
            reason = getattr(error, "strerror", None) or type(error).__name__
            problem = f"cannot be written ({reason}): check space and access, then run the same command again"
        else:
            problem = f"cannot be written: {filesystem.explain(error)}"
        raise OutputError(f"output.uri: {problem}") from None


@dataclass(frozen=True)
class StoragePath:
    """One path on one fsspec file system.

    Files and folders that are created on a disk at or below ``private_root`` are for their owner only (0600, 0700),
    whatever the umask. Writes raise OutputError. Questions to a store (not to a disk) raise OutputError as well.
    """

    fs: Any
    path: str
    private_root: str | None = None

    @classmethod
    def from_uri(cls, uri: str) -> StoragePath:
        """Return the path of a URI or of a local path. OutputError if its file system cannot be opened."""
        try:
            fs, path = filesystem.open_fs(str(uri))
        except ImportError as error:
            raise OutputError(f"uri {str(uri)!r}: {error}, or name a folder") from None
        except (ValueError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OutputError(
                f"uri {str(uri)!r}: cannot be opened ({reason}): check the address, or name a folder"
            ) from None
        return cls(fs, path.rstrip("/") or "/")

    def __truediv__(self, name: str) -> StoragePath:
        return replace(self, path=f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.path if self.is_local else str(self.fs.unstrip_protocol(self.path))

    def as_private(self) -> StoragePath:
        """Return the same path as a private root, unless it already lies below one."""
        return replace(self, private_root=self.private_root or self.path)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        return filesystem.is_local(self.fs)

    @property
    def is_bucket(self) -> bool:
        """Whether this is a whole bucket, with nothing above it."""
        return filesystem.has_buckets(self.fs) and "/" not in self.path

    @property
    def store_uri(self) -> str:
        """The store without the path in it: ``s3://bucket``."""
        protocol = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        return f"{protocol}://{self.path.lstrip('/').partition('/')[0]}"

    def is_inside(self, outer: StoragePath) -> bool:
        """Return whether this is ``outer`` or lies below it; on a disk links are followed."""
        if type(self.fs) is not type(outer.fs):
            return False
        if not outer.is_local:
            return f"{self.path}/".startswith(f"{outer.path.rstrip('/')}/")
        real = Path(os.path.realpath(self.path))
        return any(_is_same_file(folder, Path(outer.path)) for folder in (real, *real.parents))

    # Reading

    def exists(self) -> bool:
        return bool(self._request(lambda: self.fs.exists(self.path)))

    def read(self) -> bytes:
        """Return all bytes. FileNotFoundError if there are none; other OSErrors on a disk only."""
        data: bytes = self._request(lambda: self.fs.cat_file(self.path))
        return data

    def read_with_version(self) -> tuple[bytes, str | None]:
        """Return all bytes and the version that ``compare_and_swap`` expects; no bytes and None without a file."""
        try:  # the version first, lest it be newer than the bytes
            version = filesystem.version_of(self._request(lambda: self.fs.info(self.path)))
            return self.read(), version
        except FileNotFoundError:
            return b"", None

    def children(self) -> Iterator[StoragePath]:
        """Yield what lies directly inside, sorted by name; nothing if the folder does not exist."""
        if self.exists():
            for path in sorted(path.rstrip("/") for path in self._request(lambda: self.fs.ls(self.path, detail=False))):
                if path != self.path:  # a store may hold an object that stands for the folder
                    yield replace(self, path=path)

    def list_files(self) -> list[str]:
        """Return the paths of all files below, relative to this folder, sorted."""
        paths = self._request(lambda: self.fs.find(self.path))
        return sorted(path.removeprefix(self.path).lstrip("/") for path in paths)

    # Writing

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link on a disk, wherever that leads."""
        return self.is_local and os.path.islink(self.path)

    def write(self, data: bytes) -> None:
        """Write a file atomically: by a rename on a disk; a store's put is atomic by itself."""
        with translate_storage_errors(self.fs):
            if self.is_local:
                with self._temporary_file(data) as temporary:
                    temporary.replace(self.path)
            else:
                filesystem.with_retries(lambda: self.fs.pipe_file(self.path, data))

    def write_uncommitted(self, data: bytes) -> None:
        """Write a file that a later write commits; cheaper than ``write`` and not atomic on a disk."""
        with translate_storage_errors(self.fs):
            if self.is_local:
                self._make_folder(Path(self.path).parent)
                with open(self._open_descriptor(self.path), "wb") as file:
                    file.truncate()
                    file.write(data)
            else:
                filesystem.with_retries(lambda: self.fs.pipe_file(self.path, data))

    def create(self, data: bytes) -> bool:
        """Write a new file atomically; return False and change nothing if it exists.

        Of several concurrent calls one succeeds, on disks with hard links and on stores with conditional puts. On
        disks without them, and on servers that ignore conditions, an existing file is looked for first.
        """
        with translate_storage_errors(self.fs):
            try:
                if self.is_local:
                    with self._temporary_file(data) as temporary:
                        _link(temporary, Path(self.path))
                    return True
            except FileExistsError:
                return False
            return not self.fs.exists(self.path) and self._put_if(data, {"mode": "create"})

    def compare_and_swap(self, data: bytes, version: str | None) -> bool:
        """Write a file if it still has the version that was read; return False and change nothing if not.

        For stores: by S3's If-Match. On servers that ignore it, and elsewhere, the version is compared first.
        """
        if version is None:
            return self.create(data)
        with translate_storage_errors(self.fs):
            try:
                current = filesystem.version_of(filesystem.with_retries(lambda: self.fs.info(self.path)))
            except FileNotFoundError:
                return False
            if current != version:
                return False
            # In one part, whatever its size: a multipart upload has no condition.
            condition = {"IfMatch": version, "chunksize": max(len(data), 2**26)}
            return self._put_if(data, condition if filesystem.is_s3(self.fs) else {})

    def has_conditional_writes(self) -> bool:
        """Return whether the store refuses to create this file, which must exist."""
        with translate_storage_errors(self.fs):
            try:
                self.fs.pipe_file(self.path, b"", mode="create")
            except Exception as error:
                if not filesystem.is_precondition_failed(error):
                    raise
                return True
        return False

    def make_private_folder(self) -> None:
        """Create a folder on a disk for its owner only; an existing one keeps its mode."""
        if self.is_local and not self.exists():
            with translate_storage_errors():
                self.as_private()._make_folder(Path(self.path))

    def remove(self) -> None:
        """Delete a file, or a folder and all below it. OutputError if something is left."""
        for _ in range(filesystem.MAX_ATTEMPTS):
            if not self.exists():
                return
            with translate_storage_errors(self.fs), contextlib.suppress(FileNotFoundError):  # deleted concurrently
                filesystem.with_retries(lambda: self.fs.rm(self.path, recursive=True))
            if self.is_local:
                return
        if self.exists():  # a store's answer to a bulk deletion is a success even if single objects were refused
            raise OutputError(
                f"{self.store_uri}: something could not be deleted: check that the credentials may delete"
            )

    def move_to(self, target: StoragePath, last: str) -> None:
        """Rename a folder on a disk; elsewhere copy each file, the one named ``last`` at the end, and delete."""
        with translate_storage_errors(self.fs):
            if self.is_local:
                self._make_folder(Path(target.path).parent)
                Path(self.path).rename(target.path)
                return

            def copy(name: str) -> None:
                filesystem.with_retries(lambda: self.fs.cp_file(f"{self.path}/{name}", f"{target.path}/{name}"))

            names = self.list_files()
            for folder in {f"{target.path}/{name}".rpartition("/")[0] for name in names}:
                self.fs.makedirs(folder, exist_ok=True)
            with ThreadPoolExecutor(filesystem.MAX_PARALLEL_REQUESTS, "copier") as pool:
                list(pool.map(copy, (name for name in names if name != last)))
            if last in names:
                copy(last)
        self.remove()

    def _put_if(self, data: bytes, condition: Mapping[str, Any]) -> bool:
        """Put under a condition, if the store supports it. A response may get lost, hence the look at the content."""
        try:
            filesystem.with_retries(lambda: self.fs.pipe_file(self.path, data, **condition))
        except (TypeError, NotImplementedError):
            self.fs.pipe_file(self.path, data)
        except Exception as error:
            if not filesystem.is_precondition_failed(error):
                raise
            return bool(self.fs.cat_file(self.path) == data)
        return True

    def _request(self, work: Callable[[], T]) -> T:
        """Return ``work()``; a store that does not answer is an OutputError that names the store only."""
        if self.is_local:
            return work()
        try:
            return filesystem.with_retries(work)
        except Exception as error:
            if filesystem.is_not_found(error) or not filesystem.is_storage_error(error):
                raise
            raise OutputError(f"{self.store_uri}: {filesystem.explain(error)}") from None

    @contextlib.contextmanager
    def _temporary_file(self, data: bytes) -> Iterator[Path]:
        """Write and sync a file beside this one, which is deleted afterwards unless it was renamed."""
        target = Path(self.path)
        self._make_folder(target.parent)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(self._open_descriptor(str(temporary)), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _open_descriptor(self, path: str) -> int:
        """Open a file for writing, and create it if it is missing; a link to another file is an OSError."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | NO_LINKS, 0o600 if self.private_root else 0o666)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder and those above it, each with its own mode."""
        is_private = self.private_root is not None and folder.is_relative_to(self.private_root)
        try:
            folder.mkdir(0o700 if is_private else 0o777, exist_ok=True)
        except FileNotFoundError:
            self._make_folder(folder.parent)
            self._make_folder(folder)


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one of them does not exist yet
        return str(path) == os.path.realpath(other)


def _link(source: Path, target: Path) -> None:
    """Create a hard link, which fails if the target exists; on a disk without hard links, look and rename."""
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:
        if target.exists():
            raise FileExistsError from None
        source.replace(target)


def absolute_uri(uri: str) -> str:
    """Return an address that does not depend on the working directory."""
    path = StoragePath.from_uri(uri)
    return path.path if path.is_local else uri
