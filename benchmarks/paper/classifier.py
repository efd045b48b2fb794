"""Claim: a classifier trained only on local samples is better than one trained on purely synthetic images.

    python benchmarks/paper/classifier.py --cifar cifar10.parquet --out results --work work

One small residual network (resnet.py) is trained on real pictures, on one local sample of each at several levels, and
on as many purely synthetic ones (level 1); the model is conditioned on labels. It is tested on real pictures. By
default 10,000 training pictures and 3 seeds: about 75 minutes of one core of a CPU with AVX-512 BF16, 54 of them for
local samples, which augmentation.py takes from the same --work.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
from common import BenchmarkResult, LocalSampler, Mean, Workspace
from resnet import Recipe, train_and_test

from anonymizer.boomerang import Boomerang

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REAL, SYNTHETIC = "real", 1.0


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    work, device = Workspace(args.work), common.get_device(args)
    count = args.pictures or (50_000 if args.full else 10_000)
    seeds = args.seeds or (5 if args.full else 3)
    sampling = make_sampler(args, work)
    boomerang = sampling.boomerang
    size = boomerang.backbone.size
    real, test = (
        common.read_pictures(args.cifar, split, size, most) for split, most in (("train", count), ("test", 10_000))
    )
    recipe = Recipe(base=args.base_steps, dtype=args.dtype)
    rows = []
    for name in (REAL, *args.levels, SYNTHETIC):
        pictures = real if name == REAL else real.with_pixels(sampling.sample(real, float(name)))
        runs = [
            log_run(f"{name}, seed {s}", train_and_test(work, [pictures], test, recipe, s, device))
            for s in range(seeds)
        ]
        rows.append(make_row(name, boomerang, runs))
    settings = {
        "pictures": len(real), "test_pictures": len(test), "seeds": list(range(seeds)), "model": args.model_name,
        "model_digest": boomerang.backbone.digest, "sampler": args.sampler, "steps": args.steps,
        "dtype": args.dtype, "recipe": recipe.as_dict, "training_steps": recipe.steps(len(real)),
    }  # fmt: skip
    measured = BenchmarkResult(
        "classifier", settings, rows, summarize(rows), {"Accuracy on real pictures": results_table(rows)}, NOTES
    )
    common.write_result(measured, args, work, plot(rows), arguments)


NOTES = (
    "Intervals: 95 %, Student's t over the seeds, which share the training pictures. Differences are taken seed by "
    "seed.",
    "The diffusion model has pictures of its own behind it (bundled:cifar10-32: all 50,000 training pictures with "
    "their labels), so synthetic pictures and samples at high levels carry more than the pictures that were replaced.",
)


def parser() -> argparse.ArgumentParser:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--cifar", type=Path, required=True, help="Parquet file with image, label and split")
    add_training_options(parser)
    parser.add_argument("--pictures", type=int, help="training pictures; 10,000 by default, 50,000 with --full")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.2, 0.4, 0.6, 0.8])
    return parser


def add_training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="bundled:cifar10-32", help="one that knows the classes")
    common.add_sampling_options(parser)
    parser.add_argument("--seeds", type=int, help="3 by default, 5 with --full")
    parser.add_argument("--base-steps", type=int, default=Recipe.base, help="training steps on 10,000 pictures")


def make_sampler(args: argparse.Namespace, work: Workspace) -> LocalSampler:
    """Return the sampler of a model that is conditioned on each image's class."""
    backbone = common.load_model(args.model, args)
    args.model_name = common.public_name(args.model)
    if backbone.condition_kind != "class":
        raise SystemExit(f"model: {args.model_name} knows no classes: synthetic pictures need labels")
    return LocalSampler(Boomerang(backbone, args.sampler, args.steps), work, True, args.dtype, batch=args.batch)


def log_run(what: str, run: dict[str, Any]) -> dict[str, Any]:
    """Print a run to standard error, and return it."""
    print(f"{what}: {run['accuracy']:.4f} in {run['seconds']:.0f} s", file=sys.stderr, flush=True)
    return run


def make_row(name: str | float, boomerang: Boomerang, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    values = [run["accuracy"] for run in runs]
    level = None if isinstance(name, str) else name
    return {
        "data": REAL if level is None else "synthetic" if level == SYNTHETIC else f"level {level:g}",
        "level": level, "log_snr": None if level is None else boomerang.log_snr(boomerang.t_boom(level)),
        "accuracy": common.mean_over_seeds(values), "per_seed": values, "seconds": [run["seconds"] for run in runs],
    }  # fmt: skip


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return each level's gain over purely synthetic data, seed by seed, and whether its interval is above zero."""
    real, synthetic = rows[0]["per_seed"], rows[-1]["per_seed"]

    def against(row: dict[str, Any]) -> dict[str, Any]:
        gain, loss = difference(row["per_seed"], synthetic), difference(row["per_seed"], real)
        return {"above_synthetic": gain, "above_real": loss, "better_than_synthetic": gain.is_above_zero}

    return {row["data"]: against(row) for row in rows[1:-1]}


def difference(values: Sequence[float], others: Sequence[float]) -> Mean:
    return common.mean_over_seeds([a - b for a, b in zip(values, others, strict=True)])


def results_table(rows: Sequence[dict[str, Any]]) -> str:
    synthetic = rows[-1]["per_seed"]
    cells = [
        [
            row["data"],
            "-" if row["log_snr"] is None else f"{row['log_snr']:+.2f}",
            row["accuracy"].format_percent(),
            ", ".join(f"{100 * value:.1f}" for value in row["per_seed"]),
            "-" if row is rows[-1] else difference(row["per_seed"], synthetic).format_percent(sign=True),
        ]
        for row in rows
    ]
    return common.markdown_table(["trained on", "log-SNR", "accuracy, %", "each seed", "above synthetic"], cells)


def plot(rows: Sequence[dict[str, Any]]) -> Figure:
    figure, (panel,) = common.make_panels(1)
    level_rows = [one for one in rows if one["level"] is not None]
    common.plot_line(
        panel, [r["level"] for r in level_rows], [r["accuracy"] for r in level_rows], common.COLOURS[0], "replaced"
    )
    common.plot_level_line(panel, rows[0]["accuracy"], "real")
    panel.set(xlabel="level (1: purely synthetic)", ylabel="accuracy on real pictures")
    panel.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
