"""Files written through fsspec, with errors that say what to do."""

from __future__ import annotations

from typing import Any

from anonymizer.storage.path import output_errors

__all__ = ["make_folder", "output_errors"]


def make_folder(fs: Any, path: str) -> None:
    with output_errors(fs):
        fs.makedirs(path, exist_ok=True)
