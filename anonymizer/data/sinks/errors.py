"""Files written through fsspec, with errors that say what to do."""

from __future__ import annotations

from typing import Any

from anonymizer.storage.path import translate_storage_errors

__all__ = ["make_folder", "translate_storage_errors"]


def make_folder(fs: Any, path: str) -> None:
    with translate_storage_errors(fs):
        fs.makedirs(path, exist_ok=True)
