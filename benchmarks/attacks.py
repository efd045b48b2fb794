"""Run every attack of the audit on one set of photos: a mere round trip, levels, baselines and unrelated images.

    python benchmarks/attacks.py --source attfaces --identity folder --outsiders faces.parquet --output results/att

What `anonymizer audit` does to one release is done here to each level and baseline, with the same photos, attackers and
code. Outputs and embeddings are cached in `OUTPUT/cache/`, so that a second call takes a minute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from anonymizer.backbones import load_backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import AuditConfig, ModelConfig, SourceConfig
from anonymizer.config.base import AUDIT_FEATURES, MATCHED_FILTER
from anonymizer.release import audit_sample
from metrics import features
from metrics.audit import audit, baselines
from metrics.audit.mechanisms import LocalSampling, Mechanism, RoundTrip, apply, reencode
from metrics.audit.workbench import Effort, Evidence, Workbench
from metrics.models.clip import ClipEmbedder, cosine_similarity
from metrics.models.lpips import OFFLINE_MODEL, PerceptualDistance
from metrics.stats.intervals import as_subjects

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 1.0)
UTILITY_LEVEL = 0.6  # the level whose utility blur and pixelation are given
MAX_OUTSIDERS = 1000


def main() -> None:
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(args.seed)
    backbone = load_backbone(ModelConfig(id=args.model))
    boomerang = Boomerang(backbone, args.sampler, args.steps)
    evidence = gather_evidence(args, boomerang, rng)
    names = args.features.split(",")
    effort = Effort(args.pairs, 16, args.averaged, MATCHED_FILTER in names)
    embedders = features.load_embedders([name for name in names if name != MATCHED_FILTER])
    bench = Workbench(evidence, embedders, effort, 1, make_store=lambda: ArrayFolder(args.output / "cache"))
    lpips, clip = PerceptualDistance.load(OFFLINE_MODEL), ClipEmbedder.load("bundled:clip-mini")
    for name, method in iter_methods(boomerang, args, evidence, lpips, bench):
        started = time.monotonic()
        outputs = load_outputs(bench, method)
        findings = audit.run_attacks(bench.with_outputs(method, outputs), args.attacks.split(","))
        description = {
            "method": method.name,
            "seconds": time.monotonic() - started,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "lpips": baselines.median_distance(evidence.originals, outputs, lpips),
            "clip": float(cosine_similarity(clip.embed(evidence.originals), clip.embed(outputs)).median()),
            "pictures": len(evidence),
            "people": len(set(evidence.subjects)),
            "outsiders": 0 if evidence.outsiders is None else len(evidence.outsiders[1]),
            "training": 0 if evidence.training is None else len(evidence.training),
            "log_snr": boomerang.log_snr(boomerang.t_boom(method.level)) if isinstance(method, LocalSampling) else None,
        }
        lines = [asdict(replace(line, baseline=method.name)) for line in findings.figures]
        table = pa.Table.from_pylist(lines).replace_schema_metadata({"method": json.dumps(description)})
        pq.write_table(table, args.output / f"{name}.parquet")
        print(
            f"{name}: {description['seconds']:.0f} s, {len(lines)} figures, peak {description['peak_mib']:.0f} MiB",
            flush=True,
        )


class ArrayFolder(MutableMapping[str, Any]):
    """Arrays by name, stored in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def _file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:20]}.npy"

    def __getitem__(self, name: str) -> Any:
        if not self._file(name).exists():
            raise KeyError(name)
        return np.load(self._file(name))

    def __setitem__(self, name: str, array: Any) -> None:
        part = self._file(name).with_suffix(".part.npy")
        np.save(part, array)
        part.rename(self._file(name))

    def __delitem__(self, name: str) -> None:
        self._file(name).unlink()

    def __iter__(self) -> Iterator[str]:
        return (file.stem for file in self.folder.glob("*.npy"))

    def __len__(self) -> int:
        return len(list(iter(self)))


def load_outputs(bench: Workbench, method: Mechanism) -> torch.Tensor:
    """Return the outputs of a method, as a file would hold them."""
    name, store = f"{method.name}, released", bench.own
    if name not in store:
        store[name] = reencode(apply(method, bench.evidence.originals, bench.rng(name)).nan_to_num(0.0)).numpy()
    return torch.from_numpy(store[name])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True)
    parser.add_argument("--where", default="{}", help="YAML: only rows whose column has this value")
    parser.add_argument("--identity", help="'folder' or a column; none: each photo is a person")
    parser.add_argument("--outsiders", help="other people's photos; none: those of the source that were not drawn")
    parser.add_argument("--outsiders-where", default="{}")
    parser.add_argument("--training", help="photos that the model was trained on")
    parser.add_argument("--training-where", default="{}")
    parser.add_argument("--attributes", default="")
    parser.add_argument("--features", default=",".join(AUDIT_FEATURES))
    parser.add_argument("--attacks", default=",".join(audit.ATTACKS))
    parser.add_argument("--model", default="bundled:faces-64")
    parser.add_argument("--sampler", default="sde-dpm++")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--levels", type=float, nargs="*", default=LEVELS)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=AuditConfig.model_fields["pairs"].default)
    parser.add_argument("--averaged", type=int, default=AuditConfig.model_fields["averaged"].default)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def gather_evidence(args: argparse.Namespace, boomerang: Boomerang, rng: np.random.Generator) -> Evidence:
    """Return the photos that are attacked, and what attackers know besides."""
    size, columns = boomerang.backbone.size, tuple(filter(None, args.attributes.split(",")))
    source = source_config(args.source, args.where).model_copy(update={"label": args.identity, "carry": columns})
    images = audit_sample.draw_images(source, size, 10**6, rng)
    chosen = np.sort(rng.permutation(len(images))[: args.sample])
    if args.outsiders:
        outsiders = audit_sample.draw_images(
            source_config(args.outsiders, args.outsiders_where), size, MAX_OUTSIDERS, rng
        ).images
    else:
        rest = rng.permutation(np.setdiff1d(np.arange(len(images)), chosen))[:MAX_OUTSIDERS]
        outsiders = images.images[torch.from_numpy(rest)]
    training = (
        audit_sample.draw_images(source_config(args.training, args.training_where), size, MAX_OUTSIDERS, rng).images
        if args.training
        else None
    )
    originals = images.images[torch.from_numpy(chosen)].clone()
    names = images.labels if args.identity else images.record_ids
    return Evidence(
        originals=originals,
        outputs=originals,  # replaced by each method's
        subjects=np.array([str(names[i]) for i in chosen]),
        has_identities=args.identity is not None,
        mechanism=RoundTrip(),
        model=boomerang.backbone,
        attributes={name: [images.columns[i].get(name) for i in chosen] for name in columns},
        outsiders=(outsiders, as_subjects([f"outsider {i}" for i in range(len(outsiders))])),
        training=training,
    )


def source_config(uri: str, where: str) -> SourceConfig:
    return SourceConfig(uri=uri, where=yaml.safe_load(where), drop=("*",))


def iter_methods(
    boomerang: Boomerang, args: argparse.Namespace, evidence: Evidence, lpips: PerceptualDistance, bench: Workbench
) -> Iterator[tuple[str, Mechanism]]:
    yield "round-trip", RoundTrip()
    for level in args.levels:
        yield f"level-{level:g}", LocalSampling(boomerang, level)
    method = LocalSampling(boomerang, UTILITY_LEVEL)
    at = replace(evidence, mechanism=method, outputs=load_outputs(bench, method))
    for name in ("blur", "pixelation", "unrelated"):
        yield name, baselines.BASELINES[name](at, lpips, bench.rng(name))


if __name__ == "__main__":
    main()
