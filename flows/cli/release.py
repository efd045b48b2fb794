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
from anonymizer.crypto.encryption import SUFFIX
from anonymizer.data.sources import embedded, open_source
from anonymizer.errors import AnonymizerError, UsageError
from anonymizer.policy import calibration
from anonymizer.records import Reason
from anonymizer.release import assemble, history, ledger, preflight, publish, retention
from anonymizer.release import plan as planning
from anonymizer.release.plan import settings_of
from anonymizer.release.profiling import Profile
from anonymizer.release.retry import reopen
from anonymizer.storage.layout import Release
from anonymizer.storage.path import Place
from flows.cli import console
from flows.lineage.emit import emitting


def run(config: RunConfig, *, as_json: bool, quiet: bool) -> None:
    problems = release_once(config, quiet=quiet or as_json)
    place = _place(config)
    the_plan = planning.read(place)
    result = assemble.summary(place, the_plan)
    cautions = _cautions(config, the_plan) + (problems or [])
    against = history.difference(config, place)
    if as_json:
        told: dict[str, Any] = {"against_previous": asdict(against)} if against else {}
        told |= {"published": place.is_published, "state": str(publish.standing(place) or "not published")}
        click.echo(json.dumps(asdict(result) | told | {"cautions": cautions}))
    else:
        state = publish.standing(place)
        done = "Released" if state and state.published else "Made"
        done = done if problems is not None else "Nothing to do, this release is complete:"
        console.facts(
            f"{done} {result.released} of {result.read} pictures at level {config.boomerang.level:g}",
            {
                "state": state or "not published",
                "released": result.released,
                "quarantined": result.quarantined,
                "failed": result.failed,
                **({"why": console.counts(result.reasons)} if result.reasons else {}),
                **({"against the previous release": against} if against else {}),
                "closest": ", ".join(f"{name} {bin}" for name, bin in report.closest(place, the_plan).items())
                or "none",
                "handed out" if place.is_published else "waits in": place.handout,
                "stays with you": place.restricted,
                "look at": _page(place.report),
            },
        )
        console.cautions(cautions)
        console.line(
            "A level is a setting, not a guarantee: similarity scores do not say whether a person can be found again."
        )
    if not result.released:
        raise AnonymizerError("release: no picture could be released: see the reasons in restricted/report.html")


def retry(uri: str, reasons: Sequence[str], *, as_json: bool, quiet: bool) -> None:
    """Open what failed in a release again, and finish it with the settings that it was begun with."""
    release, chosen = Release.at(uri), [_reason(name) for name in reasons]
    settings = settings_of(release)
    settings = settings.model_copy(
        update={"output": settings.output.model_copy(update={"uri": uri})}
    )  # it may be moved
    with preflight.alone(uri):
        count = reopen(release, chosen)
    if not as_json:
        doing = f"Doing {count} failed record{'s' * (count != 1)} again."
        console.line(doing if count else "No record failed so: nothing is done again.")
    run(settings, as_json=as_json, quiet=quiet)


def _reason(name: str) -> Reason:
    if name not in set(Reason):
        near = get_close_matches(name, list(Reason), 1)
        hint = f": did you mean {str(near[0])!r}?" if near else ": `anonymizer status` names those of a release"
        raise UsageError(f"--reason: there is no reason {name!r}{hint}")
    return Reason(name)


def release_once(config: RunConfig, *, quiet: bool) -> list[str] | None:
    """Run the release flow in this process, on the user's Prefect server or a temporary one; lines on what went wrong
    beside it.

    Everything that is wrong with the input is said before the flow starts. None where the release is complete already.
    """
    from flows.jobs import release as release_job
    from flows.runtime import temporary_server

    with console.progress_bar(quiet):
        release_job.check(config)
        if _place(config).is_complete:
            _taken_up(config)  # complete, but is it what was asked for?
            return None
        with temporary_server.available(config.key_env, config.signing_key_env) as ready:
            release_job.prepare(config)  # the models load while the server starts
            ready()
            from flows.release import release

            problems: list[str] = release(config.model_dump(mode="json"))["problems"]
    return problems


def plan(config: RunConfig, *, as_json: bool, quiet: bool) -> None:
    from flows.jobs import release as release_job

    place = _place(config)
    with console.progress_bar(quiet or as_json):
        release_job.check(config)
        backbone = release_job.backbone_of(config.model)
        scorer = release_job.fitting_scorer(config.metrics, backbone)
        history.check(config, load_key(config.key_env), scorer.names)
        if place.plan.exists():
            the_plan = _taken_up(config)
            done = assemble.summary(place, the_plan).read
        else:
            the_plan = planning.describe(config, backbone, load_key(config.key_env), planning.count(config))
            done = 0
        seconds = planning.estimate(config, backbone, replace(the_plan, records=the_plan.records - done))
        source = open_source(config.source)
        fields = [*source.fields(), *embedded(source)]
    cautions, tiled = _cautions(config, the_plan), config.source.fit == "tiles"
    if as_json:
        told = asdict(the_plan) | {"done": done, "estimated_seconds": seconds, "cautions": cautions}
        click.echo(json.dumps(told | {"fields": [asdict(field) for field in fields]}))
        return
    console.facts(
        f"Plan for {the_plan.records} records",
        {
            "source": the_plan.source,
            "output": f"{the_plan.output} (nothing was written)",
            "model": f"{the_plan.model}, {backbone.size} x {backbone.size}, on {backbone.device}",
            "level": console.level(the_plan.level, f"{the_plan.t_boom} of {the_plan.T}", the_plan.log_snr)
            + (f", {config.boomerang.chosen}" if config.boomerang.chosen else ""),
            **({"told": console.told(config.model)} if backbone.asks != "nothing" else {}),
            "sampler": console.sampler(the_plan.sampler, the_plan.steps),
            "records": f"{done} of {the_plan.records} done",
            "shards": f"{the_plan.shards} of up to {the_plan.shard_size} records",
            "key": "from the environment"
            if the_plan.key_check
            else f"none ({config.key_env} is not set): nobody can replay the run",
            "sampling time": f"about {console.duration(seconds)} on this machine, from one timed network call"
            + (", of one tile for each picture: several take as many times longer" if tiled else ""),
        },
    )
    console.fields(fields)
    console.cautions(cautions)


def status(uri: str, *, profile: bool, as_json: bool) -> None:
    release = Release.at(uri)
    the_plan = planning.read(release)
    result = assemble.summary(release, the_plan)
    terms = retention.terms(release, settings_of(release).restricted)
    now, purged, decision = datetime.now(UTC), retention.purged(release), publish.last_decision(release)
    if preflight.is_at_work(release):
        stage = "a run is working on it"
    elif release.is_published:
        stage = "complete" if release.ledger.exists() else "complete; its records were purged, and are not counted here"
    elif release.is_assembled:
        stage = str(publish.standing(release) or "not let out by the policy: run the same command again to ask it")
    elif result.shards == the_plan.shards:
        stage = "all shards committed, not yet assembled: run the same command again"
    else:
        stage = "unfinished: run the same command again to finish it"
    spent = Profile.total(ledger.profiles(release, the_plan)) if profile else None
    if as_json:
        told: dict[str, Any] = {
            "planned": the_plan.records,
            "planned_shards": the_plan.shards,
            "public": release.is_published,
        }
        told |= {"state": stage, "policy": decision.predicate if decision else None}
        kept = {t.what: {"until": t.until.isoformat(), "left": t.left, "due": t.is_due(now)} for t in terms}
        told |= {"retention": kept, "purged": purged}
        told |= {"profile": None if spent is None else asdict(spent)} if profile else {}
        click.echo(json.dumps(asdict(result) | told))
        return
    rules = decision.predicate["rules"] if decision else []
    console.facts(
        f"Release {uri}",
        {
            "state": stage,
            "records": f"{result.read} of {the_plan.records} done",
            "shards": f"{result.shards} of {the_plan.shards} committed",
            "released": result.released,
            "quarantined": result.quarantined,
            "failed": result.failed,
            **({"why": console.counts(result.reasons)} if result.reasons else {}),
            **{f"policy: {rule['rule']}": f"{rule['result']}: {rule['bound']}; {rule['found']}" for rule in rules},
            **{f"{what} purged on": day for what, day in purged.items()},
            **{f"{term.what} kept until": _until(term, now) for term in terms if term.left},
        },
    )
    if profile:
        console.profile(spent)


def _until(term: retention.Term, now: datetime) -> str:
    return f"{term.until:%Y-%m-%d}{': due, see `anonymizer purge`' if term.is_due(now) else ''}"


def audit(config: AuditConfig, *, as_json: bool, quiet: bool) -> None:
    from flows.jobs import audit as audit_job
    from flows.runtime import temporary_server

    with console.progress_bar(quiet or as_json):
        settings = audit_job.check(config)
        with temporary_server.available(settings.key_env, settings.signing_key_env) as ready:
            ready()
            from flows.audit import audit as flow

            with emitting(settings, "audit", config.release) as told:
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
    console.facts(
        f"Attacked {summary['audited']} of {summary['released']} pictures at level {answers['level']:g}",
        facts
        | {
            "formal guarantee": answers["formal_guarantee"],
            "could not be tried": summary["not_run"],
            "look at": _page(release.audit_page),
            "tables": release.audit,
            "may be handed out": release.audit_summary,
        },
    )
    console.cautions(told.problems)
    console.line(
        "Bounds are upper ends of 95 % intervals, for the attacks that were tried. Other attackers may do better."
    )


def calibrate(config: CalibrationConfig, *, as_json: bool, quiet: bool) -> None:
    from flows.jobs import calibrate as calibrate_job
    from flows.runtime import temporary_server

    with console.progress_bar(quiet or as_json):
        calibrate_job.check(config)
        with temporary_server.available(config.run.key_env, config.run.signing_key_env) as ready:
            ready()
            from flows.calibrate import calibrate as flow

            summary = flow(config.model_dump(mode="json"))
    folder = Place.of(config.folder)
    found = calibration.read(str(folder / "calibration.json"))
    if as_json:
        click.echo(json.dumps(summary | {"calibration": found.model_dump(mode="json")}))
        return
    console.curve(found)
    console.facts(
        f"Calibrated {summary['levels']} levels on {summary['pictures']} pictures of {summary['people']} people",
        {
            "calibration": folder / "calibration.json",
            "plots": f"{folder / 'risk.svg'}, {folder / 'utility.svg'}",
            "tables": f"{folder / 'risk.parquet'}, {folder / 'utility.parquet'}",
        },
    )
    console.cautions([summary["note"]] if summary["note"] else [])
    console.line(
        "To choose by it: boomerang.level: {calibration: FILE, max_risk: 0.05}. Other attackers may do better."
    )


def _taken_up(config: RunConfig) -> planning.Plan:
    """The plan of a release that was begun, if these settings may finish it; writes nothing."""
    from flows.jobs import release as release_job

    return planning.write(config, release_job.backbone_of(config.model), load_key(config.key_env), _place(config))


def _cautions(config: RunConfig, the_plan: planning.Plan) -> list[str]:
    """What should be known before anything is handed out."""
    found = [*planning.cautions(config, the_plan), *preflight.cautions(config)]
    if absent := history.absent(config):
        found.append(f"previous: {absent} earlier releases are not at hand: who was only there gets a second output")
    return found


def _page(place: Place) -> str:
    """Where a page is, as it is or encrypted."""
    return str(place) if place.exists() else f"{place}{SUFFIX} (`anonymizer unseal`)"


def _place(config: RunConfig) -> Release:
    return Release.at(config.output.uri)
