"""Isolation of a job's steps: threads of their own, and errors that reveal nothing of a record."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from anonymizer.errors import AnonymizerError, ReportableError, StepError
from anonymizer.storage.path import StoragePath

T = TypeVar("T")


def in_fresh_thread(work: Callable[[], T]) -> T:
    """Return the result of ``work``, run in a thread that ends with it.

    OpenMP keeps a team for every thread that has computed, and once all teams together outnumber the cores it lets
    their members sleep at barriers instead of spinning. Shards have threads of their own; see docs/benchmarks.md.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def redact_errors(folder: StoragePath, step: str, fallback: StepError, work: Callable[[], T]) -> T:
    """Return the result of ``work``, run in a fresh thread.

    An error that may hold a path or a value is written to ``errors/`` in ``folder``, and ``fallback`` is raised in its
    place. What is raised is new and raised outside the handler, so that it carries no chained exception and no frame of
    the original error to a log or a database.
    """
    try:
        return in_fresh_thread(work)
    except ReportableError as error:
        redacted: AnonymizerError = type(error)(str(error))
    except Exception:
        with suppress(Exception):  # the disk may be full
            details = folder / "errors" / f"{step}.txt"
            details.write_uncommitted(traceback.format_exc().encode("utf-8", "backslashreplace"))
        redacted = type(fallback)(f"{fallback}: see {folder.name}/errors/{step}.txt")
    raise redacted
