"""Commands that measure risk: audit, calibrate."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import click

from anonymizer.errors import UsageError
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.cli import console
from flows.cli.options import (
    as_json,
    attacker_options,
    build_config,
    config_argument,
    model_option,
    quiet,
    read_attackers,
    set_option,
    split_names,
)
from flows.start import run_flow


@click.command()
@click.argument("release")
@attacker_options
@click.option("--union", multiple=True, help="An earlier release, attacked together with this one; repeatable.")
@click.option("--skip", callback=split_names, help="Attacks to leave out: inversion,parrot.")
@click.option(
    "--baselines", callback=split_names, help="Attack these too: round-trip,blur,pixelation,global,unrelated."
)
@set_option
@as_json
@quiet
def audit(release: str, overrides: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """Attack a release and report the risk.

    \b
    anonymizer audit releases/2026-11
    anonymizer audit releases/2026-11 --identity folder --others more-photos/
    anonymizer audit releases/2026-11 --union releases/2026-10 --union releases/2026-09
    """
    from anonymizer.config import AuditConfig
    from anonymizer.policy.ceilings import describe, parse_ceilings
    from anonymizer.release.audit_files import DOCUMENT
    from flows import api

    config = build_config(AuditConfig, None, {"release": release} | read_attackers(options), overrides)
    with console.progress_bar(quiet or as_json):
        summary = api.run_audit(config)
    problems = summary.pop("problems")
    audited = Release.at(config.release)
    public = json.loads(audited.audit_summary.read())
    document = json.loads((audited.audit / DOCUMENT).read())
    if as_json:
        bounds = {name: document[name] for name in ("ceilings", "no_ceiling")}
        click.echo(json.dumps(summary | bounds | {"public": public}))
        return
    risks = {
        title.lower(): f"risk above chance at most {answer['risk_above_chance_at_most']:.0%} "
        f"({', '.join(answer['attacks_tried'])})"
        if "risk_above_chance_at_most" in answer
        else "not measured"
        for title, answer in public["answers"].items()
    }
    console.print_facts(
        f"Attacked {summary['audited']} of {summary['released']} pictures at level {public['level']:g}",
        risks
        | (describe(ceilings) if (ceilings := parse_ceilings(document["ceilings"])) else {})
        | {
            "no ceiling": "; ".join(document["no_ceiling"]) or None,
            "could not be tried": summary["not_run"],
            **({"not measured": summary["missing"]} if summary["missing"] else {}),
            "look at": console.format_page(audited.audit_page),
            "tables": audited.audit,
            "may be handed out": audited.audit_summary,
        },
    )
    console.print_cautions(problems)
    console.print_line(
        "Bounds are upper ends of 95 % intervals, for the attacks that were tried. Other attackers may do better."
    )


@click.command()
@config_argument
@click.option("--source", help="Folder, file or prefix with originals, where there is no CONFIG.")
@click.option("--kind", help="What is on the pictures, in your words: source.kind.")
@model_option
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
    folder: str | None, overrides: tuple[str, ...], as_json: bool, quiet: bool, **attackers: Any,
) -> None:  # fmt: skip
    """Measure risk and utility at several levels.

    \b
    anonymizer calibrate CONFIG.yaml --levels .1:.9:.1 --identity folder
    anonymizer calibrate --source photos/ --kind "passport photos" --outsiders strangers/

    Half of the people choose a level and the other half confirm it. A run takes the level from the result with
    `boomerang.level: {calibration: calibration/calibration.json, max_risk: 0.05}`.
    """
    from anonymizer.config import CalibrationConfig, RunConfig
    from anonymizer.crypto.custodian_key import load_key
    from anonymizer.policy import calibration as calibrations
    from anonymizer.policy.calibration import build_resolved
    from flows.jobs import calibrate as calibrate_job

    own = [override for override in overrides if override.startswith("calibration.")]
    # All of --levels are measured, whatever level the settings name; a user's own override still counts.
    of_run = ["boomerang.level=1.0", "boomerang.chosen=null", *(text for text in overrides if text not in own)]
    options = {"source.uri": source, "source.kind": kind, "model.id": model}
    if config is None:
        if source is None:
            raise UsageError("config: none given: name a CONFIG.yaml, or give --source")
        options["output.uri"] = folder or "calibration"  # nothing is released
    run = build_config(RunConfig, config, options, tuple(of_run))
    given = read_attackers({"levels": levels, "folder": folder} | attackers)
    tree = {"run": run.model_dump()}
    settings = build_resolved(CalibrationConfig, tree, [text.removeprefix("calibration.") for text in own], given)
    with console.progress_bar(quiet or as_json):
        calibrate_job.check(settings)
        summary = run_flow("calibrate", settings, secrets=(run.key_env, run.signing_key_env))
    results = StoragePath.from_uri(settings.folder)
    file = results / "calibration.json"
    calibration, digest = calibrations.read(str(file)), hashlib.sha256(file.read()).hexdigest()
    if as_json:
        document = calibration.model_dump(mode="json", exclude={"hmac"})
        click.echo(json.dumps(summary | {"calibration": document, "sha256": digest}))
        return
    console.print_curve(calibration)
    console.print_facts(
        f"Calibrated {summary['levels']} levels on {summary['pictures']} pictures of {summary['people']} people",
        {
            "calibration": file,
            "sha256": digest,
            "plots": f"{results / 'risk.svg'}, {results / 'utility.svg'}",
            "tables": f"{results / 'risk.parquet'}, {results / 'utility.parquet'}",
        },
    )
    console.print_cautions([summary["note"]] if summary["note"] else [])
    pin = "" if load_key(run.key_env).is_persistent else ", sha256: DIGEST"  # what no key sealed must be pinned
    console.print_line(
        f"To choose by it: boomerang.level: {{calibration: FILE, max_risk: 0.05{pin}}}. Other attackers may do better."
    )


COMMANDS = (audit, calibrate)
