"""The commands that govern releases: keys, approvals, verification, erasure, what is restricted."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from flows.cli.options import as_json, quiet


@click.command()
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
    from flows.cli import governance_reports

    governance_reports.keys(name, folder, kind)


@click.command()
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
    from flows.cli import governance_reports

    governance_reports.approve(release, key, key_env, trust)


@click.command()
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
    from flows.cli import governance_reports

    if not governance_reports.verify(path, trust, decode=decode, rescore=rescore, replay=replay, as_json=as_json):
        sys.exit(1)


@click.command()
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
    from flows.cli import governance_reports

    governance_reports.erase(release, records, output, as_json=as_json, quiet=quiet)


@click.command()
@click.argument("file")
@click.option("--identity", required=True, help="File with an age private key, or an environment variable with one.")
@click.option("--output", required=True, help="A new file, for you alone.")
def unseal(file: str, identity: str, output: str) -> None:
    """Decrypt a file of the restricted half.

    \b
    anonymizer unseal releases/2026-11/restricted/report.html.age --identity vault.key --output report.html
    """
    from flows.cli import custody

    custody.unseal(file, identity, output)


@click.command()
@click.argument("release")
@as_json
def purge(release: str, as_json: bool) -> None:
    """Remove what has been kept long enough.

    See restricted.picture_days and restricted.record_days; `status` says what is due.
    """
    from flows.cli import governance_reports

    governance_reports.purge(release, as_json=as_json)


COMMANDS = (keys, approve, verify, erase, unseal, purge)
