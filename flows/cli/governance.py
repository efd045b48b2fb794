"""Commands that govern releases: keys, approve, verify, erase, unseal, purge."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anonymizer.errors import OutputError, SigningKeyError, SourceError, UsageError
from anonymizer.storage import run_lock
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.cli import console
from flows.cli.options import as_json, open_to_change, quiet, without_key
from flows.lineage.emit import emit_run_events
from flows.start import run_flow

if TYPE_CHECKING:
    from anonymizer.attest.verify import Finding

trust_option = click.option(
    "--trust", multiple=True, help="A public key, or its file, that the publisher's must be; repeatable."
)


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
    private_file, public_file = make_keys(name, folder, kind)
    title, use = {
        "signing": (
            "A key to sign and approve with",
            f"To publish: ANONYMIZER_SIGNING_KEY={private_file}. To approve: --key {private_file}.",
        ),
        "age": (
            "A key to encrypt to",
            "Name the public key in restricted.recipients. Only the secret file opens what is encrypted to it.",
        ),
        "custodian": (
            "A custodian's key",
            f"To use it: export ANONYMIZER_KEY=$(cat {private_file}). Who loses it can replay nothing.",
        ),
    }[kind]
    facts: dict[str, object] = {"keep secret": private_file, "public": public_file}
    console.print_facts(title, facts | {"key": public_file.read_text().strip() if public_file else None})
    console.print_line(use)


@click.command()
@click.argument("release")
@click.option("--key", type=click.Path(dir_okay=False, path_type=Path), help="File of your private key.")
@click.option(
    "--key-env", default="ANONYMIZER_SIGNING_KEY", show_default=True, help="Variable with it, where no file is given."
)
@click.option(
    "--trust", required=True, multiple=True, help="The publisher's public key, or its file; repeatable."
)  # fmt: skip
@click.option("--statement", metavar="SHA256", help="The statement of RELEASE, where you see it under another path.")
def approve(release: str, key: Path | None, key_env: str, trust: tuple[str, ...], statement: str | None) -> None:
    """Sign a release that waits for approval.

    It is checked first, and published by the last approval that it waits for.

    \b
    anonymizer approve releases/2026-11 --key keys/alice.key --trust publisher.pub
    """
    from anonymizer.crypto import signing
    from anonymizer.release import publish, succession
    from flows.api import read_public_keys

    opened, trusted = Release.at(release), read_public_keys(trust)
    signer = signing.signer_from_file(key) if key else signing.signer_from_env(key_env)
    if signer is None:
        raise SigningKeyError(f"--key: none given, and {key_env} is not set: name the file of your private key")
    if not opened.statement.exists():
        raise SourceError(f"release {release!r}: nothing to approve yet: see `anonymizer status {release}`")
    before = publish.read_status(opened)
    with run_lock.exclusive_run(release):
        status = publish.approve(opened, signer, trusted, statement, _print_approved)
    names = ", ".join(status.approved_by)
    is_new = before is None or before.approved_by != status.approved_by
    title = "Approved" if is_new else "Already approved with this key: nothing was added"
    replaced = "destroyed, but for its event log" if status.is_published and succession.is_successor(opened) else None
    console.print_facts(
        f"{title}; published" if status.is_published else title,
        {
            "approvals": f"{len(status.approved_by)} of {status.required_approvals} ({names})",
            "state": status,
            "handed out" if status.is_published else "waits in": opened.public_or_candidate,
            "the release before it": replaced,
        },
    )


def _print_approved(findings: Sequence[Finding]) -> None:
    main_findings = [finding for finding in findings if finding.check in ("signature", "gate", "counts")]
    console.print_findings("What is approved", main_findings)


@click.command()
@click.argument("path")
@trust_option
@click.option(
    "--decode", type=click.IntRange(0),
    help="About how many pictures to decode; every file is read and its digest checked all the same.  [default: all]",
)  # fmt: skip
@click.option(
    "--rescore", type=click.IntRange(0), help="Pictures to score again.  [default: 8, where originals are at hand]",
)  # fmt: skip
@click.option("--replay", default=0, type=click.IntRange(0), help="Pictures to draw again, with the custodian's key.")
@click.option(
    "--approvers", type=click.Path(dir_okay=False),
    help="YAML file with the approvers' public keys by name, as you know them: no other approval counts.",
)  # fmt: skip
@click.option(
    "--revocations", multiple=True,
    help="List of what was revoked since (file, URI or public half), in which no picture here may be; repeatable.",
)  # fmt: skip
@click.option("--seal", is_flag=True, help="Seal a release of an earlier version, if no check of it fails.")
@as_json
def verify(
    path: str, trust: tuple[str, ...], decode: int | None, rescore: int | None, replay: int, approvers: str | None,
    revocations: tuple[str, ...], seal: bool, as_json: bool,
) -> None:  # fmt: skip
    """Check a release, or only its public half.

    With --trust nothing of a release by another publisher is read but its signature.

    \b
    anonymizer verify releases/2026-11/public --trust publisher.pub --approvers approvers.yaml
    anonymizer verify releases/2026-11/public --trust publisher.pub --revocations releases/2026-12/public
    anonymizer verify releases/2026-11 --replay 4
    """
    if not verify_release(
        path, trust, decode=decode, rescore=rescore, replay=replay, approvers=approvers, revocations=revocations,
        seal=seal, as_json=as_json,
    ):  # fmt: skip
        sys.exit(1)


@click.command()
@click.argument("release")
@click.option(
    "--records", type=click.Path(dir_okay=False, path_type=Path),
    help="File with a record id, or subject:NAME, on each line.",
)  # fmt: skip
@click.option("--output", help="Where the new release goes; any fsspec URI.")
@click.option("--cancel", metavar="WHY", help="Give up an erasure that is not finished, and log why.")
@click.option(
    "--trust", multiple=True, help="A public key, or its file, that may have signed RELEASE besides yours; repeatable."
)  # fmt: skip
@click.option("--statement", metavar="SHA256", help="The statement of RELEASE, where it was moved on purpose.")
@as_json
@quiet
def erase(
    release: str, records: Path | None, output: str | None, cancel: str | None, trust: tuple[str, ...],
    statement: str | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Take people out of a release.

    Checks all of the old release, then writes a new one without them and a signed list of what is revoked. When the
    new release is published, the old one is destroyed; nothing is erased before that.

    \b
    anonymizer erase releases/2026-11 --records withdrawn.txt --output releases/2026-11b
    """
    from flows.api import read_public_keys
    from flows.jobs import erase as erase_job

    if cancel is not None:
        _cancel_erasure(release, cancel)
        return
    if records is None or output is None:
        raise UsageError("--records, --output: name the file of who is to be erased, and where the new release goes")
    trusted = read_public_keys(trust)
    settings = erase_job.check(release, records, output, trusted, statement)
    with console.progress_bar(quiet or as_json), emit_run_events(settings, "erase", output) as outcome:
        secrets = (settings.key_env, settings.signing_key_env)
        summary = run_flow("erase", release, str(records), output, trusted, statement, secrets=secrets)
    cautions = [*_list_erasure_cautions(Release.at(release), Release.at(output)), *outcome.problems]
    if as_json:
        click.echo(json.dumps(summary | {"cautions": cautions}))
    else:
        _print_erasure(summary, Release.at(release), Release.at(output))
        console.print_cautions(cautions)


def _cancel_erasure(release: str, reason: str) -> None:
    from anonymizer.release import plan, succession

    successor = succession.cancel(plan.open_with_key(release), reason)
    console.print_line(f"Cancelled: {release} stays as it is, and what was prepared at {successor} is removed.")


def _list_erasure_cautions(old: Release, new: Release) -> list[str]:
    from anonymizer.release import history

    earlier = [repr(str(one.root)) for one in history.predecessors(new) if str(one.root) != str(old.root)]
    known = f" ({', '.join(earlier)} came before)" if earlier else ""
    return [
        "copies that were handed out before cannot be called back: hand out revocations.intoto.jsonl",
        f"releases before and after it may hold the same people{known}: erase them there too",
        "the originals are where they were: delete them there, and in backups",
    ]


def _print_erasure(summary: Mapping[str, Any], old: Release, new: Release) -> None:
    if summary["published"]:
        title = f"Erased {summary['erased']} records; {summary['released']} pictures remain"
        revoked, standing = f"{summary['revoked']} pictures", f"destroyed, but for {old.event_log}"
    else:
        title = f"Nothing is erased yet: {summary['pending']} records wait until the new release is published"
        revoked, standing = None, "still there, with all of them"
    facts = {"state": summary["standing"], "revoked": revoked, "the old release": standing, "new release": new.root}
    console.print_facts(title, facts)
    if not summary["published"]:
        console.print_line("The last approval, or this same command, publishes the new one and destroys the old one.")


@click.command()
@click.argument("file")
@click.option("--identity", required=True, help="File with an age private key, or an environment variable with one.")
@click.option("--output", required=True, help="A new file, which only you can read.")
def unseal(file: str, identity: str, output: str) -> None:
    """Decrypt a file of the restricted half.

    \b
    anonymizer unseal releases/2026-11/restricted/report.html.age --identity vault.key --output report.html
    """
    unseal_file(file, identity, output)
    console.print_facts("Opened", {"file": file, "written to": StoragePath.from_uri(output)})


@click.command()
@click.argument("release")
@without_key
@as_json
def purge(release: str, without_key: bool, as_json: bool) -> None:
    """Delete data past its retention period.

    See restricted.picture_days and restricted.record_days; `status` says what is due.
    """
    from anonymizer.release import retention
    from anonymizer.release.plan import resolve_config

    opened = open_to_change(release, without_key)
    terms = retention.purge(opened, resolve_config(opened).restricted, datetime.now(UTC))
    if as_json:
        click.echo(json.dumps({"purged": {term.kind: term.remaining for term in terms}}))
    else:
        purged = ", ".join(f"{term.kind} ({term.remaining} places)" for term in terms)
        console.print_line(f"Purged: {purged}" if terms else f"Nothing is due: see `anonymizer status {release}`")


def make_keys(name: str, folder: Path, kind: str) -> tuple[Path, Path | None]:
    """Write a new secret, for its owner only, and its public half, if it has one; return both files.

    Never replaces a key: OutputError if a file of the name exists.
    """
    if not name.isidentifier():
        raise UsageError(f"NAME {name!r}: must be letters, digits and _, as in 'alice'")
    private_file, public_file = folder / f"{name}.key", folder / f"{name}.pub"
    for file in (private_file, public_file):
        if file.exists():
            raise OutputError(f"{str(file)!r}: is there already: choose another NAME, keys are not replaced")
    secret, public = _generate_key(kind)
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.open(private_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(secret)
    if public is None:
        return private_file, None
    public_file.write_text(public + "\n")
    return private_file, public_file


def _generate_key(kind: str) -> tuple[bytes, str | None]:
    if kind == "custodian":
        return secrets.token_hex(32).encode() + b"\n", None
    if kind == "age":
        import pyrage

        identity = pyrage.x25519.Identity.generate()
        return f"{identity}\n".encode(), str(identity.to_public())
    from anonymizer.crypto import signing

    signer = signing.generate_key_pair()
    return signer.private_bytes, signing.format_public_key(signer.public_key)


def verify_release(
    uri: str, trust: Sequence[str] = (), *, rescore: int | None = 0, as_json: bool = False, **settings: Any
) -> bool:  # fmt: skip
    """Check a release or a public half and print the findings; return whether no check failed.

    ``settings`` are those of ``flows.api.verify``.
    """
    from flows import api

    findings = api.verify(uri, trust, rescore=rescore, **settings)
    passed = not any(finding.result == "fail" for finding in findings)
    if as_json:
        click.echo(json.dumps({"passed": passed, "findings": [finding.to_json() for finding in findings]}))
    else:
        console.print_findings(f"{'Verified' if passed else 'NOT as it should be'}: {uri}", findings)
    return passed


def unseal_file(file: str, identity: str, output: str) -> None:
    """Decrypt ``file`` (any address) to a new file ``output`` that is for its owner only.

    ``identity`` names a file with an age private key, or an environment variable that holds one; it is never the key.
    """
    from anonymizer.crypto import encryption

    key = _read_identity(identity)
    try:
        data = StoragePath.from_uri(file).read()
    except OSError as error:
        raise UsageError(
            f"file {file!r}: cannot be read ({error.strerror or type(error).__name__}): name a .age file"
        ) from None
    opened = encryption.decrypt(data, key)
    if not StoragePath.from_uri(output).as_private().create(opened):
        raise UsageError(f"output {output!r}: is there already: name a new file")


def _read_identity(name: str) -> str:
    from anonymizer.crypto.encryption import PRIVATE_KEY_PREFIX

    if PRIVATE_KEY_PREFIX in name.upper():  # it is not repeated
        raise UsageError("identity: holds the key itself, which others may see now: put it into a file and name that")
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        if (text := os.environ.get(name)) is not None:
            return text
        raise UsageError(
            f"identity {name!r}: neither a file nor an environment variable that is set: name one that holds the key"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"identity {name!r}: cannot be read ({reason}): name a file with an age private key") from None


COMMANDS = (keys, approve, verify, erase, unseal, purge)
