"""A folder or prefix somewhere that fsspec can reach, with writes that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
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
    """One path on one fsspec file system."""

    fs: Any
    path: str

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
        return Place(self.fs, f"{self.path}/{name}")

    def __str__(self) -> str:
        return str(self.fs.unstrip_protocol(self.path)) if not self.is_local else self.path

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def is_local(self) -> bool:
        return isinstance(self.fs, LocalFileSystem)

    def exists(self) -> bool:
        return bool(self.fs.exists(self.path))

    def read(self) -> bytes:
        data: bytes = self.fs.cat_file(self.path)
        return data

    def write(self, data: bytes) -> None:
        """Whole or not at all: a rename on a disk; an object store's put is atomic by itself. OutputError if not."""
        with output_errors():
            if self.is_local:
                self._write_local(data)
            else:
                self.fs.pipe_file(self.path, data)

    def _write_local(self, data: bytes) -> None:
        target = Path(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            with scratch.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)

    def put(self, data: bytes) -> None:
        """A write that something else commits later; cheaper than ``write``. OutputError if it fails."""
        with output_errors():
            if self.is_local:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self.fs.pipe_file(self.path, data)

    def children(self) -> Iterator[Place]:
        """What lies directly inside, by name; nothing where there is no such folder."""
        if self.exists():
            self.fs.invalidate_cache()
            for path in sorted(self.fs.ls(self.path, detail=False)):
                yield Place(self.fs, path.rstrip("/"))

    def remove(self) -> None:
        if self.exists():
            with output_errors():
                self.fs.rm(self.path, recursive=True)

    def move_to(self, other: Place, last: str) -> None:
        """Rename on a disk; elsewhere copy file by file, the one named ``last`` at the end, and delete."""
        with output_errors():
            if self.is_local:
                Path(self.path).rename(other.path)
                return
            inside = sorted(path.removeprefix(self.path) for path in self.fs.find(self.path))
            for name in sorted(inside, key=lambda name: name == f"/{last}"):
                self.fs.makedirs(f"{other.path}{name}".rpartition("/")[0], exist_ok=True)
                self.fs.cp_file(f"{self.path}{name}", f"{other.path}{name}")
        self.remove()
