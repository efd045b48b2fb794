"""The working directory is data: no code and no settings are taken from it, since a data set may have brought them."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from anonymizer.errors import ConfigError

SAFE_PATH = "PYTHONSAFEPATH"  # Python does not put the working directory, or a script's, first on its path
DOTENV, PREFECT_TOML, PYPROJECT = Path(".env"), Path("prefect.toml"), Path("pyproject.toml")


def distrust() -> None:
    """Keep the working directory off the path of all child processes; call before Prefect is imported.

    Raises ConfigError where Prefect would read settings from there, which may name a server, or classes to make.
    """
    os.environ[SAFE_PATH] = "1"
    for file, has_settings in ((DOTENV, _mentions_prefect), (PREFECT_TOML, _has_tables), (PYPROJECT, _has_prefect)):
        if file.is_file() and has_settings(file):
            raise ConfigError(
                f"working directory: {file} there holds settings of Prefect, which a data set may have brought: run "
                "elsewhere, or move them to a profile (`prefect config set`)"
            )


def _mentions_prefect(file: Path) -> bool:
    return b"prefect" in file.read_bytes().lower()


def _has_tables(file: Path) -> bool:
    return bool(_read(file))


def _has_prefect(file: Path) -> bool:
    tool = _read(file).get("tool", {})
    return not isinstance(tool, dict) or "prefect" in tool


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # Prefect reads it as well, and would end in a traceback
        return {"tool": None}
