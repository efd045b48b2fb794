"""Lineage: OpenLineage events of a run, to a lineage server or a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from anonymizer.config import RunConfig

Job = Literal["release", "audit", "erase"]
Gate = Literal["pass", "fail", "none"]


@dataclass
class RunOutcome:
    """What the events of a run say, and, once it is done, a line for each event that was lost."""

    gate: Gate = "none"  # the decision of the policy; none where it does not decide
    problems: list[str] = field(default_factory=list)


@contextmanager
def emit_run_events(config: RunConfig, job: Job, release: str | None = None) -> Iterator[RunOutcome]:
    """Emit START, and COMPLETE, FAIL or ABORT for what is done inside, if the settings name a destination.

    ``release`` is where the release lies, if that is not ``output.uri`` any more. An event that is lost never stops a
    run: a line about it is among the ``problems`` of what is yielded, or a note of the error that is raised.
    """
    outcome = RunOutcome()
    if config.lineage.to is None:
        yield outcome
        return
    from flows.lineage.openlineage import RunEvents  # slow to import

    events = RunEvents(config, config.lineage.to, job, release or config.output.uri)
    outcome.problems += events.send_start()
    try:
        yield outcome
    except BaseException as error:
        for problem in outcome.problems + events.send_failure(error, outcome.gate):
            error.add_note(problem)
        raise
    outcome.problems += events.send_complete(outcome.gate)
