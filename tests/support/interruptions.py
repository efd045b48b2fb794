"""Runs that are interrupted at a chosen point, as a killed process would be."""

from __future__ import annotations

from typing import Any

import pytest

from anonymizer import report
from anonymizer.release import assemble
from anonymizer.storage.path import StoragePath


class Stop(BaseException):
    """An interruption that no handler catches, like a kill."""


def stop_at(
    patch: pytest.MonkeyPatch, owner: Any, name: str, when: Any = lambda *args: True, after: bool = False
) -> None:
    """Raise Stop at the first call of ``owner.name`` that fits, before or after it did its work."""
    original = getattr(owner, name)

    def stopping(*args: Any, **rest: Any) -> Any:
        if not when(*args):
            return original(*args, **rest)
        if after:
            original(*args, **rest)
        raise Stop

    patch.setattr(owner, name, stopping)


def named(part: str) -> Any:
    """Whether a method is called on a path that holds ``part``."""
    return lambda path, *rest: part in path.path


POINTS: dict[str, tuple[Any, str, Any, bool]] = {
    "while planning": (StoragePath, "write_uncommitted", named("plan/shard-00001"), False),
    "before the plan stands": (StoragePath, "write", named("plan.json"), False),
    "at the first staged picture": (StoragePath, "write_uncommitted", named("staging/"), False),
    "after the first staged picture": (StoragePath, "write_uncommitted", named("staging/"), True),
    "after a picture went into quarantine": (StoragePath, "write_uncommitted", named("quarantine/"), True),
    "between staging and commit": (StoragePath, "create", named("ledger/shard-00001"), False),
    "right after a commit": (StoragePath, "create", named("ledger/shard-00001"), True),
    "between the last commit and assembling": (assemble, "assemble", lambda *args: True, False),
    "before the papers are written": (report, "write_public", lambda *args: True, False),
    "when the manifest is there": (assemble, "_write_public", lambda *args: True, True),
    "before the candidate appears": (StoragePath, "move_to", named("assembling/"), False),
    "after the candidate appeared": (StoragePath, "move_to", named("assembling/"), True),
    "after the policy was asked": (StoragePath, "write", named("decisions"), True),
    "before it is signed": (StoragePath, "write", named("candidate/release.intoto.jsonl"), False),
    "after it was signed": (StoragePath, "write", named("candidate/release.intoto.jsonl"), True),
    "before public/ appears": (StoragePath, "move_to", named("candidate"), False),
    "after public/ appeared": (StoragePath, "move_to", named("candidate"), True),
    "while tidying up": (StoragePath, "remove", named("restricted/staging"), False),
}
