"""Measure the attackers that need no training at each level: pixels, the matched filter, assignment, likelihood ratios.

    python benchmarks/attackers.py --source faces.parquet --where '{split: test}' \
        --public faces.parquet --public-where '{split: train}' --output results/attackers

Beside them stands the ceiling of linkage, from the noised originals. Outputs are cached in `OUTPUT/`, figures in a JSON
file for each level; a second call goes on where the first stopped, and prints the table of all.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from anonymizer.backbones import load_backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig, SourceConfig
from anonymizer.release.audit_sample import draw_images
from metrics import features
from metrics.attacks import linkage
from metrics.attacks.linkage import Similarity
from metrics.audit.filtering import Filtering, linkage_similarity, membership_figures
from metrics.audit.mechanisms import LocalSampling, apply
from metrics.audit.workbench import Effort, Evidence, Workbench
from metrics.stats import ceilings
from metrics.stats.intervals import as_subjects
from metrics.stats.risk import Figure, FigureContext

LEVELS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 1.0)
SEED = 1
COLUMNS = {
    "pixels": "pixels, rank-1", "pixels, assigned": "pixels, assigned", "filter": "matched filter, rank-1",
    "filter, assigned": "matched filter, assigned", "ceiling": "ceiling, rank-1",
    "ceiling, assigned": "ceiling, assigned", "membership AUC": "membership, AUC",
    "TPR at FPR 1 %": "membership, TPR at FPR 0.01", "TPR at FPR 0.1 %": "membership, TPR at FPR 0.001",
}  # fmt: skip


def main() -> None:
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    backbone = load_backbone(ModelConfig(id=args.model))
    originals, outsiders = read_photos(args.source, args.where, backbone.size, [args.pictures, args.outsiders], rng)
    (public,) = read_photos(args.public, args.public_where, backbone.size, [args.outsiders], rng)
    for level in map(float, args.levels.split(",")):
        mechanism = LocalSampling(Boomerang(backbone, args.sampler, args.steps), level)
        name = f"{args.sampler}-{args.steps}-{level:g}"
        if not (args.output / f"{name}.json").exists():
            outputs = load_outputs(args.output / f"{name}.npy", mechanism, originals)
            evidence = Evidence(
                originals, outputs, as_subjects(range(len(originals))), has_identities=False, mechanism=mechanism,
                model=backbone, training=public,
                outsiders=(outsiders, as_subjects([f"outsider {i}" for i in range(len(outsiders))])),
            )  # fmt: skip
            bench = Workbench(evidence, features.load_embedders(["pixels"]), Effort(matched_filter=True), SEED)
            (args.output / f"{name}.json").write_text(json.dumps(measure(bench, mechanism), indent=2))
    print(table(args.output, f"{args.sampler}-{args.steps}"))


def read_photos(uri: str, where: str, size: int, counts: list[int], rng: np.random.Generator) -> list[torch.Tensor]:
    """Return groups of different photos (n, 3, S, S), drawn by chance."""
    source = SourceConfig(uri=uri, where=yaml.safe_load(where), drop=("*",))
    images = draw_images(source, size, sum(counts), rng).images
    return list(images[torch.from_numpy(rng.permutation(len(images)))].split(counts))


def load_outputs(file: Path, mechanism: LocalSampling, originals: torch.Tensor) -> torch.Tensor:
    """Return the outputs of a level, drawn once."""
    if not file.exists():
        np.save(file.with_suffix(".part.npy"), apply(mechanism, originals, np.random.default_rng(SEED)).numpy())
        file.with_suffix(".part.npy").rename(file)
    return torch.from_numpy(np.load(file))


def measure(bench: Workbench, mechanism: LocalSampling) -> dict[str, dict[str, Any]]:
    """Return the figures by ``feature, measure``, and the ceilings."""
    pixels = bench.embedders[0]
    filtering, truth = Filtering(bench), np.arange(len(bench.evidence))
    similarities = {
        "pixels": linkage.cosine_similarity(bench.embed_released(pixels), bench.embed_originals(pixels)),
        "matched filter": linkage_similarity(filtering),
    }
    figures: dict[str, Figure] = {}
    for name, similarity in similarities.items():
        lines = linkage_figures(bench, similarity, truth, FigureContext(attack="linkage", attacker="", feature=name))
        figures |= {f"{name}, {line.measure}": line for line in lines}
    figures |= {f"membership, {line.measure}": line for line in membership_figures(filtering)}
    found = {name: asdict(line) for name, line in figures.items()}
    latents, subjects = filtering.originals, bench.evidence.subjects
    bound = ceilings.compute_ceilings(ceilings.place(latents, subjects), mechanism.abar, bench.rng("ceilings"))
    found |= {"ceiling, rank-1": asdict(bound.linkage_rank1), "ceiling, assigned": asdict(bound.linkage_assigned)}
    log_snr = mechanism.boomerang.log_snr(mechanism.boomerang.t_boom(mechanism.level))
    return found | {"level": {"level": mechanism.level, "log_snr": log_snr}}


def linkage_figures(bench: Workbench, similarity: Similarity, truth: Any, context: FigureContext) -> list[Figure]:
    subjects = bench.evidence.subjects
    ranking = linkage.rank(similarity, truth, subjects, bench.rng("rank"))
    lines = linkage.figures(ranking, bench.rng("figures"), **context)
    return [*lines, linkage.assigned_figure(similarity, truth, subjects, bench.rng("assigned"), **context)]


def table(folder: Path, prefix: str) -> str:
    """Return a Markdown table of all levels that were measured, in per cent with 95 % intervals."""
    rows = [json.loads(file.read_text()) for file in folder.glob(f"{prefix}-*.json")]
    lines = ["| level | log-SNR | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    for row in sorted(rows, key=lambda row: float(row["level"]["level"])):
        cells = [cell(row.get(name)) for name in COLUMNS.values()]
        lines.append(f"| {row['level']['level']:g} | {row['level']['log_snr']:+.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell(figure: dict[str, Any] | None) -> str:
    if figure is None or figure["value"] is None:
        return "-"
    value, low, high = (100 * figure[name] for name in ("value", "low", "high"))
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="photos to anonymize, and others of the kind")
    parser.add_argument("--where", default="{}", help="YAML: which rows of them")
    parser.add_argument("--public", required=True, help="public photos for the filter")
    parser.add_argument("--public-where", default="{}")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="bundled:faces-64")
    parser.add_argument("--sampler", default="sde-dpm++")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--levels", default=",".join(f"{level:g}" for level in LEVELS))
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--outsiders", type=int, default=1000, help="photos of no member, and public ones, each")
    return parser.parse_args()


if __name__ == "__main__":
    main()
