"""Simulate how often 95 % intervals cover the truth with few people; see docs/decisions/007-few-people.md.

    python benchmarks/coverage.py [--rounds 2000]

Rates: each person has an own rate, by a beta distribution with a sum of 1 or 2. Risk: the same, an attack against a
control. AUC: scores are normal, and vary between people as much as within a person.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from itertools import product

import numpy as np
from scipy import stats

from metrics.stats.intervals import Trials, as_subjects, cluster_bootstrap
from metrics.stats.risk import risk_above_control
from metrics.stats.roc import auc

REPLICATES = 400
PEOPLE = (10, 15, 30)


def simulate_rates(
    people: int, each: int, total: float, rate: float, rounds: int
) -> Iterator[tuple[float, float, float]]:
    rng = np.random.default_rng([people, each, round(10 * total), round(100 * rate)])
    for _ in range(rounds):
        interval = cluster_bootstrap(_draw_trials(people, each, total, rate, rng), rng, REPLICATES)
        yield interval.low, interval.high, rate


def simulate_risks(people: int, each: int, a: float, c: float, rounds: int) -> Iterator[tuple[float, float, float]]:
    rng = np.random.default_rng([people, each, round(100 * a), round(100 * c)])
    for _ in range(rounds):
        estimate = risk_above_control(_draw_trials(people, each, 1, a, rng), _draw_trials(people, each, 1, c, rng), rng)
        low, high = (estimate.low, estimate.high) if estimate else (0.0, 1.0)
        yield low, high, (a - c) / (1 - c)


def simulate_auc(
    members: int, others: int, each: int, shift: float, rounds: int
) -> Iterator[tuple[float, float, float]]:
    rng = np.random.default_rng([members, others, each, round(10 * shift)])
    names = [np.repeat(np.arange(n), each).astype(np.str_) for n in (members, others)]
    names[1] = np.char.add("other ", names[1])
    for _ in range(rounds):
        a, b = (np.repeat(rng.normal(size=n), each) + rng.normal(size=n * each) for n in (members, others))
        interval = auc(a + shift, b, *names)
        yield interval.low, interval.high, float(stats.norm.cdf(shift / 2))


def _draw_trials(people: int, each: int, total: float, rate: float, rng: np.random.Generator) -> Trials:
    own = np.repeat(rng.beta(total * rate, total * (1 - rate), people), each)
    return Trials(rng.random(people * each) < own, as_subjects(np.repeat(np.arange(people), each)))


def print_coverage(what: str, intervals: Iterator[tuple[float, float, float]]) -> None:
    low, high, truth = np.array(list(intervals)).T
    covered, above = ((low <= truth) & (truth <= high)).mean(), (truth > high).mean()
    luck = math.sqrt(covered * (1 - covered) / len(low))
    print(f"{what:<48} {covered:.3f} +- {luck:.3f}   {above:.3f}   {(high - low).mean():.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    print(f"{'':<48} covered          above   width")
    for total, people, each, rate in product((1, 2), PEOPLE, (5, 10), (0.03, 0.1, 0.3, 0.7)):
        what = f"rate {rate:g}: {people} people x {each} trials, sum {total}"
        print_coverage(what, simulate_rates(people, each, total, rate, rounds))
    for people, (a, c) in product(PEOPLE, ((0.1, 0.1), (0.3, 0.1), (0.7, 0.1), (0.9, 0.6))):
        print_coverage(
            f"risk of {a:g} above {c:g}: {people} people x 5 trials", simulate_risks(people, 5, a, c, rounds)
        )
    for (members, others), each, shift in product(((10, 10), (10, 100), (15, 200)), (1, 5), (0.0, 1.5, 3.0)):
        what = f"AUC, shift {shift:g}: {members} and {others} people x {each}"
        print_coverage(what, simulate_auc(members, others, each, shift, rounds))


if __name__ == "__main__":
    main()
