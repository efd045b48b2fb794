"""Commands that make a release and show how far it is: plan, run, retry, status."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import click

from anonymizer.errors import UsageError
from anonymizer.records import Reason
from anonymizer.storage import run_lock
from anonymizer.storage.layout import Release
from flows.cli import console
from flows.cli.options import as_json, open_to_change, quiet, read_run_config, run_options, without_key

if TYPE_CHECKING:
    from anonymizer.config import RunConfig
    from anonymizer.release.group_planning import GroupCounts


@click.command()
@run_options
@as_json
@quiet
def plan(as_json: bool, quiet: bool, **options: Any) -> None:
    """Show the plan and the estimated time.

    Writes nothing, and refuses what `run` would refuse.
    """
    from anonymizer.policy.ceilings import describe
    from flows import api

    config = read_run_config(**options)
    with console.progress_bar(quiet or as_json):
        report = api.plan(config)
    plan, backbone, seconds = report.plan, report.backbone, report.seconds
    if as_json:
        document = asdict(plan) | {"done": report.done, "estimated_seconds": seconds, "cautions": report.cautions}
        document |= {"groups": report.groups.to_json()} if report.groups else {}
        click.echo(json.dumps(document | {"fields": [field.to_json() for field in report.fields]}))
        return
    level = console.format_level(plan.level, f"{plan.t_boom} of {plan.T}", plan.log_snr)
    time = f"about {console.format_duration(seconds)} on this machine, from one timed network call"
    if config.source.fit == "tiles":
        time += ", of one tile for each picture: several take as many times longer"
    no_key = f"none ({config.key_env} is not set): nobody can replay the run"
    console.print_facts(
        f"Plan for {plan.records} records",
        {
            "source": plan.source,
            "output": f"{plan.output} (nothing was written)",
            "model": f"{plan.model}, {backbone.size} x {backbone.size}, on {backbone.device}",
            "level": f"{level}, {config.boomerang.chosen}" if config.boomerang.chosen else level,
            "condition": console.format_conditioning(config.model) if backbone.condition_kind != "nothing" else None,
            "sampler": console.format_sampler(plan.sampler, plan.steps),
            "records": f"{report.done} of {plan.records} done",
            **(_group_facts(report.groups) if report.groups else {}),
            "shards": f"{plan.shards} of up to {plan.shard_size} records",
            "key": "from the environment" if plan.key_check else no_key,
            "sampling time": time,
            **({"ceiling": f"none: {'; '.join(plan.no_ceiling)}"} if plan.no_ceiling else {}),
            **(describe(plan.ceilings) if plan.ceilings else {}),
        },
    )
    console.print_table(
        "What becomes of what is in the source",
        {"field": "left", "found": "left", "becomes": "left"},
        [(field.name, field.location, field.treatment) for field in report.fields],
    )
    console.print_cautions(report.cautions)


@click.command()
@run_options
@as_json
@quiet
def run(as_json: bool, quiet: bool, **options: Any) -> None:
    """Make a release.

    \b
    anonymizer run CONFIG.yaml
    anonymizer run --source photos/ --output release/ --level 0.6

    A run that was stopped is finished by the same command.
    """
    run_release(read_run_config(**options), as_json=as_json, quiet=quiet)


@click.command()
@click.argument("release")
@click.option("--failed", is_flag=True, required=True, help="Redo failed records.")
@click.option("--reason", "reasons", multiple=True, help="Only those that failed for this reason; repeatable.")
@without_key
@as_json
@quiet
def retry(release: str, failed: bool, reasons: tuple[str, ...], without_key: bool, as_json: bool, quiet: bool) -> None:
    """Redo what failed in a release that is not published.

    \b
    anonymizer retry --failed releases/2026-11
    anonymizer retry --failed --reason unreadable releases/2026-11

    All that did not fail stands. Then the release is finished as `run` would finish it, with its own settings.
    """
    from anonymizer.release.plan import resolve_config
    from anonymizer.release.retry import reopen_failed

    opened, chosen = open_to_change(release, without_key), _parse_reasons(reasons)
    config = resolve_config(opened)
    config = config.model_copy(update={"output": config.output.model_copy(update={"uri": release})})  # it may be moved
    with run_lock.exclusive_run(release):
        count = reopen_failed(opened, chosen)
    if not as_json:
        doing = f"Doing {count} failed record{'s' * (count != 1)} again."
        console.print_line(doing if count else "No record failed so: nothing is done again.")
    run_release(config, as_json=as_json, quiet=quiet)


@click.command()
@click.argument("release")
@click.option("--profile", is_flag=True, help="Show where the time went, too.")
@as_json
def status(release: str, profile: bool, as_json: bool) -> None:
    """Show a release's status."""
    from anonymizer.release import plan as planning
    from anonymizer.release import publish, retention, succession
    from anonymizer.release.ledger import Ledger
    from anonymizer.release.plan import resolve_config
    from anonymizer.release.profiling import Profile

    opened = Release.at(release)
    plan = planning.read(opened)
    counts = Ledger.open(opened).summarize()
    terms = retention.list_terms(opened, resolve_config(opened).restricted)
    now, decision = datetime.now(UTC), publish.read_last_decision(opened)
    remaining = {term.kind for term in terms if term.remaining}  # a purge that was stopped has purged nothing yet
    purged = {kind: day for kind, day in retention.read_purged(opened).items() if kind not in remaining}
    erasure = succession.describe(opened)
    state = _describe_state(opened, all_committed=counts.shards == plan.shards, is_replaced=erasure is not None)
    total = Profile.merge(Ledger(opened, plan).read_profiles()) if profile else None
    if as_json:
        document = asdict(counts) | {
            "planned": plan.records,
            "planned_shards": plan.shards,
            "public": opened.is_published,
            "state": state,
            "erasure": erasure,
            "policy": decision.predicate if decision else None,
            "retention": {
                term.kind: {"until": term.until.isoformat(), "left": term.remaining, "due": term.is_due(now)}
                for term in terms
            },
            "purged": purged,
        }
        document |= {"profile": total and asdict(total)} if profile else {}
        click.echo(json.dumps(document))
        return
    due = ": due, see `anonymizer purge`"
    console.print_facts(
        f"Release {release}: {erasure}" if erasure else f"Release {release}",
        {
            "state": state,
            "records": f"{counts.read} of {plan.records} done",
            "shards": f"{counts.shards} of {plan.shards} committed",
            **_count_facts(asdict(counts)),
            **{
                f"policy: {rule['rule']}": f"{rule['result']}: {rule['bound']}; {rule['found']}"
                for rule in (decision.predicate["rules"] if decision else [])
            },
            **{f"{kind} purged on": day for kind, day in purged.items()},
            **{
                f"{term.kind} kept until": f"{term.until:%Y-%m-%d}{due if term.is_due(now) else ''}"
                for term in terms
                if term.remaining
            },
        },
    )
    if profile:
        console.print_profile(total)


def run_release(config: RunConfig, *, as_json: bool, quiet: bool) -> None:
    """Make or finish a release and print its counts."""
    from anonymizer.release import history, publish
    from anonymizer.release import plan as planning
    from anonymizer.release.ledger import Ledger
    from anonymizer.report import closest_bins
    from flows import api

    with console.progress_bar(quiet or as_json):
        done = api.run_release(config)
    release = Release.at(config.output.uri)
    plan, state = planning.read(release), publish.read_status(release)
    counts = done or asdict(Ledger(release, plan).summarize())
    cautions = api.list_cautions(config, plan) + counts.pop("problems", [])
    difference = history.compare_with_previous(config, release)
    if as_json:
        document: dict[str, Any] = {"against_previous": asdict(difference)} if difference else {}
        document |= {"published": release.is_published, "state": str(state or "not published")}
        click.echo(json.dumps(counts | document | {"cautions": cautions}))
    else:
        made = "Released" if state and state.is_published else "Made"
        title = made if done is not None else "Nothing to do, this release is complete:"
        closest = closest_bins(release, plan).items()
        k, what = config.boomerang.k, "pictures"
        if k > 1:
            what = f"records, in {counts['images']} pictures of {k} or more each,"
        console.print_facts(
            f"{title} {counts['released']} of {counts['read']} {what} at level {config.boomerang.level:g}",
            {
                "state": state or "not published",
                **_count_facts(counts),
                "against the previous release": difference,
                "closest": ", ".join(f"{name} {bin}" for name, bin in closest) or "none",
                "handed out" if release.is_published else "waits in": release.public_or_candidate,
                "stays with you": release.restricted,
                "look at": console.format_page(release.report),
            },
        )
        console.print_cautions(cautions)
        console.print_line(
            "A level is a setting, not a guarantee: similarity scores do not say whether a person can be found again."
        )


def _group_facts(counts: GroupCounts) -> dict[str, Any]:
    from anonymizer.config.groups import describe_promise

    size = f"{counts.k}" if counts.largest == counts.k else f"{counts.k} to {counts.largest}"
    equal = f", equal in {', '.join(counts.by)}" if counts.by else ""
    pictures = "one picture each" if counts.outputs == "one" else "one picture for each member"
    unusable = "" if counts.unusable is None else f"; {counts.unusable:,} cannot be used"
    return {
        "groups": f"{counts.groups:,} of {size} records{equal}; {pictures}, {counts.images:,} in all",
        "left over": f"{counts.left_over:,} of {counts.records:,} records ({counts.share_left_over:.1%}){unusable}",
        "rare values": f"of {', '.join(counts.by)}: {counts.small_strata:,} in fewer than {counts.k} records"
        if counts.small_strata and counts.by
        else None,
        "promise": describe_promise(counts.k),
    }


def _count_facts(counts: Mapping[str, Any]) -> dict[str, Any]:
    reasons = console.format_counts(counts["reasons"]) or None
    rest = {"waiting": f"{counts['waiting']}, for others alike"} if counts["waiting"] else {}
    pictures = {"pictures": counts["images"]} if counts["images"] != counts["released"] else {}
    return {name: counts[name] for name in ("released", "quarantined", "failed")} | rest | pictures | {"why": reasons}


def _describe_state(release: Release, *, all_committed: bool, is_replaced: bool) -> str:
    from anonymizer.release import plan as planning
    from anonymizer.release import publish

    if run_lock.is_running(release):
        return "a run is working on it"
    if release.is_published and is_replaced:
        return "published; an erasure is not finished"
    if release.is_published and (problem := publish.publication_problem(release, planning.read(release))):
        return f"NOT published by this release, though public/ is there: {problem}: see `anonymizer verify`"
    if release.is_published:
        return "complete" if release.ledger.exists() else "complete; its records were purged, and are not counted here"
    if release.is_assembled:
        status = publish.read_status(release)
        return str(status or "not let out by the policy: run the same command again to ask it")
    if all_committed:
        return "all shards committed, not yet assembled: run the same command again"
    return "unfinished: run the same command again to finish it"


def _parse_reasons(names: Sequence[str]) -> list[Reason]:

    for name in names:
        if name in set(Reason):
            continue
        near = get_close_matches(name, list(Reason), 1)
        hint = f"did you mean {str(near[0])!r}?" if near else "`anonymizer status` names those of a release"
        raise UsageError(f"--reason: there is no reason {name!r}: {hint}")
    return [Reason(name) for name in names]


COMMANDS = (plan, run, retry, status)
