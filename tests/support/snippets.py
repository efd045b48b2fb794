"""Code blocks of Markdown pages: which are run, and which are not, with the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S
)
RUNNABLE = ("bash", "python")


@dataclass(frozen=True)
class Snippet:
    language: str
    code: str
    reason: str | None  # why it is not run; None where it is


def read_snippets(page: Path) -> list[Snippet]:
    """The code blocks of a page that a reader would run, in order."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Snippet(m["language"], m["code"], m["reason"]) for m in found if m["language"] in RUNNABLE]


def script_of(page: Path) -> str:
    """A Bash script that runs the blocks of a page in order, as one reader would: what a block exports stays."""
    parts = ["set -euo pipefail"]
    for snippet in read_snippets(page):
        if snippet.reason is None:
            code = snippet.code if snippet.language == "bash" else f"python - <<'PYTHON'\n{snippet.code}PYTHON\n"
            parts.append(code)
    return "\n".join(parts)
