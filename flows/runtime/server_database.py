"""The database of a temporary Prefect server, in a folder that goes with it.

Prefect takes some seconds to set up an empty one, so the first is saved beside its settings, and later ones are copies.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

URL_SETTING = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


@dataclass(frozen=True)
class Database:
    """One SQLite file for one server, and the empty one that it is a copy of."""

    path: Path
    template: Path

    @property
    def url(self) -> str:
        return f"sqlite+aiosqlite:///{self.path}"

    def save_template(self) -> None:
        """Save a copy, unless there is one; call before anything is sent to the server."""
        scratch = self.template.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError, sqlite3.Error):  # a folder that cannot be written costs seconds, and no run
            if not self.template.exists():
                with closing(sqlite3.connect(self.path)) as ours, closing(sqlite3.connect(scratch)) as copy:
                    ours.backup(copy)
                scratch.replace(self.template)


def absolute_url(url: str) -> str:
    """Return the same address of a database, for a process with another working directory."""
    scheme, separator, path = url.partition(":///")
    if not scheme.startswith("sqlite") or not path or path.startswith(("/", "file:", ":memory:")):
        return url
    return f"{scheme}{separator}{Path(path).absolute()}"


@contextmanager
def temporary_database() -> Iterator[Database]:
    """Yield a database for one server, removed with its folder."""
    from prefect import __version__
    from prefect.settings import PREFECT_HOME

    template = Path(PREFECT_HOME.value()) / f"anonymizer-empty-{__version__}.db"
    with TemporaryDirectory(prefix="anonymizer-prefect-", ignore_cleanup_errors=True) as folder:
        database = Database(Path(folder) / "prefect.db", template)
        with suppress(OSError):
            shutil.copyfile(template, database.path)
        yield database
