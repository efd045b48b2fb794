"""Stages of a flow run as Prefect tasks: one line of counts in the log, and no error that names a record."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.logging import get_run_logger
from prefect.utilities.annotations import opaque

from anonymizer.errors import StepError
from anonymizer.storage.path import StoragePath
from flows.jobs.redaction import redact_errors

P = ParamSpec("P")
T = TypeVar("T")

# The only fields of a summary that are logged: nothing of a record, and no risk figure.
COUNTS = (
    "records", "shards", "read", "usable", "drawn", "kept", "enhanced", "audited", "pictures", "people", "levels",
    "released", "erased", "pending", "revoked", "quarantined", "failed", "waiting",
)  # fmt: skip


@contextmanager
def log_stage(name: str) -> Iterator[Callable[[object], None]]:
    """Log the seconds of a stage once it is done; call what is yielded with a summary to log its counts, too."""
    start, counts = time.monotonic(), list[str]()

    def count(summary: object) -> None:
        values = {field: getattr(summary, field, None) for field in COUNTS}
        counts.extend(f"{value} {field}" for field, value in values.items() if isinstance(value, int))

    yield count
    get_run_logger().info(f"{name}: {', '.join(counts) or 'done'} in {time.monotonic() - start:.1f} s")


@dataclass(frozen=True)
class StageRunner:
    """Runs functions of a job as tasks of this flow run; what their errors may not tell goes to ``folder``/errors/."""

    job: str
    folder: StoragePath
    error: StepError
    tags: Sequence[str]

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns; neither that nor its arguments are stored anywhere."""
        name = function.__name__.replace("_", "-")

        @task(name=name, tags=self.tags, persist_result=False)
        def stage(*arguments: Any) -> T:
            with log_stage(name) as count:
                result = redact_errors(self.folder, self.job, self.error, lambda: function(*arguments, **kwargs))
                count(result)
            return result

        return stage(*map(opaque, args))  # the graph has an arrow for each result, without a search of what it holds
