"""Compare accelerated samplers with vanilla Boomerang: the least network calls without a measurable difference.

Vanilla runs twice with different noise; what lies between its two runs is the floor of every distance. A sampler's
means are compared with those of the vanilla run with the same noise, its distances are from the run with other noise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import common
import numpy as np
import numpy.typing as npt
from common import Arrays, Mean
from outputs import MEASURES, Metrics, Task

from anonymizer.boomerang import Boomerang
from metrics.utility.fidelity import frechet_distance, kernel_distance

TOLERANCE = 0.05  # of a mean
LIKE_VANILLA_IN_ALL = "like vanilla in all of the last four"
SWAPS, CEILING = 200, 0.975  # vanilla runs from two by swapping outputs; the quantile of theirs that is allowed
FIRST, SECOND = 0, 1  # numbers of samples, whose noise differs
COMPARED_SCORES = {"lpips": "LPIPS", "clip": "CLIP similarity"}
BLOCK = 50  # every step of vanilla Boomerang takes long: cached more often


Rows = npt.NDArray[np.float32]


def kernel_distance_per_picture(first: Rows, second: Rows) -> float:
    """Return the distance of outputs (N, D) of the same originals, row by row."""
    rows = np.arange(len(first)).astype(np.str_)
    return float(kernel_distance(first, second, rows, rows))


DISTANCES: dict[str, Callable[[Rows, Rows], float]] = {
    "Fréchet distance": frechet_distance,
    "kernel distance": kernel_distance_per_picture,
}


@dataclass(frozen=True)
class RunOutputs:
    """Outputs of one run: scores and features, rows in the order of the originals."""

    scores: Arrays
    rows: Arrays


@dataclass(frozen=True)
class SamplerComparison:
    """``vanilla``: of each level its means and floors. ``rows``: each level, sampler and number of calls."""

    pictures: int
    vanilla: Sequence[Mapping[str, Any]]
    rows: Sequence[dict[str, Any]]


def compare_samplers(task: Task, metrics: Metrics) -> SamplerComparison:
    args = task.args
    some = task.originals[: args.samplers_pictures or (1000 if args.full else 100)]

    def run(sampler: str, steps: int | None, level: float, number: int) -> RunOutputs:
        outputs = task.sampling(sampler, steps, BLOCK).sample(some, level, number)
        print(f"{task.name}: level {level:g}, {sampler}, {steps or 'every step'}", file=sys.stderr, flush=True)
        return RunOutputs(metrics.scores(task.work, some.pixels, outputs), metrics.features(task.work, outputs))

    vanilla, rows = [], []
    for level in args.samplers_levels:
        t_boom = Boomerang(task.backbone).t_boom(level)
        vanilla_run, second_run = (run("ddpm", None, level, number) for number in (FIRST, SECOND))
        floor = {
            name: vanilla_floors(vanilla_run.rows[name], second_run.rows[name], args.seed) for name in vanilla_run.rows
        }
        means = {of: common.mean_over_pictures(vanilla_run.scores[of]) for of in MEASURES}
        vanilla.append(
            {
                "level": level,
                "calls": t_boom,
                **means,
                "ratios_of_another_run": mean_ratios(second_run, vanilla_run),
                "floor": floor,
            }
        )
        for sampler, calls in product(args.samplers, sorted(c for c in args.calls if c <= t_boom)):
            comparison = compare_with_vanilla(run(sampler, calls, level, FIRST), vanilla_run, second_run, vanilla[-1])
            rows.append({"level": level, "sampler": sampler, "calls": calls} | comparison)
    return SamplerComparison(len(some), vanilla, rows)


def vanilla_floors(first: Rows, second: Rows, seed: int) -> dict[str, dict[str, float]]:
    """Return each distance between two vanilla runs, and its ``ceiling``.

    97.5 % of pairs of runs with randomly swapped outputs do not exceed the ceiling.
    """
    pairs = swap_outputs(first, second, seed)
    return {
        name: {
            "value": distance(first, second),
            "ceiling": float(np.quantile([distance(*pair) for pair in pairs], CEILING)),
        }
        for name, distance in DISTANCES.items()
    }


def swap_outputs(first: Rows, second: Rows, seed: int) -> list[tuple[Rows, Rows]]:
    """Return pairs of equally likely runs from two (N, D): the outputs of each original are swapped at random."""
    swaps = np.random.default_rng(seed).random((SWAPS, len(first), 1)) < 0.5
    return [(np.where(swap, second, first), np.where(swap, first, second)) for swap in swaps]


def mean_ratios(run: RunOutputs, vanilla: RunOutputs) -> dict[str, float]:
    """Return means of scores over vanilla's."""
    return {of: float(run.scores[of].mean() / vanilla.scores[of].mean()) for of in MEASURES}


def compare_with_vanilla(
    run: RunOutputs, same_noise: RunOutputs, other_noise: RunOutputs, vanilla: Mapping[str, Any]
) -> dict[str, Any]:
    """Return means and vanilla's ratios, distances from it, and whether each is within those of vanilla itself."""
    run_ratios = mean_ratios(run, same_noise)
    distances = {
        name: {kind: distance(rows, other_noise.rows[name]) for kind, distance in DISTANCES.items()}
        for name, rows in run.rows.items()
    }
    change = {of: common.mean_over_pictures(run.scores[of] - same_noise.scores[of]) for of in MEASURES}
    within = {f"{COMPARED_SCORES[of]} within 5 %": abs(run_ratios[of] - 1) <= TOLERANCE for of in COMPARED_SCORES}
    like = {
        f"{COMPARED_SCORES[of]} shown to differ by less": is_within(
            change[of], TOLERANCE * abs(float(same_noise.scores[of].mean()))
        )
        for of in COMPARED_SCORES
    }
    for name, measured in distances.items():
        ceiling = vanilla["floor"][name]["kernel distance"]["ceiling"]
        like[f"kernel distance, {name}"] = measured["kernel distance"] <= ceiling
    return {
        **{of: common.mean_over_pictures(run.scores[of]) for of in MEASURES},
        "difference": change,
        "ratios": run_ratios,
        "distances": distances,
        "within": within | like | {LIKE_VANILLA_IN_ALL: all(like.values())},
    }


def is_within(change: Mean, most: float) -> bool:
    """Return whether the whole interval of a difference is within ``most``: few images show nothing."""
    return change.low is not None and change.high is not None and -most <= change.low and change.high <= most


def least_calls(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each level and sampler the least calls from which on all measured ones are within; or none."""
    by_sampler: dict[tuple[float, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -row["calls"]):
        key = (row["level"], row["sampler"])
        entry = by_sampler.setdefault(
            key, {"level": row["level"], "sampler": row["sampler"], "least": {}, "ended": set()}
        )
        for name, is_within in row["within"].items():
            entry["least"].setdefault(name, None)
            if not is_within:
                entry["ended"].add(name)
            elif name not in entry["ended"]:
                entry["least"][name] = row["calls"]
    order = dict.fromkeys((row["level"], row["sampler"]) for row in rows)
    return [{name: value for name, value in by_sampler[key].items() if name != "ended"} for key in order]


def vanilla_table(fast: SamplerComparison) -> str:
    cells = [
        [
            f"{row['level']:g}",
            str(row["calls"]),
            *(row[of].format() for of in COMPARED_SCORES),
            *(f"{row['ratios_of_another_run'][of]:.3f}" for of in COMPARED_SCORES),
        ]
        for row in fast.vanilla
    ]
    names = [f"{of}{what}" for what in ("", " of another run: times") for of in COMPARED_SCORES.values()]
    return common.markdown_table(["level", "calls", *names], cells)


def sampler_table(fast: SamplerComparison) -> str:
    least = least_calls(fast.rows)
    names = list(least[0]["least"])
    cells = [
        [f"{row['level']:g}", row["sampler"], *(str(row["least"][name] or "none") for name in names)] for row in least
    ]
    return common.markdown_table(["level", "sampler", *names], cells)
