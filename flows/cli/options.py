"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from anonymizer.errors import UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from anonymizer.config import RunConfig

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound="BaseModel")


def run_options(command: F) -> F:
    """CONFIG.yaml, or --source and --output; --set for the rest."""
    options = [
        click.argument("config", required=False),
        click.option("--source", help="Folder, file or prefix with the originals; any fsspec URI."),
        click.option("--output", help="Where the release goes; any fsspec URI."),
        click.option("--level", type=float, help="Anonymity level in (0, 1]: the share of the training schedule."),
        click.option("--model", help="bundled:NAME, a folder or its URI, or a hub id (then --set model.revision=...)."),
        click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Any other setting; repeatable."),
    ]

    @wraps(command)
    def with_config(
        config: str | None, source: str | None, output: str | None, level: float | None, model: str | None,
        overrides: tuple[str, ...], **rest: Any,
    ) -> Any:  # fmt: skip
        return command(_run_config(config, source, output, level, model, overrides), **rest)

    for option in reversed(options):
        with_config = option(with_config)  # type: ignore[assignment]
    return with_config  # type: ignore[return-value]


def _run_config(
    path: str | None,
    source: str | None,
    output: str | None,
    level: float | None,
    model: str | None,
    overrides: tuple[str, ...],
) -> RunConfig:
    if path is None and (source is None or output is None):
        raise UsageError("config: none given: name a CONFIG.yaml, or give --source and --output")
    short = {"source.uri": source, "output.uri": output, "boomerang.level": level, "model.id": model}
    return build_run_config(path, drop_unset(short), overrides)


def drop_unset(options: dict[str, Any]) -> dict[str, Any]:
    """Those options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def build_run_config(path: str | None, given: dict[str, Any], overrides: tuple[str, ...]) -> RunConfig:
    """The settings of a run from a file, if there is one, options and overrides."""
    from anonymizer.config import RunConfig

    return build_config(RunConfig, path, given, overrides)


def build_config(kind: type[C], path: str | None, given: dict[str, Any], overrides: tuple[str, ...]) -> C:
    """Settings of some kind from a file, if there is one, options and overrides."""
    from anonymizer.config import read_tree
    from anonymizer.policy.calibration import build_resolved

    if path is None:
        return build_resolved(kind, {}, overrides, given)
    _refuse_source_as_config(path)
    return build_resolved(kind, read_tree(path), overrides, given)


def _refuse_source_as_config(path: str) -> None:
    """A source that stands where a configuration belongs; an address may hold a password and is not repeated."""
    name, known = ("an address", ()) if "://" in path else (repr(path), ("",))
    if Path(path).is_dir():
        what = "is a directory"
    elif Path(path).suffix.lower() not in (*known, ".yaml", ".yml", ".json"):
        what = "is not a YAML file"
    else:
        return
    raise UsageError(f"config: {name} {what}: if it holds the pictures, give it as --source, and a folder as --output")


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress bar.")


def split_names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def attacker_options(command: F) -> F:
    """What attackers have, and how hard they try; handed on as ``attackers``, dotted names and their values."""
    options = [
        click.option("--identity", help="What tells people apart: 'folder', or a column of the source."),
        click.option("--others", "others_uri", help="Other photos of the same people, in a folder for each; any URI."),
        click.option("--outsiders", "outsiders_uri", help="Photos of people who are not in the release."),
        click.option("--training", "training_uri", help="Pictures that the diffusion model was trained on."),
        click.option("--attributes", callback=split_names, help="Columns to read off outputs: age,gender."),
        click.option("--features", callback=split_names, help="What to compare by: pixels,lpips,clip,imagenet,dlib."),
        click.option("--attacks", callback=split_names, help="Attacks to try: linkage,reidentification."),
        click.option("--sample", type=int, help="How many records to attack, drawn by chance."),
    ]
    named = ("identity", "others_uri", "outsiders_uri", "training_uri", "attributes", "features", "attacks", "sample")

    @wraps(command)
    def with_attackers(**given: Any) -> Any:
        values = {name: given.pop(name) for name in named}
        attackers = {name.replace("_uri", ".uri"): value for name, value in values.items() if value is not None}
        if "others.uri" in attackers:
            attackers["others.label"] = "folder"
        return command(attackers=attackers, **given)

    for option in reversed(options):
        with_attackers = option(with_attackers)  # type: ignore[assignment]
    return with_attackers  # type: ignore[return-value]
