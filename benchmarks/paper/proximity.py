"""Claims: the level alone sets how near local samples are, they never repeat, and few steps do as well as all of them.

    python benchmarks/paper/proximity.py --cifar cifar10.parquet --faces faces.parquet --out results --work work

LPIPS, CLIP similarity and pixel distance to the original against the level; distances among several samples of one
original; and, on CIFAR-10 (on faces if they alone are given), accelerated samplers against vanilla Boomerang, which
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
    asked = parser().parse_args(arguments)
    work, judges = Workspace(asked.work), Metrics.load(common.get_device(asked))
    found = list(load_tasks(asked, work))
    if not found:
        raise SystemExit("data: missing: give --cifar, --faces or both")
    near = [row for task in found for row in measure_levels(task, judges)]
    apart = [row for task in found for row in measure_repeats(task)]
    fast = compare_samplers(found[0], judges)
    settings = {
        "pictures": {task.name: len(task.originals) for task in found}, "sampler": asked.sampler, "steps": asked.steps,
        "dtype": asked.dtype, "seed": asked.seed, "models": {task.name: task.backbone.digest for task in found},
        "samplers_on": found[0].name, "samplers_pictures": fast.pictures, "tolerance": TOLERANCE,
    }  # fmt: skip
    tables = {
        "Proximity against the level": level_table(near),
        "Samples of one original": repeats_table(apart),
        f"Vanilla Boomerang, {found[0].name}": vanilla_table(fast),
        f"Least network calls that do as vanilla Boomerang does, {found[0].name}": sampler_table(fast),
    }
    parts = {"levels": near, "repeats": apart, "samplers": fast.rows}
    rows = [{"part": part} | row for part, of_part in parts.items() for row in of_part]
    findings = {
        "not_monotone": find_violations(near),
        "exact_repeats": sum(row["repeats"] for row in apart),
        "vanilla": fast.vanilla,
        "least_calls": least_calls(fast.rows),
    }
    measured = BenchmarkResult("proximity", settings, rows, findings, tables, NOTES)
    common.write_result(measured, asked, work, plot(near, fast), arguments)


NOTES = (
    "Intervals: 95 %, bootstrap over pictures. Pixel distance: root mean square, of 0 to 255. A model that knows "
    "classes is told them.",
    "Calls are the least ones from which on all that were tried meet the column. Means are compared with those of "
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
    parser.add_argument("--originals", type=int, default=20, help="originals that several samples are made of")
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
    """A row for each level; ``step``: how much more than at the level before, on the same pictures."""
    asked, rows, before = task.args, [], None
    sampling = task.sampling(asked.sampler, asked.steps)
    for level in sorted(asked.levels):
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
    """Neighbouring levels whose means are in the wrong order; ``certain`` where the step's interval says so too."""
    found = []
    for (before, after), of in product(pairwise(rows), MEASURES):
        if before["task"] != after["task"]:
            continue
        step: Mean = after["step"][of]
        if (step.value > 0) != RISES[of]:
            found.append(
                {
                    "task": after["task"], "measure": of, "from": before["level"], "to": after["level"], "step": step,
                    "certain": step.excludes_zero,
                }
            )  # fmt: skip
    return found


def level_table(rows: Sequence[dict[str, Any]]) -> str:
    wrong = {(one["task"], one["measure"], one["to"]) for one in find_violations(rows)}

    def cell(row: dict[str, Any], of: str) -> str:
        mark = " (wrong way)" if (row["task"], of, row["level"]) in wrong else ""
        return str(row[of].shown(1 if of == "pixels" else 3)) + mark

    cells = [
        [row["task"], f"{row['level']:g}", f"{row['log_snr']:+.2f}", *(cell(row, of) for of in MEASURES)]
        for row in rows
    ]
    return common.markdown_table(["pictures", "level", "log-SNR", *MEASURES.values()], cells)


# Several samples of one original


def measure_repeats(task: Task) -> list[dict[str, Any]]:
    """A row for each level: how near the nearest two samples of one original are, as files hold them."""
    asked, rows = task.args, []
    sampling = task.sampling(asked.sampler, asked.steps)
    some = task.originals[: asked.originals]
    for level in asked.repeat_levels:
        samples = torch.stack([sampling.sample(some, level, number) for number in range(asked.samples)], dim=1)
        apart = [nearest_distance(mine) for mine in samples]
        rows.append(
            {
                "task": task.name, "level": level, "originals": len(some), "samples": asked.samples,
                "least": min(apart), "least_mean": common.mean_over_pictures(apart),
                "repeats": sum(count_repeats(mine) for mine in samples),
                "returned_originals": int((samples == some.pixels[:, None]).flatten(2).all(2).sum()),
            }
        )  # fmt: skip
    return rows


def nearest_distance(samples: torch.Tensor) -> float:
    """The least distance of two of (n, 3, S, S) uint8: root mean square, of 0 to 255."""
    flat = samples.flatten(1).double().numpy()
    return float(pdist(flat).min() / np.sqrt(flat.shape[1]))


def count_repeats(samples: torch.Tensor) -> int:
    """How many of (n, 3, S, S) repeat one before them, bit for bit."""
    return len(samples) - len(torch.unique(samples.flatten(1), dim=0))


def repeats_table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [
        [
            row["task"], f"{row['level']:g}", f"{row['originals']} x {row['samples']}", f"{row['least']:.2f}",
            row["least_mean"].shown(2), str(row["repeats"]), str(row["returned_originals"]),
        ]
        for row in rows
    ]  # fmt: skip
    header = ["pictures", "level", "originals x samples", "least pixel distance", "mean of the least of an original"]
    return common.markdown_table([*header, "exact repeats", "originals returned"], cells)


# The plot


def plot(near: Sequence[dict[str, Any]], fast: SamplerComparison) -> Figure:
    """A row of panels against the level, and one against the number of calls for each level of the samplers."""
    across = len(MEASURES)
    figure, panels = common.make_panels(across * (1 + len(fast.vanilla)))
    for panel, (of, title) in zip(panels, MEASURES.items(), strict=False):
        for colour, task in zip(common.COLOURS, dict.fromkeys(row["task"] for row in near), strict=False):
            mine = [row for row in near if row["task"] == task]
            common.plot_line(panel, [row["level"] for row in mine], [row[of] for row in mine], colour, task)
        panel.set(xlabel="level", ylabel=title)
        panel.legend(frameon=False, fontsize=8)
    for number, vanilla in enumerate(fast.vanilla, start=1):
        rows = [row for row in fast.rows if row["level"] == vanilla["level"]]
        _against_calls(panels[across * number : across * (number + 1)], vanilla, rows)
    return figure


def _against_calls(panels: Sequence[Axes], vanilla: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """LPIPS in the first panel, distances by the features of each in the others."""
    lpips, *others = panels
    distances = dict(zip(vanilla["floor"], others, strict=True))
    for colour, sampler in zip(common.COLOURS, dict.fromkeys(row["sampler"] for row in rows), strict=False):
        mine = [row for row in rows if row["sampler"] == sampler]
        calls = [row["calls"] for row in mine]
        common.plot_line(lpips, calls, [row["lpips"] for row in mine], colour, sampler)
        for name, panel in distances.items():
            far = [row["distances"][name]["kernel distance"] for row in mine]
            panel.plot(calls, far, "o-", color=colour, markersize=3.5, label=sampler)
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
