"""Accelerated samplers against vanilla Boomerang: with how few network calls nobody could tell the difference.

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
LIKE_VANILLA_IN_ALL = "not told from vanilla by any of the last four"
SWAPS, CEILING = 200, 0.975  # vanilla runs made of two by swapping outputs, and the share of them that is let pass
FIRST, SECOND = 0, 1  # numbers of samples, whose noise differs
COMPARED_SCORES = {"lpips": "LPIPS", "clip": "CLIP similarity"}
BLOCK = 50  # every step of vanilla Boomerang takes long: kept more often


Rows = npt.NDArray[np.float32]


def kernel_distance_per_picture(one: Rows, other: Rows) -> float:
    """Between outputs (N, D) of the same originals, row by row."""
    whose = np.arange(len(one)).astype(np.str_)
    return float(kernel_distance(one, other, whose, whose))


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
    asked = task.args
    some = task.originals[: asked.samplers_pictures or (1000 if asked.full else 100)]

    def run(sampler: str, steps: int | None, level: float, number: int) -> RunOutputs:
        outputs = task.sampling(sampler, steps, BLOCK).sample(some, level, number)
        print(f"{task.name}: level {level:g}, {sampler}, {steps or 'every step'}", file=sys.stderr, flush=True)
        return RunOutputs(metrics.scores(task.work, some.pixels, outputs), metrics.features(task.work, outputs))

    vanilla, rows = [], []
    for level in asked.samplers_levels:
        t_boom = Boomerang(task.backbone).t_boom(level)
        one, other = (run("ddpm", None, level, number) for number in (FIRST, SECOND))
        floor = {name: vanilla_floors(one.rows[name], other.rows[name], asked.seed) for name in one.rows}
        means = {of: common.mean_over_pictures(one.scores[of]) for of in MEASURES}
        vanilla.append(
            {
                "level": level,
                "calls": t_boom,
                **means,
                "ratios_of_another_run": mean_ratios(other, one),
                "floor": floor,
            }
        )
        for sampler, calls in product(asked.samplers, sorted(c for c in asked.calls if c <= t_boom)):
            found = compare_with_vanilla(run(sampler, calls, level, FIRST), one, other, vanilla[-1])
            rows.append({"level": level, "sampler": sampler, "calls": calls} | found)
    return SamplerComparison(len(some), vanilla, rows)


def vanilla_floors(one: Rows, other: Rows, seed: int) -> dict[str, dict[str, float]]:
    """Of each distance what lies between two runs, and between two whose outputs of an original are swapped by chance.

    Of the latter, ``ceiling`` is what 97.5 % do not exceed.
    """
    pairs = swap_outputs(one, other, seed)
    return {
        name: {"value": far(one, other), "ceiling": float(np.quantile([far(*pair) for pair in pairs], CEILING))}
        for name, far in DISTANCES.items()
    }


def swap_outputs(one: Rows, other: Rows, seed: int) -> list[tuple[Rows, Rows]]:
    """Pairs of runs that could as well have been, from two (N, D): the outputs of each original swapped by chance."""
    swaps = np.random.default_rng(seed).random((SWAPS, len(one), 1)) < 0.5
    return [(np.where(swap, other, one), np.where(swap, one, other)) for swap in swaps]


def mean_ratios(run: RunOutputs, vanilla: RunOutputs) -> dict[str, float]:
    """Means of scores over vanilla's."""
    return {of: float(run.scores[of].mean() / vanilla.scores[of].mean()) for of in MEASURES}


def compare_with_vanilla(
    run: RunOutputs, same_noise: RunOutputs, other_noise: RunOutputs, vanilla: Mapping[str, Any]
) -> dict[str, Any]:
    """Means beside vanilla's, distances from it, and which of them vanilla could well have had itself."""
    beside = mean_ratios(run, same_noise)
    distances = {
        name: {kind: far(rows, other_noise.rows[name]) for kind, far in DISTANCES.items()}
        for name, rows in run.rows.items()
    }
    change = {of: common.mean_over_pictures(run.scores[of] - same_noise.scores[of]) for of in MEASURES}
    within = {f"{COMPARED_SCORES[of]} within 5 %": abs(beside[of] - 1) <= TOLERANCE for of in COMPARED_SCORES}
    like = {
        f"{COMPARED_SCORES[of]} shown to differ by less": is_within(
            change[of], TOLERANCE * abs(float(same_noise.scores[of].mean()))
        )
        for of in COMPARED_SCORES
    }
    for name, mine in distances.items():
        ceiling = vanilla["floor"][name]["kernel distance"]["ceiling"]
        like[f"kernel distance, {name}"] = mine["kernel distance"] <= ceiling
    return {
        **{of: common.mean_over_pictures(run.scores[of]) for of in MEASURES},
        "difference": change,
        "ratios": beside,
        "distances": distances,
        "within": within | like | {LIKE_VANILLA_IN_ALL: all(like.values())},
    }


def is_within(change: Mean, most: float) -> bool:
    """Whether the whole interval of a difference is within what is allowed: few pictures show nothing."""
    return change.low is not None and change.high is not None and -most <= change.low and change.high <= most


def least_calls(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each level and sampler the least number of calls from which on all that were tried are within; or none."""
    found: dict[tuple[float, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: -row["calls"]):
        place = (row["level"], row["sampler"])
        mine = found.setdefault(place, {"level": row["level"], "sampler": row["sampler"], "least": {}, "ended": set()})
        for name, is_within in row["within"].items():
            mine["least"].setdefault(name, None)
            if not is_within:
                mine["ended"].add(name)
            elif name not in mine["ended"]:
                mine["least"][name] = row["calls"]
    order = dict.fromkeys((row["level"], row["sampler"]) for row in rows)
    return [{name: value for name, value in found[place].items() if name != "ended"} for place in order]


def vanilla_table(fast: SamplerComparison) -> str:
    cells = [
        [
            f"{one['level']:g}",
            str(one["calls"]),
            *(one[of].shown() for of in COMPARED_SCORES),
            *(f"{one['ratios_of_another_run'][of]:.3f}" for of in COMPARED_SCORES),
        ]
        for one in fast.vanilla
    ]
    names = [f"{of}{what}" for what in ("", " of another run: times") for of in COMPARED_SCORES.values()]
    return common.markdown_table(["level", "calls", *names], cells)


def sampler_table(fast: SamplerComparison) -> str:
    least = least_calls(fast.rows)
    names = list(least[0]["least"])
    cells = [
        [f"{one['level']:g}", one["sampler"], *(str(one["least"][name] or "none") for name in names)] for one in least
    ]
    return common.markdown_table(["level", "sampler", *names], cells)
