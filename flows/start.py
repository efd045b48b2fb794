"""Start a Prefect flow in this process, on the user's server or on a temporary one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def run_flow(
    name: str, *parameters: Any, secrets: Sequence[str] = ("ANONYMIZER_KEY", "ANONYMIZER_SIGNING_KEY"),
    prepare: Callable[[], object] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Run the flow ``flows.NAME.NAME`` on the user's Prefect server or a temporary one; return its counts.

    A temporary server does not get the environment variables ``secrets``; ``prepare`` is called while it starts.
    """
    from flows.runtime.temporary_server import ensure_server

    with ensure_server(*secrets) as wait_until_ready:
        prepare()
        wait_until_ready()
        from prefect import tags

        module = import_module(f"flows.{name}")
        with tags(*module.TAGS):
            summary: dict[str, Any] = getattr(module, name)(*parameters)
    return summary
