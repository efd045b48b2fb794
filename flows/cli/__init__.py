"""The command line: ``anonymizer COMMAND``. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anonymizer.errors import AnonymizerError, UsageError
from flows.cli import augment, enhance, governance
from flows.cli.options import as_json, attacker_options, build_run_config, quiet, run_options, split_names

if TYPE_CHECKING:
    from anonymizer.config import RunConfig


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
    from flows.cli import release as release_commands

    release_commands.run(config, as_json=as_json, quiet=quiet)


@main.command()
@click.argument("release")
@click.option("--failed", is_flag=True, required=True, help="Redo failed records.")
@click.option("--reason", "reasons", multiple=True, help="Only those that failed for this reason; repeatable.")
@as_json
@quiet
def retry(release: str, failed: bool, reasons: tuple[str, ...], as_json: bool, quiet: bool) -> None:
    """Redo what failed in a release that is not published.

    \b
    anonymizer retry --failed releases/2026-11
    anonymizer retry --failed --reason unreadable releases/2026-11

    All that did not fail stands. Then the release is finished as `run` would finish it.
    """
    from flows.cli import release as release_commands

    release_commands.retry(release, reasons, as_json=as_json, quiet=quiet)


@main.command()
@run_options
@as_json
@quiet
def plan(config: RunConfig, as_json: bool, quiet: bool) -> None:
    """Say what `run` would do, and for how long.

    Writes nothing, and refuses what `run` would refuse.
    """
    from flows.cli import release as release_commands

    release_commands.plan(config, as_json=as_json, quiet=quiet)


@main.command()
@click.argument("release")
@click.option("--profile", is_flag=True, help="Say where the time went, too.")
@as_json
def status(release: str, profile: bool, as_json: bool) -> None:
    """Say how far a release is."""
    from flows.cli import release as release_commands

    release_commands.status(release, profile=profile, as_json=as_json)


@main.command()
@click.argument("release")
@click.argument("output_id", required=False)
@as_json
def inspect(release: str, output_id: str | None, as_json: bool) -> None:
    """Show a release's settings, or one output.

    With an OUTPUT_ID, its row of the manifest.
    """
    from flows.cli import catalog

    catalog.inspect(release, output_id, as_json=as_json)


@main.command()
@click.argument("release")
@attacker_options
@click.option("--union", multiple=True, help="An earlier release, attacked together with this one; repeatable.")
@click.option("--skip", callback=split_names, help="Attacks to leave out: inversion,parrot.")
@click.option(
    "--baselines", callback=split_names, help="Attack these too: round-trip,blur,pixelation,global,unrelated."
)
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
    from flows.cli import release as release_commands

    named = {"release": release} | attackers | {name: value for name, value in given.items() if value is not None}
    release_commands.audit(build_as(AuditConfig, {}, overrides, named), as_json=as_json, quiet=quiet)


@main.command()
@click.argument("config", required=False)
@click.option("--source", help="Folder, file or prefix with originals, where there is no CONFIG.")
@click.option("--kind", help="What is on the pictures, in your words: source.kind.")
@click.option("--model", help="bundled:NAME, a folder or its URI, or a hub id (then --set model.revision=...).")
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
    from flows.cli import release as release_commands

    own = "calibration."
    of_run = tuple(override for override in overrides if not override.startswith(own))
    rest = tuple(override.removeprefix(own) for override in overrides if override.startswith(own))
    short = {"source.uri": source, "source.kind": kind, "model.id": model}
    if config is None:
        if source is None:
            raise UsageError("config: none given: name a CONFIG.yaml, or give --source")
        short["output.uri"] = folder or "calibration"  # nothing is released
    swept = {"boomerang.level": 1.0, "boomerang.chosen": None}  # whatever stands there: all of --levels are measured
    run = build_run_config(config, swept | {name: value for name, value in short.items() if value is not None}, of_run)
    named = {"levels": levels, "folder": folder} | attackers
    given = {name: value for name, value in named.items() if value is not None}
    release_commands.calibrate(
        build_as(CalibrationConfig, {"run": run.model_dump()}, rest, given), as_json=as_json, quiet=quiet
    )


@main.command()
@click.argument("name", required=False)
@as_json
def models(name: str | None, as_json: bool) -> None:
    """List the bundled models, or print the card of one.

    A folder in diffusers' format or a hub id works wherever a bundled model does.
    """
    from flows.cli import catalog

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
    from flows.cli import demo_run

    demo_run.run(output, pictures, level, quiet=quiet)


for command in governance.COMMANDS:
    main.add_command(command)
main.add_command(augment.augment)
main.add_command(enhance.enhance)
