"""A folder or prefix somewhere that fsspec can reach, with writes that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from anonymizer.errors import OutputError


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
    """An OSError of the storage as an OutputError; names no file, since file names hold ids."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise OutputError(
            f"output.uri: cannot be written ({why}): check space and access, then run the same command again"
        ) from None


@dataclass(frozen=True)
class Place:
    """One path on one fsspec file system.

    What is written to a disk at or below ``private`` is for its owner alone, whatever the umask.
    """

    fs: Any
    path: str
    private: str | None = None

    @classmethod
    def of(cls, uri: str) -> Place:
        try:
            fs, path = fsspec.core.url_to_fs(str(uri))
        except (ValueError, ImportError, OSError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise OutputError(
                f"uri {str(uri)!r}: cannot be opened ({why}): check the address, or name a folder"
            ) from None
        return cls(fs, path.rstrip("/") or "/")

    def __truediv__(self, name: str) -> Place:
        return replace(self, path=f"{self.path}/{name}")

    def __str__(self) -> str:
        return str(self.fs.unstrip_protocol(self.path)) if not self.is_local else self.path

    def as_private(self) -> Place:
        """The same path, from which on everything is for its owner alone, unless that began above it."""
        return replace(self, private=self.private or self.path)

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def lies_in(self, outer: Place) -> bool:
        """Whether this is ``outer`` or lies below it, whatever links and spellings lead there."""
        if type(self.fs) is not type(outer.fs):
            return False
        if not outer.is_local:
            return f"{self.path}/".startswith(f"{outer.path.rstrip('/')}/")
        real = Path(os.path.realpath(self.path))
        return any(_same(folder, Path(outer.path)) for folder in (real, *real.parents))

    def exists(self) -> bool:
        return bool(self.fs.exists(self.path))

    def read(self) -> bytes:
        data: bytes = self.fs.cat_file(self.path)
        return data

    def write(self, data: bytes) -> None:
        """Whole or not at all: a rename on a disk; an object store's put is atomic by itself. OutputError if not."""
        with output_errors():
            if self.is_local:
                with self._scratch(data) as (scratch, target):
                    scratch.replace(target)
            else:
                self.fs.pipe_file(self.path, data)

    def create(self, data: bytes) -> bool:
        """``write`` where nothing lies yet; false, and nothing is changed, where something does.

        Of several that try at once, one succeeds: on a disk that knows hard links; elsewhere as far as a look tells.
        """
        with output_errors():
            try:
                if self.is_local:
                    with self._scratch(data) as (scratch, target):
                        _link(scratch, target)
                elif self.exists():
                    return False
                else:
                    self.fs.pipe_file(self.path, data)
            except FileExistsError:
                return False
        return True

    @contextlib.contextmanager
    def _scratch(self, data: bytes) -> Iterator[tuple[Path, Path]]:
        """A file beside the target that holds ``data``, on the disk, and the target."""
        target = Path(self.path)
        self._make_folder(target.parent)
        scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(self._opened(scratch), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield scratch, target
        finally:
            scratch.unlink(missing_ok=True)

    def make_private(self) -> None:
        """A new folder on a disk is for its owner alone; one that is there stays as it is. OutputError if it fails."""
        if self.is_local and not self.exists():
            with output_errors():
                self.as_private()._make_folder(Path(self.path))

    def put(self, data: bytes) -> None:
        """A write that something else commits later; cheaper than ``write``. OutputError if it fails."""
        with output_errors():
            if self.is_local:
                self._make_folder(Path(self.path).parent)
                if self.private:  # a file that is there keeps its mode when it is written
                    os.close(self._opened(Path(self.path)))
            self.fs.pipe_file(self.path, data)

    def _opened(self, file: Path) -> int:
        """A descriptor of a file, which is made where it is missing."""
        return os.open(file, os.O_WRONLY | os.O_CREAT, 0o600 if self.private else 0o666)

    def _make_folder(self, folder: Path) -> None:
        """Make a folder where it is missing, and those above it."""
        private = self.private is not None and folder.is_relative_to(self.private)
        try:
            folder.mkdir(0o700 if private else 0o777, exist_ok=True)
        except FileNotFoundError:
            self._make_folder(folder.parent)
            self._make_folder(folder)

    def children(self) -> Iterator[Place]:
        """What lies directly inside, by name; nothing where there is no such folder."""
        if self.exists():
            self.fs.invalidate_cache()
            for path in sorted(self.fs.ls(self.path, detail=False)):
                yield replace(self, path=path.rstrip("/"))

    def remove(self) -> None:
        if self.exists():
            with output_errors(), contextlib.suppress(FileNotFoundError):  # somebody else may be removing it as well
                self.fs.rm(self.path, recursive=True)

    def files(self) -> list[str]:
        """Paths of all files below, relative to this folder, sorted."""
        self.fs.invalidate_cache()
        return sorted(path.removeprefix(self.path).lstrip("/") for path in self.fs.find(self.path))

    def move_to(self, other: Place, last: str) -> None:
        """Rename on a disk; elsewhere copy file by file, the one named ``last`` at the end, and delete."""
        with output_errors():
            if self.is_local:
                self._make_folder(Path(other.path).parent)
                Path(self.path).rename(other.path)
                return
            for name in sorted(self.files(), key=lambda name: name == last):
                self.fs.makedirs(f"{other.path}/{name}".rpartition("/")[0], exist_ok=True)
                self.fs.cp_file(f"{self.path}/{name}", f"{other.path}/{name}")
        self.remove()


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
