"""Keys, approvals and verification, apart from parsing the command line; none of it needs Prefect."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import click

from anonymizer.attest.verify import Finding, check_public
from anonymizer.attest.verify.findings import failed, noted
from anonymizer.crypto import signing
from anonymizer.errors import AnonymizerError, GateError, OutputError, SigningKeyError, SourceError, UsageError
from anonymizer.release import event_log
from anonymizer.storage.layout import STATEMENT, Release
from anonymizer.storage.path import StoragePath
from flows.cli import console
from flows.lineage.emit import emit_run_events

KEY_TITLES = {
    "signing": "A key to sign and approve with",
    "age": "A key to encrypt to",
    "custodian": "A custodian's key",
}


def keys(name: str, folder: Path, kind: str) -> None:
    """Make a key or a key pair, and say where it is and what it is for."""
    private_file, public_file = make_keys(name, folder, kind)
    facts: dict[str, object] = {"keep secret": private_file}
    if public_file:
        facts |= {"public": public_file, "key": public_file.read_text().strip()}
    console.print_facts(KEY_TITLES[kind], facts)
    uses = {
        "signing": f"To publish: ANONYMIZER_SIGNING_KEY={private_file}. To approve: --key {private_file}.",
        "age": "Name the public key in restricted.recipients. Only the secret file opens what is encrypted to it.",
        "custodian": f"To use it: export ANONYMIZER_KEY=$(cat {private_file}). Who loses it can replay nothing.",
    }
    console.print_line(uses[kind])


def make_keys(name: str, folder: Path, kind: str) -> tuple[Path, Path | None]:
    """Files of a new secret, for its owner alone, and of its public half, if it has one. Never replaces a key."""
    if not name.isidentifier():
        raise UsageError(f"NAME {name!r}: must be letters, digits and _, as in 'alice'")
    secret, public = _generate(kind)
    private_file, public_file = folder / f"{name}.key", folder / f"{name}.pub"
    for file in (private_file, public_file):
        if file.exists():
            raise OutputError(f"{str(file)!r}: is there already: choose another NAME, keys are not replaced")
    folder.mkdir(parents=True, exist_ok=True)
    with open(os.open(private_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(secret)
    if public is None:
        return private_file, None
    public_file.write_text(public + "\n")
    return private_file, public_file


def _generate(kind: str) -> tuple[bytes, str | None]:
    if kind == "custodian":
        return secrets.token_hex(32).encode() + b"\n", None
    if kind == "age":
        import pyrage

        identity = pyrage.x25519.Identity.generate()
        return f"{identity}\n".encode(), str(identity.to_public())
    signer = signing.generate_key_pair()
    return signer.private_bytes, signing.format_public_key(signer.public_key)


def approve(uri: str, key: Path | None, key_env: str, trust: Sequence[str]) -> None:
    """Check the candidate, sign its statement, and publish it if that was the last approval that it waited for."""
    from anonymizer.release import erase, publish
    from anonymizer.storage import run_lock

    release = Release.at(uri)
    signer = signing.signer_from_file(key) if key else signing.signer_from_env(key_env)
    if signer is None:
        raise SigningKeyError(f"--key: none given, and {key_env} is not set: name the file of your private key")
    if not release.statement.exists():
        raise SourceError(f"release {uri!r}: nothing to approve yet: see `anonymizer status {uri}`")
    found = list(check_public(release.public_or_candidate, [_public_key(text) for text in trust]))
    if bad := [one for one in found if one.result == "fail" and one.check != "approvals"]:
        raise SigningKeyError(
            f"release {uri!r}: is not what its publisher signed ({bad[0].message}): do not approve it"
        )
    console.print_findings("What is approved", [one for one in found if one.check in ("signature", "gate", "counts")])
    with run_lock.exclusive_run(uri):
        standing = publish.approve(release, signer)
    console.print_facts(
        "Approved and published" if standing.is_published else "Approved",
        {
            "approvals": f"{len(standing.approved_by)} of {standing.required_approvals} "
            f"({', '.join(standing.approved_by)})",
            "state": standing,
            "handed out" if standing.is_published else "waits in": release.public_or_candidate,
        },
    )
    if standing.is_published and erase.is_unfinished(release):
        console.print_cautions(
            ["the release that this one replaces still stands: run the same `anonymizer erase` again"]
        )


def verify(
    uri: str, trust: Sequence[str] = (), *, decode: int | None = None, rescore: int | None = 0, replay: int = 0,
    as_json: bool = False,
) -> bool:  # fmt: skip
    """Whether everything that was checked is as it should be."""
    place = StoragePath.from_uri(uri)
    alone = (place / STATEMENT).exists()  # a public half, whatever else lies in it
    both = not alone and ((place / "public").exists() or (place / "restricted").exists())
    release = Release(place) if both else None
    if release is not None and release.is_assembled and not release.statement.exists() and not release.is_published:
        raise GateError(
            f"release {uri!r}: its policy holds it back, and nothing is signed yet: see `anonymizer status`"
        )
    half = place if release is None else release.public if release.public.exists() else release.candidate
    found = list(check_public(half, [_public_key(text) for text in trust], decode))
    if release is None and (rescore or replay):
        found.append(failed("originals", "--rescore and --replay need the restricted half: give the whole release"))
    if release is not None:
        if half == release.candidate:
            found.append(noted("state", "not published: what was checked is the candidate"))
        elif release.candidate.exists():
            found.append(failed("state", "there is a candidate beside public/: run the same `anonymizer run` again"))
        found += _verify_restricted(release, rescore, replay)
    good = not any(finding.result == "fail" for finding in found)
    if release is not None:
        _log_verification(release, good)
    if as_json:
        click.echo(json.dumps({"passed": good, "findings": [finding.to_json() for finding in found]}))
    else:
        console.print_findings(f"{'Verified' if good else 'NOT as it should be'}: {uri}", found)
    return good


def _verify_restricted(release: Release, rescore: int | None, replay: int) -> Iterator[Finding]:
    if not release.restricted.exists():
        yield noted("restricted", "is not here: the public half was checked alone")
        return
    from flows.jobs import replay as replay_job

    yield from replay_job.verify_release(release, rescore, replay)


def _public_key(text: str) -> str:
    """A public key as given, or from its file; what is neither may be a private one, and is not repeated."""
    try:
        found = text if text.startswith(signing.PUBLIC_KEY_PREFIX) else Path(text).read_text(encoding="utf-8").strip()
        signing.parse_public_key(found)
    except (ValueError, OSError):
        raise SigningKeyError("--trust: no public key, and no file of one: see `anonymizer keys`") from None
    return found


def _log_verification(release: Release, good: bool) -> None:
    with suppress(AnonymizerError):  # a chain that is broken has been said
        if release.event_log.exists():
            event_log.record(release, "verified", result="pass" if good else "fail")


def erase(uri: str, records: Path, output: str, *, as_json: bool, quiet: bool) -> None:
    """Take people out of a release, by the flow that a deployment would start."""
    from anonymizer.release import history
    from flows.jobs import erase as erase_job
    from flows.runtime import temporary_server

    settings = erase_job.check(uri, records, output)
    with (
        console.progress_bar(quiet or as_json),
        temporary_server.ensure_server(settings.key_env, settings.signing_key_env) as ready,
    ):
        ready()
        from flows.erase import erase as flow

        with emit_run_events(settings, "erase", output) as told:
            summary = flow(uri, str(records), output)
    old, new = Release.at(uri), Release.at(output)
    earlier = [repr(str(one.root)) for one in history.predecessors(new) if str(one.root) != str(old.root)]
    known = f" ({', '.join(earlier)} came before)" if earlier else ""
    cautions = [
        "copies that were handed out before cannot be called back: hand out revocations.intoto.jsonl",
        f"releases before and after it may hold the same people{known}: erase them there too",
        "the originals are where they were: delete them there, and in backups",
        *told.problems,
    ]
    if as_json:
        click.echo(json.dumps(summary | {"cautions": cautions}))
        return
    console.print_facts(
        f"Erased {summary['erased']} records; {summary['released']} pictures remain",
        {
            "state": summary["standing"],
            "revoked": f"{summary['revoked']} pictures",
            "the old release": f"destroyed, but for {old.event_log}" if summary["published"] else "still there",
            "new release": new.root,
        },
    )
    if not summary["published"]:
        console.print_line("The old release is destroyed by this same command once the new one is published.")
    console.print_cautions(cautions)


def purge(uri: str, *, as_json: bool) -> None:
    """Remove what has been kept long enough."""
    from anonymizer.release import retention
    from anonymizer.release.plan import resolve_config

    release = Release.at(uri)
    done = retention.purge(release, resolve_config(release).restricted, datetime.now(UTC))
    if as_json:
        click.echo(json.dumps({"purged": {term.kind: term.remaining for term in done}}))
    else:
        purged = ", ".join(f"{term.kind} ({term.remaining} places)" for term in done)
        console.print_line(f"Purged: {purged}" if done else f"Nothing is due: see `anonymizer status {uri}`")
