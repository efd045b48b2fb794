"""Files written through fsspec, with errors that say what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from anonymizer.errors import OutputError


@contextlib.contextmanager
def output_errors() -> Iterator[None]:
    """An OSError of the storage as an OutputError; names no file, since file names hold ids."""
    try:
        yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise OutputError(f"output.uri: cannot be written ({why}): check space and access, then run again") from None


def make_folder(fs: Any, path: str) -> None:
    with output_errors():
        fs.makedirs(path, exist_ok=True)
