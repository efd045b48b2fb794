"""What is printed on a terminal moves nothing there, whatever files say."""

from __future__ import annotations

import pytest

from flows.cli import console

FORGED = "\x1b]0;owned\x07\x1b[2J\x9bstate complete\r"


def test_control_characters_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_line(FORGED)
    console.print_facts(FORGED, {FORGED: FORGED})
    console.print_table("table", {"a": "left"}, [[FORGED], [(FORGED, "bold")]])
    shown = capsys.readouterr().out
    assert not set(shown) & set("\x1b\x07\x9b\r") and "%1B" in shown and "state complete" in shown
