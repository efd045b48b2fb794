"""Claims: the level sets the proximity of local samples, they never repeat, and few steps do as well as all of them.

    python benchmarks/paper/proximity.py --cifar cifar10.parquet --faces faces.parquet --out results --work work

LPIPS, CLIP similarity and pixel distance to the original against the level; distances among several samples of one
original; and, on CIFAR-10 (on faces if only they are given), accelerated samplers against vanilla Boomerang, which
takes every step. By default 200 pictures of each, and 100 for the samplers: about 33 minutes of one core of a CPU with
AVX-512 BF16, 6 of them for the faces.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import common
import numpy as np
import torch
from common import BenchmarkResult, Mean, Workspace
from faster import TOLERANCE, SamplerComparison, compare_samplers, least_calls, sampler_table, vanilla_table
from outputs import MEASURES, Metrics, Task
from scipy.spatial.distance import pdist

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RISES = {"lpips": True, "clip": False, "pixels": True}  # with the level, if the claim holds


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    work, metrics = Workspace(args.work), Metrics.load(common.get_device(args))
    loaded = list(load_tasks(args, work))
    if not loaded:
        raise SystemExit("data: missing: give --cifar, --faces or both")
    level_rows = [row for task in loaded for row in measure_levels(task, metrics)]
    repeat_rows = [row for task in loaded for row in measure_repeats(task)]
    comparison = compare_samplers(loaded[0], metrics)
    settings = {
        "pictures": {task.name: len(task.originals) for task in loaded}, "sampler": args.sampler, "steps": args.steps,
        "dtype": args.dtype, "seed": args.seed, "models": {task.name: task.backbone.digest for task in loaded},
        "samplers_on": loaded[0].name, "samplers_pictures": comparison.pictures, "tolerance": TOLERANCE,
    }  # fmt: skip
    tables = {
        "Proximity against the level": level_table(level_rows),
        "Samples of one original": repeats_table(repeat_rows),
        f"Vanilla Boomerang, {loaded[0].name}": vanilla_table(comparison),
        f"Least network calls that do as vanilla Boomerang does, {loaded[0].name}": sampler_table(comparison),
    }
    parts = {"levels": level_rows, "repeats": repeat_rows, "samplers": comparison.rows}
    rows = [{"part": part} | row for part, of_part in parts.items() for row in of_part]
    findings = {
        "not_monotone": find_violations(level_rows),
        "exact_repeats": sum(row["repeats"] for row in repeat_rows),
        "vanilla": comparison.vanilla,
        "least_calls": least_calls(comparison.rows),
    }
    measured = BenchmarkResult("proximity", settings, rows, findings, tables, NOTES)
    common.write_result(measured, args, work, plot(level_rows, comparison), arguments)


NOTES = (
    "Intervals: 95 %, bootstrap over pictures. Pixel distance: root mean square, of 0 to 255. A model that knows "
    "classes is conditioned on them.",
    "Calls are the least ones from which on all measured ones meet the column. Means are compared with those of "
    "vanilla with the same noise: within 5 %, and with a paired interval that lies within 5 %. Kernel distances are "
    "from vanilla with other noise; 97.5 % of those between two vanilla runs, after swapping their outputs by chance, "
    "are no more.",
)


def parser() -> argparse.ArgumentParser:
    parser = common.argument_parser(__doc__)
    common.add_data_options(parser)
    common.add_sampling_options(parser)
    parser.add_argument("--pictures", type=int, help="of each; 200 by default, 1,000 with --full")
    parser.add_argument("--levels", type=float, nargs="+", default=[round(0.1 * n, 1) for n in range(1, 11)])
    parser.add_argument("--originals", type=int, default=20, help="originals with several samples")
    parser.add_argument("--samples", type=int, default=8, help="samples of each of them")
    parser.add_argument("--repeat-levels", type=float, nargs="+", default=[0.1, 0.4, 0.8])
    parser.add_argument("--samplers-pictures", type=int, help="100 by default, 1,000 with --full")
    parser.add_argument("--samplers-levels", type=float, nargs="+", default=[0.4, 0.8])
    parser.add_argument("--samplers", nargs="+", default=["ddim", "dpm++", "sde-dpm++", "unipc", "ddpm"])
    parser.add_argument("--calls", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64])
    parser.add_argument("--seed", type=int, default=0)
    return parser


def load_tasks(args: argparse.Namespace, work: Workspace) -> Iterator[Task]:
    count = args.pictures or (1000 if args.full else 200)
    for name, file, model in (
        ("CIFAR-10", args.cifar, args.cifar_model), ("faces", args.faces, args.faces_model),
    ):  # fmt: skip
        if file is not None:
            backbone = common.load_model(model, args)
            yield Task(name, backbone, common.read_pictures(file, "test", backbone.size, count), args, work)


# The level and proximity


def measure_levels(task: Task, metrics: Metrics) -> list[dict[str, Any]]:
    """Return a row for each level; ``step``: the difference from the level before, on the same images."""
    args, rows, before = task.args, [], None
    sampling = task.sampling(args.sampler, args.steps)
    for level in sorted(args.levels):
        outputs = sampling.sample(task.originals, level)
        scores = metrics.scores(task.work, task.originals.pixels, outputs)
        boomerang = sampling.boomerang
        rows.append(
            {
                "task": task.name, "level": level, "log_snr": boomerang.log_snr(boomerang.t_boom(level)),
                **{of: common.mean_over_pictures(scores[of]) for of in MEASURES},
                "step": {of: common.mean_over_pictures(scores[of] - before[of]) for of in MEASURES} if before else None,
            }
        )  # fmt: skip
        before = scores
        print(f"{task.name}: level {level:g}", file=sys.stderr, flush=True)
    return rows


def find_violations(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return neighbouring levels whose means are in the wrong order; ``certain`` where the step's interval agrees."""
    violations = []
    for (before, after), of in product(pairwise(rows), MEASURES):
        if before["task"] != after["task"]:
            continue
        step: Mean = after["step"][of]
        if (step.value > 0) != RISES[of]:
            violations.append(
                {
                    "task": after["task"], "measure": of, "from": before["level"], "to": after["level"], "step": step,
                    "certain": step.excludes_zero,
                }
            )  # fmt: skip
    return violations


def level_table(rows: Sequence[dict[str, Any]]) -> str:
    wrong = {(violation["task"], violation["measure"], violation["to"]) for violation in find_violations(rows)}

    def cell(row: dict[str, Any], of: str) -> str:
        mark = " (wrong way)" if (row["task"], of, row["level"]) in wrong else ""
        return str(row[of].format(1 if of == "pixels" else 3)) + mark

    cells = [
        [row["task"], f"{row['level']:g}", f"{row['log_snr']:+.2f}", *(cell(row, of) for of in MEASURES)]
        for row in rows
    ]
    return common.markdown_table(["pictures", "level", "log-SNR", *MEASURES.values()], cells)


# Several samples of one original


def measure_repeats(task: Task) -> list[dict[str, Any]]:
    """Return a row for each level: the distance of the nearest two samples of one original, as files hold them."""
    args, rows = task.args, []
    sampling = task.sampling(args.sampler, args.steps)
    some = task.originals[: args.originals]
    for level in args.repeat_levels:
        samples = torch.stack([sampling.sample(some, level, number) for number in range(args.samples)], dim=1)
        distances = [nearest_distance(samples_of_original) for samples_of_original in samples]
        rows.append(
            {
                "task": task.name, "level": level, "originals": len(some), "samples": args.samples,
                "least": min(distances), "least_mean": common.mean_over_pictures(distances),
                "repeats": sum(count_repeats(samples_of_original) for samples_of_original in samples),
                "returned_originals": int((samples == some.pixels[:, None]).flatten(2).all(2).sum()),
            }
        )  # fmt: skip
    return rows


def nearest_distance(samples: torch.Tensor) -> float:
    """Return the least distance of two of (n, 3, S, S) uint8: root mean square, of 0 to 255."""
    flat = samples.flatten(1).double().numpy()
    return float(pdist(flat).min() / np.sqrt(flat.shape[1]))


def count_repeats(samples: torch.Tensor) -> int:
    """Return how many of (n, 3, S, S) repeat an earlier one, bit for bit."""
    return len(samples) - len(torch.unique(samples.flatten(1), dim=0))


def repeats_table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        [
            row["task"], f"{row['level']:g}", f"{row['originals']} x {row['samples']}", f"{row['least']:.2f}",
            row["least_mean"].format(2), str(row["repeats"]), str(row["returned_originals"]),
        ]
        for row in rows
    ]  # fmt: skip
    header = ["pictures", "level", "originals x samples", "least pixel distance", "mean of the least of an original"]
    return common.markdown_table([*header, "exact repeats", "originals returned"], cells)


# The plot


def plot(level_rows: Sequence[dict[str, Any]], comparison: SamplerComparison) -> Figure:
    """Draw a row of panels against the level, and one against the calls for each level of the samplers."""
    across = len(MEASURES)
    figure, panels = common.make_panels(across * (1 + len(comparison.vanilla)))
    for panel, (of, title) in zip(panels, MEASURES.items(), strict=False):
        for colour, task in zip(common.COLOURS, dict.fromkeys(row["task"] for row in level_rows), strict=False):
            task_rows = [row for row in level_rows if row["task"] == task]
            common.plot_line(panel, [row["level"] for row in task_rows], [row[of] for row in task_rows], colour, task)
        panel.set(xlabel="level", ylabel=title)
        panel.legend(frameon=False, fontsize=8)
    for number, vanilla in enumerate(comparison.vanilla, start=1):
        rows = [row for row in comparison.rows if row["level"] == vanilla["level"]]
        _against_calls(panels[across * number : across * (number + 1)], vanilla, rows)
    return figure


def _against_calls(panels: Sequence[Axes], vanilla: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Draw LPIPS in the first panel, and distances by each kind of features in the others."""
    lpips, *others = panels
    distances = dict(zip(vanilla["floor"], others, strict=True))
    for colour, sampler in zip(common.COLOURS, dict.fromkeys(row["sampler"] for row in rows), strict=False):
        sampler_rows = [row for row in rows if row["sampler"] == sampler]
        calls = [row["calls"] for row in sampler_rows]
        common.plot_line(lpips, calls, [row["lpips"] for row in sampler_rows], colour, sampler)
        for name, panel in distances.items():
            distances_of_feature = [row["distances"][name]["kernel distance"] for row in sampler_rows]
            panel.plot(calls, distances_of_feature, "o-", color=colour, markersize=3.5, label=sampler)
    common.plot_level_line(lpips, vanilla["lpips"], "vanilla")
    lpips.set_ylabel(MEASURES["lpips"])
    for name, panel in distances.items():
        ceiling = vanilla["floor"][name]["kernel distance"]["ceiling"]
        panel.axhline(ceiling, color="#999999", linestyle="--", linewidth=1.2, label="vanilla against itself")
        panel.set_ylabel(f"kernel distance, {name}")
    for panel in panels:
        panel.set_xscale("log", base=2)
        panel.set(title=f"level {vanilla['level']:g}", xlabel="network calls")
        panel.legend(frameon=False, fontsize=7)


if __name__ == "__main__":
    main()
