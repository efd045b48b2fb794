"""An audit: collect evidence, attack it and its baselines, write the results to ``restricted/audit/``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from anonymizer import report
from anonymizer.attest import statement
from anonymizer.backbones import Backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import AuditConfig, RunConfig
from anonymizer.data.metadata import find_metadata
from anonymizer.data.sources import open_source
from anonymizer.errors import ModelError, OutputError
from anonymizer.policy import public_scores
from anonymizer.policy.attackers import Attackers
from anonymizer.policy.ceilings import published_columns
from anonymizer.records import Ceilings, Plan
from anonymizer.release import assumptions, audit_columns, audit_files, audit_sample, plan
from anonymizer.release.audit_sample import AuditSample
from anonymizer.release.plan import resolve_config
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from flows.jobs import attack_evidence, audit_caveats, ceilings
from flows.jobs.models import backbone_of
from flows.jobs.progress import NO_PROGRESS, ProgressReporter
from flows.jobs.redaction import in_fresh_thread
from flows.jobs.release import scorer_of
from metrics.attacks import ATTACKERS
from metrics.audit import audit, baselines, side_channels
from metrics.audit.findings import Findings
from metrics.audit.mechanisms import LocalSampling
from metrics.audit.published_scores import PublishedColumn, PublishedScores, recompute_scores
from metrics.audit.workbench import Evidence, Workbench
from metrics.features import Embedder
from metrics.models.lpips import OFFLINE_MODEL, PerceptualDistance
from metrics.stats import figure_table
from metrics.stats.ceilings import compute_ceilings, place
from metrics.stats.intervals import Names, as_subjects
from metrics.stats.risk import Figure, not_run

MIN_IMAGES = 4
RANKS_SCHEMA = pa.schema(
    [("attack", pa.string()), ("rank", pa.int32())] + [(n, pa.float64()) for n in ("share", "control", "chance")]
)
HITS_SCHEMA = pa.schema([(name, pa.string()) for name in ("record_id", "output_id", "attack")])


@dataclass(frozen=True)
class AuditInputs:
    """A release under audit, the sample of it that is attacked, and the attackers' workbench."""

    config: AuditConfig
    release: Release
    settings: RunConfig
    plan: Plan
    union: Sequence[Release]
    sample: AuditSample
    unprotected: Sequence[str]  # columns that attackers know of originals, and that the ledger does not hold
    bench: Workbench
    ceilings: Ceilings | None
    no_ceiling: Sequence[str]  # why there is none

    @property
    def attacks(self) -> list[str]:
        return [name for name in self.config.attacks if name not in self.config.skip]

    @property
    def image_attacks(self) -> list[str]:
        return [name for name in self.attacks if name != "leaks"]


@dataclass(frozen=True)
class BaselineResults:
    """Figures of the baselines, and the median distance of the release and of each baseline from the originals."""

    figures: list[Figure] = field(default_factory=list)
    distances: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditSummary:
    """Counts only: safe to hand to a scheduler."""

    audited: int
    released: int
    missing: int  # records of the sample that could not be measured
    figures: int
    not_run: int


def run(config: AuditConfig, progress: ProgressReporter = NO_PROGRESS) -> AuditSummary:
    """Attack a release and write ``restricted/audit/``, its page and the public summary. Raises before long work."""
    inputs = collect_evidence(config, progress)
    return write_audit(inputs, run_attacks(inputs, progress), run_baselines(inputs, progress))


def check(config: AuditConfig) -> RunConfig:
    """Check release, sources and models before the work; write nothing. Returns the release's settings."""
    release = plan.open_with_key(config.release)
    audit_sample.require_key(release)
    settings = resolve_config(release)
    next(iter(open_source(attack_evidence.with_attack_columns(settings.source, config)).entries()), None)
    attack_evidence.check_sources(config)
    the_plan = plan.read(release)
    _open_union(config, release, the_plan)
    _load_models(config, settings, the_plan)
    return settings


def collect_evidence(config: AuditConfig, progress: ProgressReporter = NO_PROGRESS) -> AuditInputs:
    """Read a sample of originals and outputs. Raises OutputError where it is too small to attack."""
    release = plan.open_with_key(config.release)
    audit_sample.require_key(release)  # before models and sources that unsealed settings may name
    settings, the_plan = resolve_config(release), plan.read(release)
    union = _open_union(config, release, the_plan)
    backbone, embedders = _load_models(config, settings, the_plan)
    attacks = set(config.attacks) - set(config.skip)
    progress.begin(len(attacks) + len(attacks - {"leaks"}) * len(config.baselines), 0)
    progress.stage("reading originals and outputs")
    seed = int(the_plan.fingerprint[:12], 16)
    rng = np.random.default_rng(seed)
    source = attack_evidence.with_attack_columns(settings.source, config)
    sample = audit_sample.draw_sample(release, source, backbone.size, config.sample, rng, union)
    unprotected: Sequence[str] = ()
    if not union:  # whose settings may have read other columns
        sample, unprotected = audit_columns.with_sealed_columns(sample, settings.source, source)
    boomerang = Boomerang(backbone, settings.boomerang.sampler, settings.boomerang.steps)
    mechanism = LocalSampling(boomerang, the_plan.level, settings.output.image, settings.output.quality)
    evidence = attack_evidence.gather_evidence(config, sample.originals, sample.outputs, mechanism, backbone, rng)
    if any(row["group"] for row in sample.ledger):
        evidence = replace(evidence, groups=as_subjects([row["group"] or row["record_id"] for row in sample.ledger]))
    if settings.source.label is not None:
        evidence = replace(evidence, published=as_subjects([row.get("label") for row in sample.manifest]))
    people = len(set(evidence.subjects))
    if len(evidence) < MIN_IMAGES or people < 2:
        raise OutputError(
            f"release {config.release!r}: {len(evidence)} pictures of {people} people: an audit "
            f"needs {MIN_IMAGES} of two people or more"
        )
    if bool((evidence.originals == evidence.originals[:1]).all()):
        raise OutputError(
            f"release {config.release!r}: all originals that were drawn are the same picture: nothing can be told apart"
        )
    bounds = _bound_attacks(release, settings, the_plan, sample, evidence, union)
    bench = Workbench(evidence, embedders, attack_evidence.effort_of(config), seed, progress.stage)
    return AuditInputs(config, release, settings, the_plan, union, sample, unprotected, bench, *bounds)


def _bound_attacks(
    release: Release,
    settings: RunConfig,
    the_plan: Plan,
    sample: AuditSample,
    evidence: Evidence,
    union: Sequence[Release],
) -> tuple[Ceilings | None, Sequence[str]]:
    """Return the ceilings for the very originals that are attacked, or why there are none."""
    reasons = assumptions.find_broken(settings, audit_sample.require_key(release), the_plan)
    if union:
        reasons.append("union: the releases may hold several outputs of one original")
    if reasons:
        return None, reasons
    caveats = assumptions.list_caveats(settings, audit_sample.require_key(release))
    k, names = settings.boomerang.k, evidence.groups
    groups = [] if names is None else [np.flatnonzero(names == name) for name in np.unique(names)]
    groups = [rows for rows in groups if len(rows) >= k]  # the others of some were not released, or are gone
    try:
        latents, names = ceilings.encode(evidence.model, evidence.originals), _published_values(settings, sample)
        candidates = place(latents, evidence.subjects, published=names)
        rng = np.random.default_rng(int(the_plan.fingerprint[:12], 16))
        abar, outputs = audit_caveats.max_abar(sample), ceilings.outputs_of(settings)
        found = compute_ceilings(candidates, abar, rng, k=k, outputs=outputs, groups=groups)
        return replace(ceilings.round_up(found), caveats=caveats), ()
    except ValueError:
        return None, [ceilings.NOT_ENOUGH]


def _published_values(settings: RunConfig, sample: AuditSample) -> Names | None:
    """Return (N,) what is published with each picture, by its manifest row; None for nothing."""
    names = published_columns(settings)
    return as_subjects([repr([row.get(name) for name in names]) for row in sample.manifest]) if names else None


def run_attacks(inputs: AuditInputs, progress: ProgressReporter = NO_PROGRESS) -> Findings:
    """Attack the images of the sample, then what surrounds them."""
    findings = audit.run_attacks(inputs.bench, inputs.image_attacks, progress.advance)
    if "leaks" in inputs.attacks:
        progress.stage("leaks")
        channels = _gather_side_channels(inputs.sample, _recompute_published(inputs))
        subjects = inputs.bench.evidence.subjects
        findings.figures += side_channels.side_channel_figures(channels, subjects, inputs.bench.rng("leaks"))
        progress.advance(1)
    return findings


def run_baselines(inputs: AuditInputs, progress: ProgressReporter = NO_PROGRESS) -> BaselineResults:
    """Run the same attacks on the outputs of the baselines."""
    results = BaselineResults()
    if not inputs.config.baselines:
        return results
    bench, model = inputs.bench, inputs.settings.metrics.lpips
    evidence = bench.evidence
    distance = in_fresh_thread(
        lambda: PerceptualDistance.load(OFFLINE_MODEL if model == "none" else model, evidence.model.device)
    )
    own = baselines.median_distance(evidence.originals, evidence.outputs, distance)
    results.distances[evidence.mechanism.name] = own
    for name in inputs.config.baselines:
        progress.stage(f"baseline {name}")
        try:
            baseline = baselines.apply_baseline(name, evidence, distance, bench.rng(f"baseline {name}"))
        except ValueError as problem:
            results.figures.append(not_run(str(problem), name, attack="all", attacker="all", feature=""))
            continue
        mechanism = baseline.mechanism
        results.distances[mechanism.name] = baseline.distance
        other = bench.with_outputs(mechanism, baseline.outputs)
        findings = audit.run_attacks(other, inputs.image_attacks, progress.advance)
        results.figures.extend(replace(figure, baseline=mechanism.name) for figure in findings.figures)
    return results


def write_audit(inputs: AuditInputs, findings: Findings, results: BaselineResults) -> AuditSummary:
    """Write the page, and the results as sealed tables."""
    figures, hits = figure_table.figures_table(findings.figures + results.figures), _list_hits(inputs, findings)
    document = _describe_audit(inputs, results)
    content = report.AuditReport(figures.to_pylist(), document, hits["record_id"].to_pylist())
    report.write_audit(inputs.release, inputs.settings, inputs.plan, content, ATTACKERS)
    public = report.build_public_summary(inputs.plan, document, content.answers)
    tables = {"figures.parquet": figures, "ranks.parquet": _list_ranks(findings), "found.parquet": hits}
    files = {name: parquet.to_bytes(table) for name, table in tables.items()}
    files["public.json"] = json.dumps(public, indent=2).encode()
    audit_files.write(inputs.release, inputs.plan.id, document, files)
    return AuditSummary(
        audited=len(inputs.sample),
        released=inputs.sample.released,
        missing=inputs.sample.missing,
        figures=len(figures),
        not_run=sum(figure.measure == "not run" for figure in findings.figures),
    )


def _list_ranks(findings: Findings) -> pa.Table:
    ranks = [
        {"attack": name, "rank": int(r), "share": float(s), "control": float(c), "chance": float(b)}
        for name, ranking in findings.ranks.items()
        for r, s, c, b in zip(ranking.rank, ranking.share, ranking.control, ranking.chance, strict=True)
    ]
    return pa.Table.from_pylist(ranks, RANKS_SCHEMA)


def _list_hits(inputs: AuditInputs, findings: Findings) -> pa.Table:
    hits = [
        {"record_id": row["record_id"], "output_id": row["output_id"], "attack": name}
        for name, is_hit in findings.hits.items()
        for row, hit in zip(inputs.sample.ledger, is_hit, strict=True)
        if hit
    ]
    return pa.Table.from_pylist(hits, HITS_SCHEMA)


def _describe_audit(inputs: AuditInputs, results: BaselineResults) -> dict[str, Any]:
    """Return the content of ``audit.json``, but for the digests of the files beside it."""
    sample, config, settings = inputs.sample, inputs.config, inputs.settings
    notes = [inputs.bench.evidence.note, *audit_caveats.caveats(sample, inputs.plan, settings, inputs.unprotected)]
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": version("anonymizer"),
        "manifest": statement.file_digest(inputs.release.manifest),
        "audited": len(sample),
        "released": sample.released,
        "union": len(config.union),  # releases besides this one, whose images are counted here too
        "unread": sample.unread,
        "changed": sample.changed,
        "config": config.model_dump(mode="json"),
        "attackers": asdict(_describe_attackers(inputs)),
        "features": inputs.bench.feature_names,
        "ceilings": None if inputs.ceilings is None else asdict(inputs.ceilings),
        "no_ceiling": list(inputs.no_ceiling),
        "distances": results.distances,
        "note": "; ".join(filter(None, notes)) or None,
        "lacking": audit_caveats.attacker_limits(settings, inputs.unprotected),
    }


def _describe_attackers(inputs: AuditInputs) -> Attackers:
    effort = {name: getattr(inputs.config, name) for name in ("features", "pairs", "outputs", "averaged", "identity")}
    return Attackers(attacks=inputs.attacks, sample=len(inputs.sample), released=inputs.sample.released, **effort)


def _open_union(config: AuditConfig, audited: Release, the_plan: Plan) -> list[Release]:
    """Open the releases to be attacked together with the audited one. Raises OutputError where they cannot be."""
    union = [Release.at(uri, audited.key) for uri in config.union]
    for uri, release in zip(config.union, union, strict=True):
        if plan.read(Release(release.root)).key_check != the_plan.key_check:
            raise OutputError(f"union {uri!r}: was made with another key: nobody in it is known again: leave it out")
        if not release.is_published:
            raise OutputError(f"union {uri!r}: is not published: finish it first, or leave it out")
        plan.read(release)
    return union


def _load_models(config: AuditConfig, settings: RunConfig, the_plan: Plan) -> tuple[Backbone, Sequence[Embedder]]:
    """Load the release's model and the features of the attackers, once for each process."""
    backbone = backbone_of(settings.model.model_copy(update={"device": config.device}))
    if backbone.digest != the_plan.model_digest:
        raise OutputError(
            f"release {config.release!r}: was made with another model than {settings.model.id!r} is now: bring it back"
        )
    return backbone, attack_evidence.load_embedders(config.features, str(backbone.device))


def _recompute_published(inputs: AuditInputs) -> PublishedScores | str:
    """Return the manifest's scores with those of every candidate by the same models, or the reason why not."""
    sample, evidence = inputs.sample, inputs.bench.evidence
    columns = {
        name: PublishedColumn(
            score,
            np.array([public_scores.to_number(row.get(name)) for row in sample.manifest]),
            None if name == score else public_scores.bin_center,
        )
        for name, score in public_scores.find_score_columns(sample.manifest[0]).items()
    }
    if not columns:
        return "no score is published"
    models, *others = [_score_models(release) for release in (inputs.release, *inputs.union)]
    if any(other != models for other in others):
        return "the releases were scored by different models"
    try:
        settings = inputs.settings.metrics.model_copy(update={"identity": "none"})  # which is never published
        scorer = scorer_of(settings, str(evidence.model.device))
        for name in (column.score for column in columns.values()):
            if (current := scorer.names.get(name)) != models.get(name):
                return f"{name} was scored by {models.get(name)}, and {current} is at hand: bring it back"
        rng = inputs.bench.rng("published scores")
        return recompute_scores(columns, sample.originals.images, sample.outputs, scorer, rng)
    except ModelError as problem:
        return f"scores cannot be computed again: {problem}"


def _score_models(release: Release) -> Mapping[str, str]:
    """Return the model behind each published score."""
    models: Mapping[str, str] = json.loads(parquet.read_metadata(release.manifest).get(b"metric_models", b"{}"))
    return models


def _gather_side_channels(sample: AuditSample, published: PublishedScores | str) -> side_channels.SideChannels:
    """Gather what an attacker sees around the images of the sample."""
    manifest, paths = sample.manifest, sample.output_paths
    is_local = all(path.is_local for path in paths)
    times = [Path(path.path).stat().st_mtime_ns for path in paths] if is_local else []
    text = [repr({k: v for k, v in row.items() if k not in ("label", "caption")}) for row in manifest]
    return side_channels.SideChannels(
        files=sample.encoded_outputs,
        public=[*text, *(data for data in sample.encoded_outputs if find_metadata(data))],
        names=[f"{row['record_id']} {row['source_uri'].rpartition('/')[2]}" for row in sample.ledger],
        release_order=np.argsort([row["output_id"] for row in manifest]),
        sizes=np.array([row["bytes"] for row in manifest], float),
        source_sizes=np.array(sample.originals.byte_sizes, float),
        shapes=np.array([[row["width"], row["height"]] for row in manifest]),
        source_shapes=np.array(sample.originals.dimensions),
        times=np.array(times, float) if len(set(times)) > 1 else None,
        published=published,
    )
