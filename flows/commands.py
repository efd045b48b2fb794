"""What the commands do, apart from parsing the command line."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from anonymizer import assemble
from anonymizer import plan as planning
from anonymizer.config import RunConfig
from anonymizer.errors import AnonymizerError, UsageError
from anonymizer.layout import Release
from flows import show


def run(config: RunConfig, *, as_json: bool, quiet: bool) -> None:
    something_to_do = release_once(config, quiet=quiet or as_json)
    place = Release.at(config.output.uri)
    result = assemble.summary(place, planning.read(place))
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        done = "Released" if something_to_do else "Nothing to do, this release is complete:"
        show.facts(
            f"{done} {result.released} of {result.read} pictures at level {config.boomerang.level:g}",
            {
                "released": result.released,
                "quarantined": result.quarantined,
                "failed": f"{result.failed}{_reasons(result.reasons)}",
                "handed out": place.public,
                "stays with you": place.restricted,
                "look at": place.report,
            },
        )
        show.out.print(
            "A level is a setting, not a guarantee: similarity scores do not say whether a person can be found again."
        )
    if not result.released:
        raise AnonymizerError("release: no picture could be released: see the reasons in restricted/report.html")


def release_once(config: RunConfig, *, quiet: bool) -> bool:
    """Run the release flow in this process, on the user's Prefect server or a temporary one.

    Everything that is wrong with the input is said before the flow starts. False where the release is complete already.
    """
    from flows import server, steps

    with show.progress_bar(quiet):
        steps.check(config)
        if Release.at(config.output.uri).is_complete:
            steps.prepare(config)  # complete, but is it what was asked for?
            return False
        with server.available(config.key_env) as ready:
            steps.prepare(config)  # the models load while the server starts
            ready()
            from flows.release import release

            release(config.model_dump(mode="json"))
    return True


def plan(config: RunConfig, *, as_json: bool) -> None:
    from anonymizer.keys import load_key
    from flows import steps

    steps.check(config)
    records = planning.count(config)
    backbone = steps.backbone_of(config.model)
    the_plan = planning.describe(config, backbone, load_key(config.key_env), records)
    seconds = planning.estimate(config, backbone, the_plan)
    if as_json:
        click.echo(json.dumps(asdict(the_plan) | {"estimated_seconds": seconds}))
        return
    show.facts(
        f"Plan for {the_plan.records} records",
        {
            "source": the_plan.source,
            "output": f"{the_plan.output} (nothing was written)",
            "model": f"{the_plan.model}, {backbone.size} x {backbone.size}, on {backbone.device}",
            "level": f"{the_plan.level:g}: t_boom {the_plan.t_boom} of {the_plan.T}, log-SNR {the_plan.log_snr:+.2f}",
            "sampler": f"{the_plan.sampler}, {the_plan.steps} steps for each picture",
            "shards": f"{the_plan.shards} of up to {the_plan.shard_size} records",
            "key": "from the environment"
            if the_plan.key_check
            else f"none ({config.key_env} is not set): nobody can replay the run",
            "sampling time": f"about {show.duration(seconds)} on this machine, from one timed network call",
        },
    )


def status(uri: str, *, as_json: bool) -> None:
    release = Release.at(uri)
    the_plan = planning.read(release)
    result = assemble.summary(release, the_plan)
    if as_json:
        click.echo(
            json.dumps(
                asdict(result)
                | {"planned": the_plan.records, "planned_shards": the_plan.shards, "public": release.is_published}
            )
        )
        return
    if release.is_published:
        stage = "complete"
    elif result.shards == the_plan.shards:
        stage = "all shards committed, not yet assembled: run the same command again"
    else:
        stage = "unfinished: run the same command again to finish it"
    show.facts(
        f"Release {uri}",
        {
            "state": stage,
            "records": f"{result.read} of {the_plan.records} done",
            "shards": f"{result.shards} of {the_plan.shards} committed",
            "released": result.released,
            "quarantined": result.quarantined,
            "failed": f"{result.failed}{_reasons(result.reasons)}",
        },
    )


def inspect(uri: str, output_id: str | None, *, as_json: bool) -> None:
    import pyarrow.parquet as pq

    release = Release.at(uri)
    if not release.manifest.exists():
        raise UsageError(f"release {uri!r}: no public/manifest.parquet: see `anonymizer status {uri}`")
    with release.manifest.fs.open(release.manifest.path, "rb") as file:
        manifest = pq.read_table(file)
    if output_id is not None:
        rows = [row for row in manifest.to_pylist() if row["output_id"] == output_id]
        if not rows:
            raise UsageError(f"output_id {output_id!r}: not in the manifest of {uri!r}: ids are 32 hex digits")
        _print_row(f"Output {output_id}", rows[0], as_json)
        return
    one = manifest.slice(0, 1).to_pylist()[0] if len(manifest) else {}
    common = ("level", "t_boom", "log_snr", "sampler", "steps", "model", "model_digest", "config_fingerprint", "format")
    facts: dict[str, Any] = {"pictures": len(manifest), "columns": ", ".join(manifest.column_names)}
    facts |= {name: one[name] for name in common if name in one}
    facts |= {"score models": (manifest.schema.metadata or {}).get(b"metric_models", b"{}").decode()}
    _print_row(f"Release {uri}", facts, as_json)


def models(name: str | None, *, as_json: bool) -> None:
    from anonymizer.bundled import cards

    found = cards()
    if name is not None:
        name = name.removeprefix("bundled:")
        if name not in found:
            raise UsageError(f"model {name!r}: not bundled: known: {', '.join(sorted(found))}")
        click.echo(found[name].text)
        return
    if as_json:
        click.echo(
            json.dumps(
                [{"name": f"bundled:{n}", "about": card.about, "bytes": card.bytes} for n, card in found.items()]
            )
        )
        return
    show.facts(
        "Bundled models", {f"bundled:{n}": f"{card.about} ({card.bytes / 2**20:.1f} MiB)" for n, card in found.items()}
    )


def _print_row(title: str, row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(row, default=str))
    else:
        show.facts(title, row)


def _reasons(reasons: Any) -> str:
    return f" ({', '.join(f'{name}: {count}' for name, count in reasons.items())})" if reasons else ""
