"""What a check found: one line, good or bad, that can be shown anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from anonymizer.data.sources.files import printable

MOST = 5  # lines of one check
LONGEST = 500  # characters of one line


@dataclass(frozen=True)
class Finding:
    """``fail``: the release is not what it should be. ``note``: what could not be checked, or should be known."""

    check: str
    result: Literal["pass", "fail", "note"]
    said: str


def passed(check: str, said: str) -> Finding:
    return Finding(check, "pass", _line(said))


def failed(check: str, said: str) -> Finding:
    return Finding(check, "fail", _line(said))


def noted(check: str, said: str) -> Finding:
    return Finding(check, "note", _line(said))


def verdict(check: str, problems: Sequence[str], otherwise: str) -> Iterator[Finding]:
    """A line for each problem, up to a few, or one line where there is none."""
    for problem in problems[:MOST]:
        yield failed(check, problem)
    if len(problems) > MOST:
        yield failed(check, f"and {len(problems) - MOST:,} more")
    if not problems:
        yield passed(check, otherwise)


def _line(said: str) -> str:
    """Names in it may be a stranger's: what would steer a terminal, or break the line, is percent-encoded."""
    text = printable(said, keep="%")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
