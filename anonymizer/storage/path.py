"""A folder or prefix somewhere that fsspec can reach, with writes that are there whole or not at all."""

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


@contextlib.contextmanager
def translate_storage_errors(fs: Any = None) -> Iterator[None]:
    """An error of the storage as an OutputError; names no file, since file names hold ids."""
    try:
        yield
    except Exception as error:
        if not filesystem.is_storage_error(error):
            raise
        if fs is None or filesystem.is_local(fs):
            why = getattr(error, "strerror", None) or type(error).__name__
            what = f"cannot be written ({why}): check space and access, then run the same command again"
        else:
            what = f"cannot be written: {filesystem.explain(error)}"
        raise OutputError(f"output.uri: {what}") from None


@dataclass(frozen=True)
class StoragePath:
    """One path on one fsspec file system.

    What is written to a disk at or below ``private`` is for its owner alone, whatever the umask.
    """

    fs: Any
    path: str
    private_root: str | None = None

    @classmethod
    def from_uri(cls, uri: str) -> StoragePath:
        try:
            fs, path = filesystem.open_fs(str(uri))
        except ImportError as error:
            raise OutputError(f"uri {str(uri)!r}: {error}, or name a folder") from None
        except (ValueError, OSError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OutputError(
                f"uri {str(uri)!r}: cannot be opened ({why}): check the address, or name a folder"
            ) from None
        return cls(fs, path.rstrip("/") or "/")

    def __truediv__(self, name: str) -> StoragePath:
        return replace(self, path=f"{self.path}/{name}")

    def __str__(self) -> str:
        return str(self.fs.unstrip_protocol(self.path)) if not self.is_local else self.path

    def as_private(self) -> StoragePath:
        """The same path, from which on everything is for its owner alone, unless that began above it."""
        return replace(self, private_root=self.private_root or self.path)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        return filesystem.is_local(self.fs)

    @property
    def is_bucket(self) -> bool:
        """Whether nothing lies above it in its store."""
        return filesystem.has_buckets(self.fs) and "/" not in self.path

    def is_inside(self, outer: StoragePath) -> bool:
        """Whether this is ``outer`` or lies below it, whatever links and spellings lead there."""
        if type(self.fs) is not type(outer.fs):
            return False
        if not outer.is_local:
            return f"{self.path}/".startswith(f"{outer.path.rstrip('/')}/")
        real = Path(os.path.realpath(self.path))
        return any(_same(folder, Path(outer.path)) for folder in (real, *real.parents))

    @property
    def store_uri(self) -> str:
        """The store, and nothing of what lies in it: ``s3://bucket``."""
        protocol = self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]
        return f"{protocol}://{self.path.lstrip('/').partition('/')[0]}"

    def exists(self) -> bool:
        """OutputError if a store cannot be asked."""
        return bool(self._request(lambda: self.fs.exists(self.path)))

    def read(self) -> bytes:
        """All bytes. FileNotFoundError, or another OSError on a disk; OutputError if a store cannot be asked."""
        data: bytes = self._request(lambda: self.fs.cat_file(self.path))
        return data

    def read_with_version(self) -> tuple[bytes, str | None]:
        """All bytes and what ``swap`` knows them by; nothing and None where there is no such file."""
        try:  # the version first, lest it be newer than the bytes
            version = filesystem.version_of(self._request(lambda: self.fs.info(self.path)))
            return self.read(), version
        except FileNotFoundError:
            return b"", None

    def write(self, data: bytes) -> None:
        """Whole or not at all: a rename on a disk; an object store's put is atomic by itself. OutputError if not."""
        with translate_storage_errors(self.fs):
            if self.is_local:
                with self._temporary_file(data) as (scratch, target):
                    scratch.replace(target)
            else:
                filesystem.with_retries(lambda: self.fs.pipe_file(self.path, data))

    def create(self, data: bytes) -> bool:
        """``write`` where nothing lies yet; false, and nothing is changed, where something does.

        Of several that try at once, one succeeds: on a disk that knows hard links, and on a store that knows
        conditional puts, which some servers ignore; there and elsewhere as far as a look tells.
        """
        with translate_storage_errors(self.fs):
            try:
                if self.is_local:
                    with self._temporary_file(data) as (scratch, target):
                        _link(scratch, target)
                    return True
            except FileExistsError:
                return False
            return not self.fs.exists(self.path) and self._put_if(data, {"mode": "create"})

    def compare_and_swap(self, data: bytes, version: str | None) -> bool:
        """``write`` where what ``read_version`` has read still lies; false, and nothing is changed, where it does not.

        For stores: by S3's If-Match, which some servers ignore; there and elsewhere as far as a look tells.
        """
        if version is None:
            return self.create(data)
        with translate_storage_errors(self.fs):
            try:
                found = filesystem.version_of(filesystem.with_retries(lambda: self.fs.info(self.path)))
            except FileNotFoundError:
                return False
            if found != version:
                return False
            in_one = {"IfMatch": version, "chunksize": max(len(data), 2**26)}  # parts would be put under no condition
            return self._put_if(data, in_one if filesystem.is_s3(self.fs) else {})

    def has_conditional_writes(self) -> bool:
        """Whether the store refuses to create what is there; tried with what ``create`` has made here."""
        with translate_storage_errors(self.fs):
            try:
                self.fs.pipe_file(self.path, b"", mode="create")
            except Exception as error:
                if not filesystem.is_precondition_failed(error):
                    raise
                return True
        return False

    def _put_if(self, data: bytes, condition: Mapping[str, Any]) -> bool:
        """Put under a condition, if the store knows any. An answer may get lost, so what lies there then has a say."""
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
        """What ``work`` returns; a store that cannot be asked is an OutputError, which names the store alone."""
        if self.is_local:
            return work()
        try:
            return filesystem.with_retries(work)
        except Exception as error:
            if filesystem.is_not_found(error) or not filesystem.is_storage_error(error):
                raise
            raise OutputError(f"{self.store_uri}: {filesystem.explain(error)}") from None

    @contextlib.contextmanager
    def _temporary_file(self, data: bytes) -> Iterator[tuple[Path, Path]]:
        """A file beside the target that holds ``data``, on the disk, and the target."""
        target = Path(self.path)
        self._make_folder(target.parent)
        scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(self._open_descriptor(scratch), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield scratch, target
        finally:
            scratch.unlink(missing_ok=True)

    def make_private_folder(self) -> None:
        """A new folder on a disk is for its owner alone; one that is there stays as it is. OutputError if it fails."""
        if self.is_local and not self.exists():
            with translate_storage_errors():
                self.as_private()._make_folder(Path(self.path))

    def write_uncommitted(self, data: bytes) -> None:
        """A write that something else commits later; cheaper than ``write``. OutputError if it fails."""
        with translate_storage_errors(self.fs):
            if self.is_local:
                self._make_folder(Path(self.path).parent)
                if self.private_root:  # a file that is there keeps its mode when it is written
                    os.close(self._open_descriptor(Path(self.path)))
                self.fs.pipe_file(self.path, data)
            else:
                filesystem.with_retries(lambda: self.fs.pipe_file(self.path, data))

    def _open_descriptor(self, file: Path) -> int:
        """A descriptor of a file, which is made where it is missing."""
        return os.open(file, os.O_WRONLY | os.O_CREAT, 0o600 if self.private_root else 0o666)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder where it is missing, and those above it."""
        private = self.private_root is not None and folder.is_relative_to(self.private_root)
        try:
            folder.mkdir(0o700 if private else 0o777, exist_ok=True)
        except FileNotFoundError:
            self._make_folder(folder.parent)
            self._make_folder(folder)

    def children(self) -> Iterator[StoragePath]:
        """What lies directly inside, by name; nothing where there is no such folder."""
        if self.exists():
            for path in sorted(path.rstrip("/") for path in self._request(lambda: self.fs.ls(self.path, detail=False))):
                if path != self.path:  # a store may hold an object that stands for the folder
                    yield replace(self, path=path)

    def remove(self) -> None:
        """Away with it and all below. OutputError if something is left."""
        for _ in range(filesystem.MAX_ATTEMPTS):
            if not self.exists():
                return
            with (
                translate_storage_errors(self.fs),
                contextlib.suppress(FileNotFoundError),
            ):  # somebody else may be at it as well
                filesystem.with_retries(lambda: self.fs.rm(self.path, recursive=True))
            if self.is_local:
                return
        if self.exists():  # stores answer to a list of deletions as a whole, and say of each beside it
            raise OutputError(
                f"{self.store_uri}: something could not be deleted: check that the credentials may delete"
            )

    def list_files(self) -> list[str]:
        """Paths of all files below, relative to this folder, sorted."""
        found = self._request(lambda: self.fs.find(self.path))
        return sorted(path.removeprefix(self.path).lstrip("/") for path in found)

    def move_to(self, other: StoragePath, last: str) -> None:
        """Rename on a disk; elsewhere copy file by file, the one named ``last`` at the end, and delete."""
        with translate_storage_errors(self.fs):
            if self.is_local:
                self._make_folder(Path(other.path).parent)
                Path(self.path).rename(other.path)
                return
            names = self.list_files()
            for folder in {f"{other.path}/{name}".rpartition("/")[0] for name in names}:
                self.fs.makedirs(folder, exist_ok=True)
            with ThreadPoolExecutor(filesystem.MAX_PARALLEL_REQUESTS, "copier") as pool:
                for _ in pool.map(lambda name: self._copy(name, other), (name for name in names if name != last)):
                    pass
            if last in names:
                self._copy(last, other)
        self.remove()

    def _copy(self, name: str, other: StoragePath) -> None:
        filesystem.with_retries(lambda: self.fs.cp_file(f"{self.path}/{name}", f"{other.path}/{name}"))


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there yet
        return str(one) == os.path.realpath(other)


def _link(scratch: Path, target: Path) -> None:
    """A hard link fails where the target is there; a disk without hard links gets a rename after a look."""
    try:
        target.hardlink_to(scratch)
    except FileExistsError:
        raise
    except OSError:
        if target.exists():
            raise FileExistsError from None
        scratch.replace(target)
