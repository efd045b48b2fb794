"""What the tasks of an audit do, without Prefect: read the evidence, try the attacks, write what came out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa

from anonymizer import config as configuration
from anonymizer import exhibits, parquet, plan, report
from anonymizer.backbones import Backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import AuditConfig, RunConfig, SourceConfig
from anonymizer.errors import OutputError, StepError
from anonymizer.exhibits import Exhibits
from anonymizer.layout import Release
from anonymizer.place import Place
from anonymizer.sources import open_source
from flows.steps import apart, backbone_of, guarded
from metrics import audit, features, surroundings
from metrics.attacks import ATTACKERS
from metrics.bench import Effort, Evidence, Workbench
from metrics.certificate import Certificate, certificate
from metrics.features import Embedder
from metrics.risk import Figure

FEWEST = 4  # pictures, for the least that an attack can be tried on
TRAINING = 1000  # training pictures of the model that are looked at, at most


@dataclass(frozen=True)
class AuditSummary:
    """Counts only: safe to hand to a scheduler."""

    audited: int
    released: int
    figures: int
    not_run: int


def run(config: AuditConfig, progress: Callable[[str], None] = lambda doing: None) -> AuditSummary:
    """Attack a release and write ``restricted/audit/``, its page and the public summary. Raises before long work."""
    release = Release.at(config.release)
    settings, the_plan = _settings(release), plan.read(release)
    backbone, embedders = _models(config, settings, the_plan)
    boomerang = Boomerang(backbone, settings.boomerang.sampler, settings.boomerang.steps)
    seed = int(the_plan.fingerprint[:12], 16)
    rng = np.random.default_rng(seed)

    progress("reading originals and outputs")
    shown = exhibits.exhibits(release, _source(settings.source, config), backbone.size, config.sample, rng)
    evidence = _evidence(config, shown, boomerang, the_plan.level, rng)
    if len(evidence) < FEWEST or len(set(evidence.subjects)) < 2:
        raise OutputError(
            f"release {config.release!r}: {len(evidence)} pictures of {len(set(evidence.subjects))} people: an audit "
            f"needs {FEWEST} of two people or more"
        )
    effort = Effort(config.pairs, config.outputs, config.averaged)
    bench = Workbench(evidence, embedders, effort, seed, progress)
    wanted = [name for name in config.attacks if name not in config.skip]
    findings = audit.examine(bench, [name for name in wanted if name != "leaks"])
    if "leaks" in wanted:
        progress("leaks")
        findings.figures += surroundings.figures(_surroundings(release, shown), evidence.subjects, bench.rng("leaks"))
    bound = certificate(backbone.encode(evidence.originals).flatten(1), float(boomerang.abar[the_plan.t_boom]), rng)
    _write(release, config, shown, findings, bound)
    report.write_audit(release, settings, the_plan, ATTACKERS)
    return AuditSummary(
        audited=len(shown),
        released=shown.released,
        figures=len(findings.figures),
        not_run=sum(figure.measure == "not run" for figure in findings.figures),
    )


def run_for_scheduler(config: AuditConfig, progress: Callable[[str], None]) -> AuditSummary:
    """``run``, with errors that a scheduler may keep."""
    error = StepError("audit: failed")
    return guarded(Release.at(config.release), "audit", error, lambda: run(config, progress))


def check(config: AuditConfig) -> RunConfig:
    """What can be told before the work: release, sources, models. Writes nothing; returns the release's settings."""
    settings = _settings(Release.at(config.release))
    next(iter(open_source(_source(settings.source, config)).entries()), None)
    for extra in (config.others, config.outsiders, config.training):
        if extra is not None:
            next(iter(open_source(extra).entries()), None)
    _models(config, settings, plan.read(Release.at(config.release)))
    return settings


def _models(config: AuditConfig, settings: RunConfig, the_plan: plan.Plan) -> tuple[Backbone, Sequence[Embedder]]:
    """The model that made the release, and what pictures are compared by; each loaded once for each process."""
    backbone = backbone_of(settings.model.model_copy(update={"device": config.device}))
    if backbone.digest != the_plan.model_digest:
        raise OutputError(
            f"release {config.release!r}: was made with another model than {settings.model.id!r} is now: bring it back"
        )
    return backbone, embedders_of(config.features, str(backbone.device))


@lru_cache(maxsize=1)
def embedders_of(names: tuple[str, ...], device: str) -> Sequence[Embedder]:
    return apart(lambda: features.load(names, device))


def _settings(release: Release) -> RunConfig:
    """What the release was made with; a source on a disk by its whole path, wherever the audit is started."""
    the_plan = plan.read(release)  # says what is missing where this is no release
    settings = configuration.build(configuration.parse(release.config.read().decode(), "restricted/config.yaml"))
    if not Place.of(settings.source.uri).is_local:
        return settings
    return settings.model_copy(update={"source": settings.source.model_copy(update={"uri": the_plan.source})})


def _source(source: SourceConfig, config: AuditConfig) -> SourceConfig:
    """The release's source, asked for what the audit wants to know of each record besides."""
    return source.model_copy(
        update={"label": config.identity, "caption": None, "carry": tuple(dict.fromkeys(config.attributes))}
    )


def _evidence(
    config: AuditConfig, shown: Exhibits, boomerang: Boomerang, level: float, rng: np.random.Generator
) -> Evidence:
    size = boomerang.backbone.size
    subjects = [
        label or f"record {name}"
        for label, name in zip(shown.originals.labels, shown.originals.record_ids, strict=True)
    ]
    others = exhibits.photos(config.others, size, 10 * config.sample, rng) if config.others else None
    outsiders = (
        exhibits.photos(config.outsiders, size, max(config.pairs, config.sample), rng) if config.outsiders else None
    )
    training = exhibits.photos(config.training, size, TRAINING, rng) if config.training else None
    return Evidence(
        originals=shown.originals.pictures,
        outputs=shown.outputs,
        subjects=np.array(subjects if config.identity else list(shown.originals.record_ids)),
        identified=config.identity is not None,
        boomerang=boomerang,
        level=level,
        attributes={name: [columns.get(name) for columns in shown.originals.columns] for name in config.attributes},
        others=(others.pictures, np.array([str(label) for label in others.labels])) if others else None,
        outsiders=outsiders.pictures if outsiders else None,
        training=training.pictures if training else None,
    )


def _surroundings(release: Release, shown: Exhibits) -> surroundings.Surroundings:
    """What an attacker finds beside the pictures that were drawn."""
    manifest = shown.manifest
    paths = [release.public / row["file"] for row in manifest]
    times = [Path(place.path).stat().st_mtime_ns for place in paths] if release.root.is_local else []
    text = [repr({k: v for k, v in row.items() if k not in ("label", "caption")}) for row in manifest]
    return surroundings.Surroundings(
        files=shown.encoded,
        public=[*text, *shown.encoded],
        names=[f"{row['record_id']} {row['source_uri'].rpartition('/')[2]}" for row in shown.ledger],
        places=np.argsort([row["output_id"] for row in manifest]),
        sizes=np.array([row["bytes"] for row in manifest], float),
        source_sizes=np.array(shown.originals.sizes, float),
        shapes=np.array([[row["width"], row["height"]] for row in manifest]),
        source_shapes=np.array(shown.originals.shapes),
        times=np.array(times, float) if len(set(times)) > 1 else None,
    )


def _write(
    release: Release, config: AuditConfig, shown: Exhibits, findings: audit.Findings, bound: Certificate
) -> None:
    """Everything that came out, as tables; the pages are made of these."""
    folder = release.audit
    (folder / "figures.parquet").write(
        parquet.to_bytes(pa.Table.from_pylist([asdict(f) for f in findings.figures], FIGURES))
    )
    ranks = [
        {"attack": name, "rank": int(r), "share": float(s), "control": float(c), "chance": float(b)}
        for name, found in findings.ranks.items()
        for r, s, c, b in zip(found.rank, found.share, found.control, found.chance, strict=True)
    ]
    (folder / "ranks.parquet").write(parquet.to_bytes(pa.Table.from_pylist(ranks, RANKS)))
    found_by = [
        {"record_id": row["record_id"], "output_id": row["output_id"], "attack": name}
        for name, hits in findings.found.items()
        for row, hit in zip(shown.ledger, hits, strict=True)
        if hit
    ]
    (folder / "found.parquet").write(parquet.to_bytes(pa.Table.from_pylist(found_by, FOUND)))
    told = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "code_version": version("anonymizer"),
        "audited": len(shown),
        "released": shown.released,
        "unread": shown.unread,
        "config": config.model_dump(mode="json"),
        "certificate": asdict(bound),
    }
    (folder / "audit.json").write(json.dumps(told, indent=2).encode())


def _schema(kind: type) -> pa.Schema:
    names = {"str": pa.string(), "int": pa.int32(), "float": pa.float64()}
    return pa.schema([pa.field(f.name, names[str(f.type).partition(" ")[0]]) for f in fields(kind)])


FIGURES = _schema(Figure)
RANKS = pa.schema(
    [("attack", pa.string()), ("rank", pa.int32())] + [(n, pa.float64()) for n in ("share", "control", "chance")]
)
FOUND = pa.schema([(name, pa.string()) for name in ("record_id", "output_id", "attack")])
