"""The SQLite database of a Prefect server, read while it runs."""

from __future__ import annotations

import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any


def query(home: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{home / 'prefect.db'}?mode=ro", uri=True)) as connection:
        return connection.execute(sql, values).fetchall()


def answers(url: str) -> bool:
    """Whether a server is there, at its API's address."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def wait_for(what: Callable[[], bool], seconds: float = 20) -> bool:
    """The server writes task runs down a moment after they ended."""
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)
    return what()


def cells(home: Path) -> list[tuple[str, str, Any]]:
    """(table, column, value) of everything in the database."""
    values = []
    for (table,) in query(home, "SELECT name FROM sqlite_master WHERE type = 'table'"):
        names = [row[1] for row in query(home, f'PRAGMA table_info("{table}")')]
        for row in query(home, f'SELECT * FROM "{table}"'):
            values += [(table, name, value) for name, value in zip(names, row, strict=True) if value is not None]
    return values
