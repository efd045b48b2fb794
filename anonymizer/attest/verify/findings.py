"""What a check found: one line, good or bad, that can be shown anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from anonymizer.data.sources.files import to_printable

MAX_LINES = 5  # lines of one check
MAX_LENGTH = 500  # characters of one line


@dataclass(frozen=True)
class Finding:
    """``fail``: the release is not what it should be. ``note``: what could not be checked, or should be known."""

    check: str
    result: Literal["pass", "fail", "note"]
    said: str


def passed(check: str, message: str) -> Finding:
    return Finding(check, "pass", _printable_line(message))


def failed(check: str, message: str) -> Finding:
    return Finding(check, "fail", _printable_line(message))


def noted(check: str, message: str) -> Finding:
    return Finding(check, "note", _printable_line(message))


def pass_or_fail(check: str, problems: Sequence[str], success: str) -> Iterator[Finding]:
    """A line for each problem, up to a few, or one line where there is none."""
    for problem in problems[:MAX_LINES]:
        yield failed(check, problem)
    if len(problems) > MAX_LINES:
        yield failed(check, f"and {len(problems) - MAX_LINES:,} more")
    if not problems:
        yield passed(check, success)


def _printable_line(said: str) -> str:
    """Names in it may be a stranger's: what would steer a terminal, or break the line, is percent-encoded."""
    text = to_printable(said, safe="%")
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…"
