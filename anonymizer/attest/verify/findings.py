"""Findings of a verification: one printable line each, with a result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from anonymizer.data.sources.files import to_printable

MAX_LINES = 5  # of one check
MAX_LENGTH = 500  # characters of one line


@dataclass(frozen=True)
class Finding:
    """Result of a check: ``fail`` means that the release is not as signed, ``note`` that something was not checked."""

    check: str
    result: Literal["pass", "fail", "note"]
    message: str

    def to_json(self) -> dict[str, str]:
        """Return the finding as ``anonymizer verify --json`` prints it."""
        return {"check": self.check, "result": self.result, "said": self.message}


def passed(check: str, message: str) -> Finding:
    """Return a finding that the check passed."""
    return Finding(check, "pass", _printable_line(message))


def failed(check: str, message: str) -> Finding:
    """Return a finding that the check failed."""
    return Finding(check, "fail", _printable_line(message))


def noted(check: str, message: str) -> Finding:
    """Return a finding that neither passes nor fails."""
    return Finding(check, "note", _printable_line(message))


def pass_or_fail(check: str, problems: Sequence[str], success: str) -> Iterator[Finding]:
    """Yield a failure for each of the first few problems, or one pass if there is none."""
    for problem in problems[:MAX_LINES]:
        yield failed(check, problem)
    if len(problems) > MAX_LINES:
        yield failed(check, f"and {len(problems) - MAX_LINES:,} more")
    if not problems:
        yield passed(check, success)


def _printable_line(message: str) -> str:
    """Percent-encode control characters, which hostile file names may hold, and bound the length."""
    text = to_printable(message, safe="%")
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}…"
