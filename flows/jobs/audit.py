"""What the tasks of an audit do, without Prefect: read the evidence, try the attacks, write what came out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from anonymizer import report
from anonymizer.attest import statement
from anonymizer.backbones import Backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import AuditConfig, RunConfig
from anonymizer.data.metadata import find_metadata
from anonymizer.data.sources import open_source
from anonymizer.errors import ModelError, OutputError, StepError
from anonymizer.policy import public_scores
from anonymizer.records import Plan
from anonymizer.release import audit_sample, event_log, plan
from anonymizer.release.audit_sample import AuditSample
from anonymizer.release.plan import resolve_config
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from flows.jobs import attack_evidence, audit_caveats
from flows.jobs.progress import NO_PROGRESS, ProgressReporter
from flows.jobs.release import backbone_of, in_fresh_thread, redact_errors, scorer_of
from metrics.attacks import ATTACKERS
from metrics.audit import audit, baselines, side_channels
from metrics.audit.gaussian_bound import Certificate, compute_certificate
from metrics.audit.mechanisms import LocalSampling
from metrics.audit.published_scores import PublishedColumn, PublishedScores, recompute_scores
from metrics.audit.workbench import Workbench
from metrics.features import Embedder
from metrics.models.lpips import OFFLINE_MODEL, PerceptualDistance
from metrics.stats import figure_table
from metrics.stats.risk import Figure, with_note

MIN_IMAGES = 4  # pictures, for the least that an attack can be tried on


@dataclass(frozen=True)
class AuditSummary:
    """Counts only: safe to hand to a scheduler."""

    audited: int
    released: int
    figures: int
    not_run: int


def run(config: AuditConfig, watching: ProgressReporter = NO_PROGRESS) -> AuditSummary:
    """Attack a release and write ``restricted/audit/``, its page and the public summary. Raises before long work."""
    release = Release.at(config.release)
    settings, the_plan = resolve_config(release), plan.read(release)
    union = _open_union(config, the_plan)
    backbone, embedders = _load_models(config, settings, the_plan)
    boomerang = Boomerang(backbone, settings.boomerang.sampler, settings.boomerang.steps)
    seed = int(the_plan.fingerprint[:12], 16)
    rng = np.random.default_rng(seed)

    wanted = [name for name in config.attacks if name not in config.skip]
    on_pictures = [name for name in wanted if name != "leaks"]
    watching.begin(len(wanted) + len(on_pictures) * len(config.baselines), 0)
    watching.stage("reading originals and outputs")
    source = attack_evidence.with_attack_columns(settings.source, config)
    shown = audit_sample.draw_sample(release, source, backbone.size, config.sample, rng, union)
    method = LocalSampling(boomerang, the_plan.level, settings.output.image, settings.output.quality)
    evidence = attack_evidence.gather_evidence(config, shown.originals, shown.outputs, method, backbone, rng)
    if len(evidence) < MIN_IMAGES or len(set(evidence.subjects)) < 2:
        raise OutputError(
            f"release {config.release!r}: {len(evidence)} pictures of {len(set(evidence.subjects))} people: an audit "
            f"needs {MIN_IMAGES} of two people or more"
        )
    try:
        bound = compute_certificate(backbone.encode(evidence.originals).flatten(1), audit_caveats.max_abar(shown), rng)
    except ValueError:
        raise OutputError(
            f"release {config.release!r}: all originals that were drawn are the same picture: nothing can be told apart"
        ) from None
    bound = audit_caveats.limit_certificate(bound, settings)
    bench = Workbench(evidence, embedders, attack_evidence.effort_of(config), seed, watching.stage)
    findings = audit.run_attacks(bench, on_pictures, watching.advance)
    if "leaks" in wanted:
        watching.stage("leaks")
        scored_by = [_score_models(one) for one in (release, *union)]
        published = _recompute_published(
            scored_by, settings, shown, str(backbone.device), bench.rng("published scores")
        )
        around = _gather_side_channels(shown, published)
        findings.figures += side_channels.side_channel_figures(around, evidence.subjects, bench.rng("leaks"))
        watching.advance(1)
    beside, distances = _attack_baselines(config, settings, bench, on_pictures, watching)
    findings.figures += beside
    note = "; ".join([*filter(None, [evidence.note]), *audit_caveats.caveats(shown, the_plan, settings)]) or None
    _write(release, config, shown, findings, bound, distances, note, audit_caveats.attacker_limits(settings))
    report.write_audit(release, settings, the_plan, ATTACKERS)
    event_log.record(release, "audited", pictures=len(shown), attacks=wanted)
    return AuditSummary(
        audited=len(shown),
        released=shown.released,
        figures=len(findings.figures),
        not_run=sum(figure.measure == "not run" and figure.baseline is None for figure in findings.figures),
    )


def run_for_scheduler(config: AuditConfig, watching: ProgressReporter) -> AuditSummary:
    """``run``, with errors that a scheduler may keep."""
    error = StepError("audit: failed")
    return redact_errors(Release.at(config.release).restricted, "audit", error, lambda: run(config, watching))


def check(config: AuditConfig) -> RunConfig:
    """What can be told before the work: release, sources, models. Writes nothing; returns the release's settings."""
    settings = resolve_config(Release.at(config.release))
    next(iter(open_source(attack_evidence.with_attack_columns(settings.source, config)).entries()), None)
    attack_evidence.check_sources(config)
    the_plan = plan.read(Release.at(config.release))
    _open_union(config, the_plan)
    _load_models(config, settings, the_plan)
    return settings


def _open_union(config: AuditConfig, the_plan: Plan) -> list[Release]:
    """The releases that are attacked together with the one that is audited. OutputError where they cannot be."""
    found = [Release.at(uri) for uri in config.union]
    for uri, one in zip(config.union, found, strict=True):
        if the_plan.key_check is None or plan.read(one).key_check != the_plan.key_check:
            raise OutputError(f"union {uri!r}: was made with another key: nobody in it is known again: leave it out")
        if not one.is_published:
            raise OutputError(f"union {uri!r}: is not published: finish it first, or leave it out")
    return found


def _load_models(config: AuditConfig, settings: RunConfig, the_plan: Plan) -> tuple[Backbone, Sequence[Embedder]]:
    """The model that made the release, and what pictures are compared by; each loaded once for each process."""
    backbone = backbone_of(settings.model.model_copy(update={"device": config.device}))
    if backbone.digest != the_plan.model_digest:
        raise OutputError(
            f"release {config.release!r}: was made with another model than {settings.model.id!r} is now: bring it back"
        )
    return backbone, attack_evidence.load_embedders(config.features, str(backbone.device))


def _attack_baselines(
    config: AuditConfig, settings: RunConfig, bench: Workbench, attacks: Sequence[str], watching: ProgressReporter
) -> tuple[list[Figure], dict[str, float]]:
    """What the same attacks find in the baselines, and how far these and the release lie from the originals."""
    if not config.baselines:
        return [], {}
    evidence, model = bench.evidence, settings.metrics.lpips
    distance = in_fresh_thread(
        lambda: PerceptualDistance.load(OFFLINE_MODEL if model == "none" else model, bench.evidence.model.device)
    )
    lines, distances = (
        [],
        {evidence.mechanism.name: baselines.median_distance(evidence.originals, evidence.outputs, distance)},
    )
    for name in config.baselines:
        watching.stage(f"baseline {name}")
        try:
            other = baselines.apply_baseline(name, evidence, distance, bench.rng(f"baseline {name}"))
        except ValueError as problem:
            empty = Figure(attack="all", attacker="all", measure="not run", feature="", n=0, subjects=0, baseline=name)
            lines.append(with_note(empty, str(problem)))
            continue
        distances[other.mechanism.name] = other.distance
        found = audit.run_attacks(bench.with_outputs(other.mechanism, other.outputs), attacks, watching.advance)
        lines += [replace(figure, baseline=other.mechanism.name) for figure in found.figures]
    return lines, distances


def _recompute_published(
    scored_by: Sequence[Mapping[str, str]],
    settings: RunConfig,
    shown: AuditSample,
    device: str,
    rng: np.random.Generator,
) -> PublishedScores | str:
    """The scores in the manifest beside what their models give for every candidate, or why that was not tried.

    ``scored_by``: of each release, the model of each score.
    """
    columns = {
        name: PublishedColumn(
            score,
            np.array([public_scores.to_number(row.get(name)) for row in shown.manifest]),
            None if name == score else public_scores.bin_center,
        )
        for name, score in public_scores.find_score_columns(shown.manifest[0]).items()
    }
    if not columns:
        return "no score is published"
    models, *others = scored_by
    if any(other != models for other in others):
        return "the releases were scored by different models"
    try:
        scorer = scorer_of(settings.metrics.model_copy(update={"identity": "none"}), device)  # never published
        for name in (column.score for column in columns.values()):
            if scorer.names.get(name) != models.get(name):
                return (
                    f"{name} was scored by {models.get(name)}, and {scorer.names.get(name)} is at hand: bring it back"
                )
        return recompute_scores(columns, shown.originals.images, shown.outputs, scorer, rng)
    except ModelError as problem:
        return f"scores cannot be computed again: {problem}"


def _score_models(release: Release) -> dict[str, str]:
    """Which model made each score that is published."""
    told = parquet.read_metadata(release.manifest)
    found: dict[str, str] = json.loads(told.get(b"metric_models", b"{}"))
    return found


def _gather_side_channels(shown: AuditSample, published: PublishedScores | str) -> side_channels.SideChannels:
    """What an attacker finds beside the pictures that were drawn."""
    manifest = shown.manifest
    local = all(place.is_local for place in shown.output_paths)
    times = [Path(place.path).stat().st_mtime_ns for place in shown.output_paths] if local else []
    text = [repr({k: v for k, v in row.items() if k not in ("label", "caption")}) for row in manifest]
    return side_channels.SideChannels(
        files=shown.encoded_outputs,
        public=[*text, *(data for data in shown.encoded_outputs if find_metadata(data))],
        names=[f"{row['record_id']} {row['source_uri'].rpartition('/')[2]}" for row in shown.ledger],
        release_order=np.argsort([row["output_id"] for row in manifest]),
        sizes=np.array([row["bytes"] for row in manifest], float),
        source_sizes=np.array(shown.originals.byte_sizes, float),
        shapes=np.array([[row["width"], row["height"]] for row in manifest]),
        source_shapes=np.array(shown.originals.dimensions),
        times=np.array(times, float) if len(set(times)) > 1 else None,
        published=published,
    )


def _write(
    release: Release,
    config: AuditConfig,
    shown: AuditSample,
    findings: audit.Findings,
    bound: Certificate,
    distances: Mapping[str, float],
    note: str | None,
    lacking: str | None,
) -> None:
    """Everything that came out, as tables; the pages are made of these."""
    folder = release.audit
    (folder / "figures.parquet").write(parquet.to_bytes(figure_table.figures_table(findings.figures)))
    ranks = [
        {"attack": name, "rank": int(r), "share": float(s), "control": float(c), "chance": float(b)}
        for name, found in findings.ranks.items()
        for r, s, c, b in zip(found.rank, found.share, found.control, found.chance, strict=True)
    ]
    (folder / "ranks.parquet").write(parquet.to_bytes(pa.Table.from_pylist(ranks, RANKS_SCHEMA)))
    found_by = [
        {"record_id": row["record_id"], "output_id": row["output_id"], "attack": name}
        for name, hits in findings.hits.items()
        for row, hit in zip(shown.ledger, hits, strict=True)
        if hit
    ]
    (folder / "found.parquet").write(parquet.to_bytes(pa.Table.from_pylist(found_by, HITS_SCHEMA)))
    told = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": version("anonymizer"),
        "manifest": statement.file_digest(release.manifest),
        "audited": len(shown),
        "released": shown.released,
        "union": len(config.union),  # releases besides this one, whose pictures are counted here too
        "unread": shown.unread,
        "config": config.model_dump(mode="json"),
        "certificate": asdict(bound),
        "distances": distances,
        "note": note,
        "lacking": lacking,
    }
    (folder / "audit.json").write(json.dumps(told, indent=2).encode())


RANKS_SCHEMA = pa.schema(
    [("attack", pa.string()), ("rank", pa.int32())] + [(n, pa.float64()) for n in ("share", "control", "chance")]
)
HITS_SCHEMA = pa.schema([(name, pa.string()) for name in ("record_id", "output_id", "attack")])
