"""Files of a model from wherever fsspec reaches, whole and once, into a cache on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock

from anonymizer.errors import ModelError
from anonymizer.storage import filesystem

CACHE_VARIABLE = "ANONYMIZER_CACHE"
MAX_PARALLEL_DOWNLOADS = 4  # files that are fetched at a time


def is_uri(text: str) -> bool:
    """Whether it names a place through fsspec, and not a path, a bundled model or a hub id."""
    return "://" in text


def cache_folder() -> Path:
    """Where fetched files lie: ``ANONYMIZER_CACHE``, or this user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE, "").strip():
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "").strip() or Path.home() / ".cache") / "anonymizer"


def download_folder(field: str, uri: str, wanted: Callable[[Iterable[str]], Iterable[str]]) -> Path:
    """A folder with the files below ``uri`` whose relative names are ``wanted``. ModelError, which names ``field``.

    What lies there is asked for each time; what has changed since, by its size and version, is fetched again.
    """
    return _guarded(field, uri, lambda: _fetched(uri, wanted))


def download_file(field: str, uri: str) -> Path:
    """One file; ModelError likewise."""

    def fetched() -> Path:
        fs, path = filesystem.open_fs(uri)
        if filesystem.is_local(fs):
            return _present(path)
        above, _, name = path.rpartition("/")
        return _cached(fs, uri, above, {name: filesystem.with_retries(lambda: fs.info(path))}) / name

    return _guarded(field, uri, fetched)


def _guarded(field: str, uri: str, work: Callable[[], Path]) -> Path:
    try:
        return work()
    except ImportError as error:
        raise ModelError(f"{field} {uri!r}: {error}, or name a local folder") from None
    except ModelError:
        raise
    except Exception as error:  # each file system has errors of its own
        if filesystem.is_not_found(error):
            why = "no file of a model lies there: check the address"
        elif filesystem.is_storage_error(error):
            why = filesystem.explain(error)
        else:
            why = f"cannot be opened ({type(error).__name__}): check the address"
        raise ModelError(f"{field} {uri!r}: {why}") from None


def _fetched(uri: str, wanted: Callable[[Iterable[str]], Iterable[str]]) -> Path:
    fs, path = filesystem.open_fs(uri)
    if filesystem.is_local(fs):
        return _present(path)
    root = path.rstrip("/")
    listed = filesystem.with_retries(lambda: fs.find(root, detail=True))
    below = {name.removeprefix(root).lstrip("/"): info for name, info in listed.items()}
    files = {name: below[name] for name in sorted(wanted(below))}
    if not files:
        raise FileNotFoundError
    return _cached(fs, uri, root, files)


def _present(path: str) -> Path:
    if not Path(path).exists():
        raise FileNotFoundError
    return Path(path)


def _cached(fs: Any, uri: str, root: str, files: dict[str, Any]) -> Path:
    told = "\n".join(
        [uri, *(f"{name} {info.get('size')} {filesystem.version_of(info)}" for name, info in files.items())]
    )
    target = cache_folder() / "models" / hashlib.sha256(told.encode()).hexdigest()[:32]
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):  # of several processes, one fetches
        if not target.is_dir():
            _fetch(fs, root, files, target)
    return target


def _fetch(fs: Any, root: str, files: dict[str, Any], target: Path) -> None:
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    with ThreadPoolExecutor(MAX_PARALLEL_DOWNLOADS, "fetcher") as pool:
        for _ in pool.map(lambda name: _get(fs, f"{root}/{name}", _path_inside(part, name), files[name]), files):
            pass
    part.rename(target)


def _get(fs: Any, path: str, to: Path, info: dict[str, Any]) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    filesystem.with_retries(lambda: fs.get_file(path, str(to)))
    if info.get("size") not in (None, to.stat().st_size):
        raise OSError("changed while it was fetched")


def _path_inside(part: Path, name: str) -> Path:
    """A file below ``part``; the name of an object may say anything."""
    if not name or "\\" in name or any(step in ("", ".", "..") for step in name.split("/")):
        raise ValueError("a name that leads out of the folder")
    return part / name
