"""Tells a lineage server, or a file, that a run began and how it ended, in OpenLineage's events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from anonymizer.config import RunConfig

Job = Literal["release", "audit", "erase"]
Gate = Literal["pass", "fail", "none"]


@dataclass
class RunOutcome:
    """What a run says of itself while it goes on, and, once it is done, which of its events were lost."""

    gate: Gate = "none"  # what the policy said of the release; none where it was not asked
    problems: list[str] = field(default_factory=list)


@contextmanager
def emit_run_events(config: RunConfig, job: Job, release: str | None = None) -> Iterator[RunOutcome]:
    """Events of what is done inside, where the settings want any: START, and COMPLETE, FAIL or ABORT.

    ``release`` says where the release lies, if that is not ``output.uri`` any more. An event that is not taken never
    stops a run: a line about it is among the ``problems`` of what is yielded, or a note of the error that is raised.
    """
    told = RunOutcome()
    if config.lineage.to is None:
        yield told
        return
    from flows.lineage.openlineage import RunEvents  # slow to import

    events = RunEvents(config, config.lineage.to, job, release or config.output.uri)
    told.problems += events.send_start()
    try:
        yield told
    except BaseException as error:
        for problem in told.problems + events.send_failure(error, told.gate):
            error.add_note(problem)
        raise
    told.problems += events.send_complete(told.gate)
