"""The command line: ``anonymizer COMMAND``. A command imports what is heavy when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from anonymizer.errors import AnonymizerError, LevelError, UsageError
from flows.cli import audit, augment, demo, enhance, governance, inspect, release, worker

# What Ctrl-C leaves behind, where it is not a release that the same command finishes.
STOPPED = {
    "augment": "what was drawn stays; begin again in a new folder",
    "enhance": "what was enlarged stays; begin again in a new folder",
}


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
            if isinstance(error, LevelError):
                click.echo(f"measured: {error.figures}", err=True)
            for note in getattr(error, "__notes__", ()):
                click.echo(f"caution: {note}", err=True)
            sys.exit(2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            advice = STOPPED.get(ctx.invoked_subcommand or "", "run the same command again to finish what is left")
            click.echo(f"stopped: {advice}", err=True)
            sys.exit(130)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="anonymizer")
def main() -> None:
    """Release image datasets without releasing the people in them.

    Pictures go through Boomerang (partial noising, then a diffusion model's way back), are scored against their
    originals, and come out as a documented release. A level is a setting, not a guarantee: measure the risk.
    """


for module in (release, audit, inspect, demo, governance, augment, enhance, worker):
    for command in module.COMMANDS:
        main.add_command(command)
