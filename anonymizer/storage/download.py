"""Download model files from any fsspec URI into a cache on this machine."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from anonymizer.errors import ModelError
from anonymizer.storage import filesystem

CACHE_VARIABLE = "ANONYMIZER_CACHE"
MAX_PARALLEL_DOWNLOADS = 4


def is_uri(text: str) -> bool:
    """Return whether a text is an fsspec URI, unlike a path, a bundled model or a hub id."""
    return "://" in text


def cache_folder() -> Path:
    """Return the folder of cached files: ``ANONYMIZER_CACHE``, or the user's cache folder."""
    named = os.environ.get(CACHE_VARIABLE, "").strip()
    return Path(named).expanduser() if named else user_cache_path("anonymizer")


def download_folder(field: str, uri: str, select: Callable[[Iterable[str]], Iterable[str]]) -> Path:
    """Return a local folder with the files below ``uri`` whose relative names ``select`` returns.

    The store is listed each time; files that changed, by their size and version, are downloaded again. ModelError,
    which names the setting ``field``.
    """
    with _translate_errors(field, uri):
        fs, path = filesystem.open_fs(uri)
        if filesystem.is_local(fs):
            return _existing(path)
        root = path.rstrip("/")
        listing = filesystem.with_retries(lambda: fs.find(root, detail=True))
        infos = {name.removeprefix(root).lstrip("/"): info for name, info in listing.items()}
        files = {name: infos[name] for name in sorted(select(infos))}
        if not files:
            raise FileNotFoundError
        return _cached(fs, uri, root, files)


def download_file(field: str, uri: str) -> Path:
    """Return a local copy of one file. ModelError, which names the setting ``field``."""
    with _translate_errors(field, uri):
        fs, path = filesystem.open_fs(uri)
        if filesystem.is_local(fs):
            return _existing(path)
        folder, _, name = path.rpartition("/")
        return _cached(fs, uri, folder, {name: filesystem.with_retries(lambda: fs.info(path))}) / name


@contextmanager
def _translate_errors(field: str, uri: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ModelError(f"{field} {uri!r}: {error}, or name a local folder") from None
    except ModelError:
        raise
    except Exception as error:  # each file system has errors of its own
        if filesystem.is_not_found(error):
            problem = "no file of a model lies there: check the address"
        elif filesystem.is_storage_error(error):
            problem = filesystem.explain(error)
        else:
            problem = f"cannot be opened ({type(error).__name__}): check the address"
        raise ModelError(f"{field} {uri!r}: {problem}") from None


def _existing(path: str) -> Path:
    if not Path(path).exists():
        raise FileNotFoundError
    return Path(path)


def _cached(fs: Any, uri: str, root: str, files: dict[str, Any]) -> Path:
    versions = (f"{name} {info.get('size')} {filesystem.version_of(info)}" for name, info in files.items())
    key = hashlib.sha256("\n".join([uri, *versions]).encode()).hexdigest()[:32]
    target = cache_folder() / "models" / key
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):  # of several processes, one downloads
        if not target.is_dir():
            _download(fs, root, files, target)
    return target


def _download(fs: Any, root: str, files: dict[str, Any], target: Path) -> None:
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
    part.mkdir()

    def download(name: str) -> None:
        path = _path_inside(part, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        filesystem.with_retries(lambda: fs.get_file(f"{root}/{name}", str(path)))
        if files[name].get("size") not in (None, path.stat().st_size):
            raise OSError("changed while it was downloaded")

    with ThreadPoolExecutor(MAX_PARALLEL_DOWNLOADS, "downloader") as pool:
        list(pool.map(download, files))
    part.rename(target)


def _path_inside(folder: Path, name: str) -> Path:
    """Return the path of a file below ``folder``. ValueError for an object's name that leads out of it."""
    if not name or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError("a name that leads out of the folder")
    return folder / name
