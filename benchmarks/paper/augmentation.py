"""Claim: a classifier gets better with local samples in addition to the real images.

    python benchmarks/paper/augmentation.py --cifar cifar10.parquet --out results --work work

The network of resnet.py on real pictures, and on real pictures with one local sample of each, at several levels and
numbers of pictures, with and without the usual augmentations (crops and flips). Both take the same number of steps with
batches of the same size; half of each mixed batch are samples. By default 3 numbers of pictures and 3 seeds: 108 runs
in about 67 minutes of one core of a CPU with AVX-512 BF16, and 54 more for local samples (less after classifier.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
from classifier import add_training_options, difference, log_run, make_sampler
from common import BenchmarkResult, Pictures, Workspace
from resnet import Recipe, train_and_test

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL = {True: "crops and flips", False: "none"}


@dataclass(frozen=True)
class Datasets:
    """``samples``: level -> one local sample of each of the ``real`` pictures, in their order."""

    real: Pictures
    samples: Mapping[float, Pictures]
    test: Pictures


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    work = Workspace(args.work)
    sizes = args.sizes or ([500, 2000, 10_000, 50_000] if args.full else [500, 2000, 10_000])
    seeds = args.seeds or (5 if args.full else 3)
    sampling = make_sampler(args, work)
    backbone = sampling.boomerang.backbone
    real = common.read_pictures(args.cifar, "train", backbone.size, max(sizes))
    test = common.read_pictures(args.cifar, "test", backbone.size, 10_000)
    samples = {level: real.with_pixels(sampling.sample(real, level)) for level in args.levels}
    rows = list(measure_cells(args, work, sizes, seeds, Datasets(real, samples, test)))
    settings = {
        "sizes": sizes, "test_pictures": len(test), "seeds": list(range(seeds)), "model": args.model_name,
        "model_digest": backbone.digest, "sampler": args.sampler, "steps": args.steps, "dtype": args.dtype,
        "recipe": Recipe(base=args.base_steps, dtype=args.dtype).as_dict,
        "training_steps": {size: Recipe(base=args.base_steps).steps(size) for size in sizes},
        "mixed_batches": "half real pictures, half local samples, one sample of each real picture",
    }  # fmt: skip
    tables = {"Accuracy on real pictures, %, and what local samples add": results_table(rows, args.levels)}
    measured = BenchmarkResult("augmentation", settings, rows, summarize(rows), tables, NOTES)
    common.write_result(measured, args, work, plot(rows, sizes), arguments)


NOTES = (
    "Intervals: 95 %, Student's t over the seeds, of differences seed by seed. Where there are enough pictures each "
    "seed trains on others, so that intervals cover their choice too. Of many, one in twenty excludes zero by luck.",
    "The diffusion model has pictures of its own behind it (bundled:cifar10-32: all 50,000 training pictures with "
    "their labels): with fewer pictures, what it adds is its knowledge of the others too.",
)


def parser() -> argparse.ArgumentParser:
    parser = common.argument_parser(__doc__)
    parser.add_argument("--cifar", type=Path, required=True, help="Parquet file with image, label and split")
    add_training_options(parser)
    parser.add_argument("--sizes", type=int, nargs="+", help="training pictures; 500 2000 10000 by default")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.5])
    return parser


def measure_cells(
    args: argparse.Namespace, work: Workspace, sizes: Sequence[int], seeds: int, data: Datasets
) -> Iterator[dict[str, Any]]:
    """Yield a row for each size, with and without the usual augmentations."""
    device = common.get_device(args)
    for size, usual in product(sizes, USUAL):
        recipe = Recipe(base=args.base_steps, augmented=usual, dtype=args.dtype)
        runs: dict[str, list[dict[str, Any]]] = {}
        for level, seed in product((None, *data.samples), range(seeds)):
            rows = seed_rows(size, seed, len(data.real))
            sets = [data.real[rows], *([] if level is None else [data.samples[level][rows]])]
            key = "real" if level is None else f"{level:g}"
            run = train_and_test(work, sets, data.test, recipe, seed, device)
            runs.setdefault(key, []).append(log_run(f"{size} pictures, usual: {USUAL[usual]}, {key}, seed {seed}", run))
        yield make_row(size, usual, runs)


def seed_rows(size: int, seed: int, available: int) -> slice:
    """Return the rows that a seed trains on: different from those of other seeds, while there are enough."""
    first = seed % (available // size) * size
    return slice(first, first + size)


def make_row(size: int, usual: bool, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    values = {key: [run["accuracy"] for run in runs] for key, runs in runs.items()}
    real = values.pop("real")
    return {
        "pictures": size, "usual_augmentations": USUAL[usual],
        "real": {"accuracy": common.mean_over_seeds(real), "per_seed": real},
        "with_samples": [
            {
                "level": float(level), "accuracy": common.mean_over_seeds(accuracies), "per_seed": accuracies,
                "gain": difference(accuracies, real),
            }
            for level, accuracies in values.items()
        ],
        "seconds": {key: [run["seconds"] for run in runs] for key, runs in runs.items()},
    }  # fmt: skip


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    compared = [(row, sample) for row in rows for sample in row["with_samples"]]

    def named(better: bool) -> list[str]:
        return [
            f"{row['pictures']} pictures, {row['usual_augmentations']}, level {sample['level']:g}"
            for row, sample in compared
            if sample["gain"].excludes_zero and (sample["gain"].value > 0) == better
        ]

    return {"comparisons": len(compared), "better": named(True), "worse": named(False)}


def results_table(rows: Sequence[dict[str, Any]], levels: Sequence[float]) -> str:
    cells = [
        [
            f"{row['pictures']:,}",
            row["usual_augmentations"],
            row["real"]["accuracy"].format_percent(),
            *(sample["gain"].format_percent(sign=True) for sample in row["with_samples"]),
        ]
        for row in rows
    ]
    return common.markdown_table(
        ["pictures", "usual augmentations", "real", *(f"+ level {x:g}" for x in levels)], cells
    )


def plot(rows: Sequence[dict[str, Any]], sizes: Sequence[int]) -> Figure:
    figure, panels = common.make_panels(len(sizes))
    for panel, size in zip(panels, sizes, strict=True):
        panel_rows = [row for row in rows if row["pictures"] == size]
        for colour, row in zip(common.COLOURS, panel_rows, strict=False):
            levels, means = zip(*((m["level"], m["accuracy"]) for m in row["with_samples"]), strict=True)
            common.plot_line(panel, levels, means, colour, f"with samples; usual: {row['usual_augmentations']}")
            common.plot_level_line(panel, row["real"]["accuracy"], "real only", colour)
        panel.set(title=f"{size:,} pictures", xlabel="level", ylabel="accuracy on real pictures")
        panel.legend(frameon=False, fontsize=7)
    return figure


if __name__ == "__main__":
    main()
