"""Environment variables for the processes that tests start."""

from __future__ import annotations

import os


def without_prefect(**more: str) -> dict[str, str]:
    """Return the environment of these tests without what sets up Prefect, and with ``more``.

    While tests share a temporary server, its address and password are in the environment.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")} | more
