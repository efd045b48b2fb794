"""What the commands do, apart from parsing the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import click

from anonymizer import report
from anonymizer.config import AuditConfig, CalibrationConfig, RunConfig
from anonymizer.crypto.custodian_key import load_key
from anonymizer.data.sources import open_source, sample_metadata
from anonymizer.errors import AnonymizerError, UsageError
from anonymizer.policy import calibration
from anonymizer.records import Plan, Reason
from anonymizer.release import assemble, history, ledger, preflight, publish, retention
from anonymizer.release import plan as planning
from anonymizer.release.plan import resolve_config
from anonymizer.release.profiling import Profile
from anonymizer.release.retry import reopen_failed
from anonymizer.storage import run_lock
from anonymizer.storage.layout import ENCRYPTED_SUFFIX, Release
from anonymizer.storage.path import StoragePath
from flows.cli import console
from flows.lineage.emit import emit_run_events


def run(config: RunConfig, *, as_json: bool, quiet: bool) -> None:
    problems = run_release_flow(config, quiet=quiet or as_json)
    place = _release_of(config)
    the_plan = planning.read(place)
    result = assemble.summarize_release(place, the_plan)
    cautions = _cautions(config, the_plan) + (problems or [])
    against = history.compare_with_previous(config, place)
    if as_json:
        told: dict[str, Any] = {"against_previous": asdict(against)} if against else {}
        told |= {"published": place.is_published, "state": str(publish.read_status(place) or "not published")}
        click.echo(json.dumps(asdict(result) | told | {"cautions": cautions}))
    else:
        state = publish.read_status(place)
        done = "Released" if state and state.is_published else "Made"
        done = done if problems is not None else "Nothing to do, this release is complete:"
        console.print_facts(
            f"{done} {result.released} of {result.read} pictures at level {config.boomerang.level:g}",
            {
                "state": state or "not published",
                "released": result.released,
                "quarantined": result.quarantined,
                "failed": result.failed,
                **({"why": console.format_counts(result.reasons)} if result.reasons else {}),
                **({"against the previous release": against} if against else {}),
                "closest": ", ".join(f"{name} {bin}" for name, bin in report.closest_bins(place, the_plan).items())
                or "none",
                "handed out" if place.is_published else "waits in": place.public_or_candidate,
                "stays with you": place.restricted,
                "look at": _page_location(place.report),
            },
        )
        console.print_cautions(cautions)
        console.print_line(
            "A level is a setting, not a guarantee: similarity scores do not say whether a person can be found again."
        )
    if not result.released:
        raise AnonymizerError("release: no picture could be released: see the reasons in restricted/report.html")


def retry(uri: str, reasons: Sequence[str], *, as_json: bool, quiet: bool) -> None:
    """Open what failed in a release again, and finish it with the settings that it was begun with."""
    release, chosen = Release.at(uri), [_parse_reason(name) for name in reasons]
    settings = resolve_config(release)
    settings = settings.model_copy(
        update={"output": settings.output.model_copy(update={"uri": uri})}
    )  # it may be moved
    with run_lock.exclusive_run(uri):
        count = reopen_failed(release, chosen)
    if not as_json:
        doing = f"Doing {count} failed record{'s' * (count != 1)} again."
        console.print_line(doing if count else "No record failed so: nothing is done again.")
    run(settings, as_json=as_json, quiet=quiet)


def _parse_reason(name: str) -> Reason:
    if name not in set(Reason):
        near = get_close_matches(name, list(Reason), 1)
        hint = f": did you mean {str(near[0])!r}?" if near else ": `anonymizer status` names those of a release"
        raise UsageError(f"--reason: there is no reason {name!r}{hint}")
    return Reason(name)


def run_release_flow(config: RunConfig, *, quiet: bool) -> list[str] | None:
    """Run the release flow in this process, on the user's Prefect server or a temporary one; lines on what went wrong
    beside it.

    Everything that is wrong with the input is said before the flow starts. None where the release is complete already.
    """
    from flows.jobs import release as release_job
    from flows.runtime import run_templates, task_runners, temporary_server

    with console.progress_bar(quiet):
        task_runners.check(config)
        run_templates.refuse_placeholders(config)
        release_job.check(config)
        if _release_of(config).is_complete:
            _resumed_plan(config)  # complete, but is it what was asked for?
            return None
        with temporary_server.ensure_server(config.key_env, config.signing_key_env) as ready:
            release_job.prepare(config)  # the models load while the server starts
            ready()
            from flows.release import release

            problems: list[str] = release(config.model_dump(mode="json"))["problems"]
    return problems


def plan(config: RunConfig, *, as_json: bool, quiet: bool) -> None:
    from flows.jobs import release as release_job
    from flows.runtime import run_templates, task_runners

    place = _release_of(config)
    with console.progress_bar(quiet or as_json):
        task_runners.check(config)
        run_templates.refuse_placeholders(config)
        release_job.check(config)
        backbone = release_job.backbone_of(config.model)
        scorer = release_job.load_checked_scorer(config.metrics, backbone)
        history.check(config, load_key(config.key_env), scorer.names)
        if place.plan.exists():
            the_plan = _resumed_plan(config)
            done = assemble.summarize_release(place, the_plan).read
        else:
            the_plan = planning.build_plan(config, backbone, load_key(config.key_env), planning.count_records(config))
            done = 0
        seconds = planning.estimate_seconds(config, backbone, replace(the_plan, records=the_plan.records - done))
        source = open_source(config.source)
        fields = [*source.fields(), *sample_metadata(source)]
    cautions, tiled = _cautions(config, the_plan), config.source.fit == "tiles"
    if as_json:
        told = asdict(the_plan) | {"done": done, "estimated_seconds": seconds, "cautions": cautions}
        click.echo(json.dumps(told | {"fields": [field.to_json() for field in fields]}))
        return
    console.print_facts(
        f"Plan for {the_plan.records} records",
        {
            "source": the_plan.source,
            "output": f"{the_plan.output} (nothing was written)",
            "model": f"{the_plan.model}, {backbone.size} x {backbone.size}, on {backbone.device}",
            "level": console.format_level(the_plan.level, f"{the_plan.t_boom} of {the_plan.T}", the_plan.log_snr)
            + (f", {config.boomerang.chosen}" if config.boomerang.chosen else ""),
            **({"told": console.format_conditioning(config.model)} if backbone.condition_kind != "nothing" else {}),
            "sampler": console.format_sampler(the_plan.sampler, the_plan.steps),
            "records": f"{done} of {the_plan.records} done",
            "shards": f"{the_plan.shards} of up to {the_plan.shard_size} records",
            "key": "from the environment"
            if the_plan.key_check
            else f"none ({config.key_env} is not set): nobody can replay the run",
            "sampling time": f"about {console.format_duration(seconds)} on this machine, from one timed network call"
            + (", of one tile for each picture: several take as many times longer" if tiled else ""),
        },
    )
    console.print_fields(fields)
    console.print_cautions(cautions)


def status(uri: str, *, profile: bool, as_json: bool) -> None:
    release = Release.at(uri)
    the_plan = planning.read(release)
    result = assemble.summarize_release(release, the_plan)
    terms = retention.list_terms(release, resolve_config(release).restricted)
    now, purged, decision = datetime.now(UTC), retention.read_purged(release), publish.read_last_decision(release)
    if run_lock.is_running(release):
        stage = "a run is working on it"
    elif release.is_published:
        stage = "complete" if release.ledger.exists() else "complete; its records were purged, and are not counted here"
    elif release.is_assembled:
        stage = str(publish.read_status(release) or "not let out by the policy: run the same command again to ask it")
    elif result.shards == the_plan.shards:
        stage = "all shards committed, not yet assembled: run the same command again"
    else:
        stage = "unfinished: run the same command again to finish it"
    spent = Profile.merge(ledger.read_profiles(release, the_plan)) if profile else None
    if as_json:
        told: dict[str, Any] = {
            "planned": the_plan.records,
            "planned_shards": the_plan.shards,
            "public": release.is_published,
        }
        told |= {"state": stage, "policy": decision.predicate if decision else None}
        kept = {t.kind: {"until": t.until.isoformat(), "left": t.remaining, "due": t.is_due(now)} for t in terms}
        told |= {"retention": kept, "purged": purged}
        told |= {"profile": None if spent is None else asdict(spent)} if profile else {}
        click.echo(json.dumps(asdict(result) | told))
        return
    rules = decision.predicate["rules"] if decision else []
    console.print_facts(
        f"Release {uri}",
        {
            "state": stage,
            "records": f"{result.read} of {the_plan.records} done",
            "shards": f"{result.shards} of {the_plan.shards} committed",
            "released": result.released,
            "quarantined": result.quarantined,
            "failed": result.failed,
            **({"why": console.format_counts(result.reasons)} if result.reasons else {}),
            **{f"policy: {rule['rule']}": f"{rule['result']}: {rule['bound']}; {rule['found']}" for rule in rules},
            **{f"{what} purged on": day for what, day in purged.items()},
            **{f"{term.kind} kept until": _format_term(term, now) for term in terms if term.remaining},
        },
    )
    if profile:
        console.print_profile(spent)


def _format_term(term: retention.RetentionTerm, now: datetime) -> str:
    return f"{term.until:%Y-%m-%d}{': due, see `anonymizer purge`' if term.is_due(now) else ''}"


def audit(config: AuditConfig, *, as_json: bool, quiet: bool) -> None:
    from flows.jobs import audit as audit_job
    from flows.runtime import temporary_server

    with console.progress_bar(quiet or as_json):
        settings = audit_job.check(config)
        with temporary_server.ensure_server(settings.key_env, settings.signing_key_env) as ready:
            ready()
            from flows.audit import audit as flow

            with emit_run_events(settings, "audit", config.release) as told:
                summary = flow(config.model_dump(mode="json"))
    release = Release.at(config.release)
    answers = json.loads(release.audit_summary.read())
    if as_json:
        click.echo(json.dumps(summary | {"public": answers}))
        return
    facts = {
        title.lower(): f"risk above chance at most {answer['risk_above_chance_at_most']:.0%} "
        f"({', '.join(answer['attacks_tried'])})"
        if "risk_above_chance_at_most" in answer
        else "not measured"
        for title, answer in answers["answers"].items()
    }
    console.print_facts(
        f"Attacked {summary['audited']} of {summary['released']} pictures at level {answers['level']:g}",
        facts
        | {
            "formal guarantee": answers["formal_guarantee"],
            "could not be tried": summary["not_run"],
            "look at": _page_location(release.audit_page),
            "tables": release.audit,
            "may be handed out": release.audit_summary,
        },
    )
    console.print_cautions(told.problems)
    console.print_line(
        "Bounds are upper ends of 95 % intervals, for the attacks that were tried. Other attackers may do better."
    )


def calibrate(config: CalibrationConfig, *, as_json: bool, quiet: bool) -> None:
    from flows.jobs import calibrate as calibrate_job
    from flows.runtime import temporary_server

    with console.progress_bar(quiet or as_json):
        calibrate_job.check(config)
        with temporary_server.ensure_server(config.run.key_env, config.run.signing_key_env) as ready:
            ready()
            from flows.calibrate import calibrate as flow

            summary = flow(config.model_dump(mode="json"))
    folder = StoragePath.from_uri(config.folder)
    found = calibration.read(str(folder / "calibration.json"))
    if as_json:
        click.echo(json.dumps(summary | {"calibration": found.model_dump(mode="json")}))
        return
    console.print_curve(found)
    console.print_facts(
        f"Calibrated {summary['levels']} levels on {summary['pictures']} pictures of {summary['people']} people",
        {
            "calibration": folder / "calibration.json",
            "plots": f"{folder / 'risk.svg'}, {folder / 'utility.svg'}",
            "tables": f"{folder / 'risk.parquet'}, {folder / 'utility.parquet'}",
        },
    )
    console.print_cautions([summary["note"]] if summary["note"] else [])
    console.print_line(
        "To choose by it: boomerang.level: {calibration: FILE, max_risk: 0.05}. Other attackers may do better."
    )


def _resumed_plan(config: RunConfig) -> Plan:
    """The plan of a release that was begun, if these settings may finish it; writes nothing."""
    from flows.jobs import release as release_job

    return planning.write_or_resume(
        config, release_job.backbone_of(config.model), load_key(config.key_env), _release_of(config)
    )


def _cautions(config: RunConfig, the_plan: Plan) -> list[str]:
    """What should be known before anything is handed out."""
    found = [*planning.list_cautions(config, the_plan), *preflight.list_cautions(config)]
    if absent := history.count_missing(config):
        found.append(f"previous: {absent} earlier releases are not at hand: who was only there gets a second output")
    return found


def _page_location(place: StoragePath) -> str:
    """Where a page is, as it is or encrypted."""
    return str(place) if place.exists() else f"{place}{ENCRYPTED_SUFFIX} (`anonymizer unseal`)"


def _release_of(config: RunConfig) -> Release:
    return Release.at(config.output.uri)
