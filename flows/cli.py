"""The command line: ``anonymizer COMMAND``. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from anonymizer.errors import AnonymizerError, UsageError

if TYPE_CHECKING:
    from anonymizer.config import RunConfig

F = TypeVar("F", bound=Callable[..., Any])


class Group(click.Group):
    """Turns errors into one line and an exit status: 1, the answer is no; 2, bad usage or input."""

    def main(self, *args: Any, **extra: Any) -> Any:
        run: Callable[..., Any] = super().main
        if not extra.pop("standalone_mode", True):
            return run(*args, standalone_mode=False, **extra)
        try:
            status = run(*args, standalone_mode=False, **extra)
            sys.exit(status if isinstance(status, int) else 0)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(error.exit_code)
        except click.ClickException as error:
            command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "anonymizer"
            text = " ".join(error.format_message().split()).rstrip(".")
            click.echo(f"error: {text}: see `{command} --help`", err=True)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            sys.exit(130)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AnonymizerError as error:
            click.echo(f"error: {error}", err=True)
            for note in getattr(error, "__notes__", ()):
                click.echo(f"caution: {note}", err=True)
            sys.exit(2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            click.echo("stopped: run the same command again to finish what is left", err=True)
            sys.exit(130)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="anonymizer")
def main() -> None:
    """Release image datasets without releasing the people in them.

    Pictures go through Boomerang (partial noising, then a diffusion model's way back), are scored against their
    originals, and come out as a documented release. A level is a setting, not a guarantee: measure the risk.
    """


def run_options(command: F) -> F:
    """CONFIG.yaml, or --source and --output; --set for the rest."""
    options = [
        click.argument("config", required=False),
        click.option("--source", help="Folder, file or prefix with the originals; any fsspec URI."),
        click.option("--output", help="Where the release goes; any fsspec URI."),
        click.option("--level", type=float, help="Anonymity level in (0, 1]: the share of the training schedule."),
        click.option("--model", help="bundled:NAME, a local folder, or a hub id (then --set model.revision=...)."),
        click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Any other setting; repeatable."),
    ]

    @wraps(command)
    def with_config(
        config: str | None, source: str | None, output: str | None, level: float | None, model: str | None,
        overrides: tuple[str, ...], **rest: Any,
    ) -> Any:  # fmt: skip
        return command(_config(config, source, output, level, model, overrides), **rest)

    for option in reversed(options):
        with_config = option(with_config)  # type: ignore[assignment]
    return with_config  # type: ignore[return-value]


def _config(
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
    return _built(path, {name: value for name, value in short.items() if value is not None}, overrides)


def _built(path: str | None, given: dict[str, Any], overrides: tuple[str, ...]) -> RunConfig:
    from anonymizer import config

    if path is not None:
        _refuse_source(path)
    return config.build({}, overrides, given) if path is None else config.load(path, overrides, given)


def _refuse_source(path: str) -> None:
    """A source that stands where a configuration belongs; an address may hold a password and is not repeated."""
    name = "an address" if "://" in path else repr(path)
    if Path(path).is_dir():
        what = "is a directory"
    elif "://" in path or Path(path).suffix.lower() not in ("", ".yaml", ".yml", ".json"):
        what = "is not a YAML file"
    else:
        return
    raise UsageError(f"config: {name} {what}: if it holds the pictures, give it as --source, and a folder as --output")


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
quiet = click.option("-q", "--quiet", is_flag=True, help="No progress bar.")


@main.command()
@run_options
@as_json
@quiet
def run(config: RunConfig, as_json: bool, quiet: bool) -> None:
    """Make a release.

    \b
    anonymizer run CONFIG.yaml
    anonymizer run --source photos/ --output release/ --level 0.6

    A run that was stopped is finished by the same command.
    """
    from flows import commands

    commands.run(config, as_json=as_json, quiet=quiet)


@main.command()
@run_options
@as_json
@quiet
def plan(config: RunConfig, as_json: bool, quiet: bool) -> None:
    """Say what `run` would do, and for how long.

    Writes nothing, and refuses what `run` would refuse.
    """
    from flows import commands

    commands.plan(config, as_json=as_json, quiet=quiet)


@main.command()
@click.argument("release")
@as_json
def status(release: str, as_json: bool) -> None:
    """Say how far a release is."""
    from flows import commands

    commands.status(release, as_json=as_json)


@main.command()
@click.argument("release")
@click.argument("output_id", required=False)
@as_json
def inspect(release: str, output_id: str | None, as_json: bool) -> None:
    """Show a release's settings, or one output.

    With an OUTPUT_ID, its row of the manifest.
    """
    from flows import catalog

    catalog.inspect(release, output_id, as_json=as_json)


def _names(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return None if value is None else tuple(part.strip() for part in value.split(",") if part.strip())


def attacker_options(command: F) -> F:
    """What attackers have, and how hard they try; handed on as ``attackers``, dotted names and their values."""
    options = [
        click.option("--identity", help="What tells people apart: 'folder', or a column of the source."),
        click.option("--others", "others_uri", help="Other photos of the same people, in a folder for each; any URI."),
        click.option("--outsiders", "outsiders_uri", help="Photos of people who are not in the release."),
        click.option("--training", "training_uri", help="Pictures that the diffusion model was trained on."),
        click.option("--attributes", callback=_names, help="Columns to read off outputs: age,gender."),
        click.option("--features", callback=_names, help="What to compare by: pixels,lpips,clip,imagenet,dlib."),
        click.option("--attacks", callback=_names, help="Attacks to try: linkage,reidentification."),
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


@main.command()
@click.argument("release")
@attacker_options
@click.option("--union", multiple=True, help="An earlier release, attacked together with this one; repeatable.")
@click.option("--skip", callback=_names, help="Attacks to leave out: inversion,parrot.")
@click.option("--baselines", callback=_names, help="Attack these too: round-trip,blur,pixelation,global,unrelated.")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Any other setting; repeatable.")
@as_json
@quiet
def audit(
    release: str, attackers: dict[str, Any], overrides: tuple[str, ...], as_json: bool, quiet: bool, **given: Any
) -> None:
    """Attack a release and say what was found.

    \b
    anonymizer audit releases/2026-11
    anonymizer audit releases/2026-11 --identity folder --others more-photos/
    anonymizer audit releases/2026-11 --union releases/2026-10 --union releases/2026-09
    """
    from anonymizer.config import AuditConfig, build_as
    from flows import commands

    named = {"release": release} | attackers | {name: value for name, value in given.items() if value is not None}
    commands.audit(build_as(AuditConfig, {}, overrides, named), as_json=as_json, quiet=quiet)


@main.command()
@click.argument("config", required=False)
@click.option("--source", help="Folder, file or prefix with originals, where there is no CONFIG.")
@click.option("--kind", help="What is on the pictures, in your words: source.kind.")
@click.option("--model", help="bundled:NAME, a local folder, or a hub id (then --set model.revision=...).")
@click.option("--levels", help="Levels to measure: FIRST:LAST:STEP, or a list with commas.  [default: .1:.9:.1]")
@attacker_options
@click.option("--folder", help="Where calibration.json, tables and plots go.  [default: calibration]")
@click.option(
    "--set", "overrides", multiple=True, metavar="A.B=VALUE",
    help="Any other setting of the run, or calibration.A.B of the calibration; repeatable.",
)  # fmt: skip
@as_json
@quiet
def calibrate(
    config: str | None, source: str | None, kind: str | None, model: str | None, levels: str | None,
    attackers: dict[str, Any], folder: str | None, overrides: tuple[str, ...], as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Measure risk and utility at several levels.

    \b
    anonymizer calibrate CONFIG.yaml --levels .1:.9:.1 --identity folder
    anonymizer calibrate --source photos/ --kind "passport photos" --outsiders strangers/

    Half of the people choose a level and the other half confirm it. A run takes the level from the result with
    `boomerang.level: {calibration: calibration/calibration.json, max_risk: 0.05}`.
    """
    from anonymizer.config import CalibrationConfig, build_as
    from flows import commands

    own = "calibration."
    of_run = tuple(override for override in overrides if not override.startswith(own))
    rest = tuple(override.removeprefix(own) for override in overrides if override.startswith(own))
    short = {"source.uri": source, "source.kind": kind, "model.id": model}
    if config is None:
        if source is None:
            raise UsageError("config: none given: name a CONFIG.yaml, or give --source")
        short["output.uri"] = folder or "calibration"  # nothing is released
    swept = {"boomerang.level": 1.0, "boomerang.chosen": None}  # whatever stands there: all of --levels are measured
    run = _built(config, swept | {name: value for name, value in short.items() if value is not None}, of_run)
    named = {"levels": levels, "folder": folder} | attackers
    given = {name: value for name, value in named.items() if value is not None}
    commands.calibrate(
        build_as(CalibrationConfig, {"run": run.model_dump()}, rest, given), as_json=as_json, quiet=quiet
    )


@main.command()
@click.argument("name")
@click.option(
    "--folder", default="keys", show_default=True, type=click.Path(file_okay=False, path_type=Path),
    help="Where NAME.key and NAME.pub go.",
)  # fmt: skip
@click.option(
    "--kind", default="signing", show_default=True, type=click.Choice(["signing", "age", "custodian"]),
    help="To sign and approve with; to encrypt what is restricted; to derive ids and noise from.",
)  # fmt: skip
def keys(name: str, folder: Path, kind: str) -> None:
    """Make a key pair.

    \b
    anonymizer keys alice
    anonymizer keys vault --kind age
    """
    from flows import governance

    governance.keys(name, folder, kind)


@main.command()
@click.argument("release")
@click.option("--key", type=click.Path(dir_okay=False, path_type=Path), help="File of your private key.")
@click.option(
    "--key-env", default="ANONYMIZER_SIGNING_KEY", show_default=True, help="Variable with it, where no file is given."
)
@click.option("--trust", multiple=True, help="A public key, or its file, that the publisher's must be; repeatable.")
def approve(release: str, key: Path | None, key_env: str, trust: tuple[str, ...]) -> None:
    """Sign a release that waits for approval.

    It is checked first, and published by the last approval that it waits for.

    \b
    anonymizer approve releases/2026-11 --key keys/alice.key
    """
    from flows import governance

    governance.approve(release, key, key_env, trust)


@main.command()
@click.argument("path")
@click.option("--trust", multiple=True, help="A public key, or its file, that the publisher's must be; repeatable.")
@click.option(
    "--decode", type=click.IntRange(0),
    help="About how many pictures to decode; every file is read and its digest checked all the same.  [default: all]",
)  # fmt: skip
@click.option(
    "--rescore", type=click.IntRange(0), help="Pictures to score again.  [default: 8, where originals are at hand]",
)  # fmt: skip
@click.option("--replay", default=0, type=click.IntRange(0), help="Pictures to draw again, with the custodian's key.")
@as_json
def verify(
    path: str, trust: tuple[str, ...], decode: int | None, rescore: int | None, replay: int, as_json: bool
) -> None:
    """Check a release, or its public half alone.

    \b
    anonymizer verify releases/2026-11/public --trust publisher.pub
    anonymizer verify releases/2026-11 --replay 4
    """
    from flows import governance

    if not governance.verify(path, trust, decode=decode, rescore=rescore, replay=replay, as_json=as_json):
        sys.exit(1)


@main.command()
@click.argument("release")
@click.option(
    "--records", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="File with a record id, or subject:NAME, on each line.",
)  # fmt: skip
@click.option("--output", required=True, help="Where the new release goes; any fsspec URI.")
@as_json
@quiet
def erase(release: str, records: Path, output: str, as_json: bool, quiet: bool) -> None:
    """Take people out of a release.

    Writes a new release without them and a signed list of what is revoked, and destroys the old release.

    \b
    anonymizer erase releases/2026-11 --records withdrawn.txt --output releases/2026-11b
    """
    from flows import governance

    governance.erase(release, records, output, as_json=as_json, quiet=quiet)


@main.command()
@click.argument("file")
@click.option("--identity", required=True, help="File with an age private key, or an environment variable with one.")
@click.option("--output", required=True, help="A new file, for you alone.")
def unseal(file: str, identity: str, output: str) -> None:
    """Decrypt a file of the restricted half.

    \b
    anonymizer unseal releases/2026-11/restricted/report.html.age --identity vault.key --output report.html
    """
    from flows import custody

    custody.unseal(file, identity, output)


@main.command()
@click.argument("release")
@as_json
def purge(release: str, as_json: bool) -> None:
    """Remove what has been kept long enough.

    See restricted.picture_days and restricted.record_days; `status` says what is due.
    """
    from flows import governance

    governance.purge(release, as_json=as_json)


@main.command()
@click.argument("name", required=False)
@as_json
def models(name: str | None, as_json: bool) -> None:
    """List the bundled models, or print the card of one.

    A folder in diffusers' format or a hub id works wherever a bundled model does.
    """
    from flows import catalog

    catalog.models(name, as_json=as_json)


@main.command()
@click.option(
    "--output",
    default="demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="A new folder, or one of an earlier demo, which is replaced.",
)
@click.option(
    "--pictures", default=48, show_default=True, type=click.IntRange(4, 1000), help="How many people to invent."
)
@click.option("--level", default=0.6, show_default=True, help="Anonymity level in (0, 1].")
@quiet
def demo(output: Path, pictures: int, level: float, quiet: bool) -> None:
    """Release an invented dataset full of leaks.

    Invents people who do not exist, plants leaks in their pictures, releases them, and looks for each leak in the
    result.
    """
    from flows import demo

    demo.run(output, pictures, level, quiet=quiet)


if __name__ == "__main__":
    main()
