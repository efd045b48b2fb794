"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from anonymizer.errors import CustodianKeyError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from anonymizer.config import RunConfig
    from anonymizer.storage.layout import Release

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound="BaseModel")

config_argument = click.argument("config", required=False)
model_option = click.option(
    "--model", help="bundled:NAME, a folder or its URI, or a hub id (then --set model.revision=...)."
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Any other setting; repeatable."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
without_key = click.option(
    "--without-key", is_flag=True,
    help="The release was made without a custodian's key, and nobody else could write its settings.",
)  # fmt: skip
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress bar.")


def open_to_change(uri: str, is_keyless: bool) -> Release:
    """Return a release that a command is to change by the settings in it, with its key.

    Raises CustodianKeyError for one without a key, whose settings an attacker may have written, unless ``is_keyless``.
    """
    from anonymizer.release.plan import open_with_key

    opened = open_with_key(uri)
    if opened.key is None and not is_keyless:
        raise CustodianKeyError(
            f"release {uri!r}: was made without a custodian's key, so that nothing says who wrote its settings: give "
            "--without-key if nobody else could"
        )
    return opened


def split_names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Split a list with commas; the callback of an option."""
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def build_config(kind: type[C], path: str | None, options: dict[str, Any], overrides: tuple[str, ...]) -> C:
    """Build settings from a file, if there is one, the options that are given (``a.b`` -> value), and ``--set``."""
    from anonymizer.config import read_tree
    from anonymizer.policy.calibration import build_resolved

    given = {name: value for name, value in options.items() if value is not None}
    if path is not None:
        _refuse_source_as_config(path)
    return build_resolved(kind, {} if path is None else read_tree(path), overrides, given)


def _refuse_source_as_config(path: str) -> None:
    """Raise UsageError for pictures in place of a configuration; an address may hold a password: it is not repeated."""
    name, known = ("an address", ()) if "://" in path else (repr(path), ("",))
    if Path(path).is_dir():
        problem = "is a directory"
    elif Path(path).suffix.lower() not in (*known, ".yaml", ".yml", ".json"):
        problem = "is not a YAML file"
    else:
        return
    raise UsageError(
        f"config: {name} {problem}: if it holds the pictures, give it as --source, and a folder as --output"
    )


def run_options(command: F) -> F:
    """Add CONFIG.yaml, or --source and --output, and --set for the rest; ``read_run_config`` reads them."""
    return _add(
        command,
        config_argument,
        click.option("--source", help="Folder, file or prefix with the originals; any fsspec URI."),
        click.option("--output", help="Where the release goes; any fsspec URI."),
        click.option("--level", type=float, help="Anonymity level in (0, 1]: the share of the training schedule."),
        model_option,
        set_option,
    )


def read_run_config(
    config: str | None, source: str | None, output: str | None, level: float | None, model: str | None,
    overrides: tuple[str, ...],
) -> RunConfig:  # fmt: skip
    """Return the settings of a run from the values of ``run_options``."""
    from anonymizer.config import RunConfig

    if config is None and (source is None or output is None):
        raise UsageError("config: none given: name a CONFIG.yaml, or give --source and --output")
    options = {"source.uri": source, "output.uri": output, "boomerang.level": level, "model.id": model}
    return build_config(RunConfig, config, options, overrides)


def attacker_options(command: F) -> F:
    """Add what attackers have, and how hard they try; ``read_attackers`` reads the values."""
    return _add(
        command,
        click.option("--identity", help="What tells people apart: 'folder', or a column of the source."),
        click.option("--others", "others_uri", help="Other photos of the same people, in a folder for each; any URI."),
        click.option("--outsiders", "outsiders_uri", help="Photos of people who are not in the release."),
        click.option("--training", "training_uri", help="Pictures that the diffusion model was trained on."),
        click.option("--attributes", callback=split_names, help="Columns to read off outputs: age,gender."),
        click.option("--features", callback=split_names, help="Features: pixels,lpips,clip,imagenet,dlib,filter."),
        click.option("--attacks", callback=split_names, help="Attacks to try: linkage,reidentification."),
        click.option("--sample", type=int, help="How many records to attack, drawn by chance."),
    )


def read_attackers(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are given as settings, ``a.b`` -> value."""
    given = {name.replace("_uri", ".uri"): value for name, value in options.items() if value is not None}
    return given | ({"others.label": "folder"} if "others.uri" in given else {})


def _add(command: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        command = option(command)
    return command
