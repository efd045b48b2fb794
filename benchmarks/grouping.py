"""Measure grouping: time and memory against the number of records, and who finds the groups again without the key.

    python benchmarks/grouping.py [--records 10000 100000 1000000] [-k 5] [--json FILE]

Features are synthetic, (N, 64) float16: principal components of variance 1 / i, as those of pictures, and
scikit-learn's digits. Each size runs in a process of its own. The attacker holds all features and lacks the key: it
groups them anew without perturbation, or many times with keys of its own, and guesses the pairs that it met most often.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from anonymizer.grouping.groups import Grouping, group_records

DIMENSIONS = 64
PERTURBATIONS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)


def make_features(count: int) -> np.ndarray:
    rng, scales = np.random.default_rng(0), (np.arange(1, DIMENSIONS + 1) ** -0.5).astype(np.float32)
    features = np.empty((count, DIMENSIONS), np.float16)
    for begin in range(0, count, 2**16):
        rows = features[begin : begin + 2**16]
        rows[:] = rng.standard_normal(rows.shape, np.float32) * scales
    return features


def make_digests(count: int, seed: int) -> np.ndarray:
    return np.frombuffer(np.random.default_rng(seed).bytes(32 * count), "S32")


def group(features: np.ndarray, k: int, seed: int, perturbation: float) -> Grouping:
    digests = make_digests(len(features), seed)
    return group_records(features, digests, k, np.random.default_rng(seed), perturbation=perturbation)


def measure_scale(count: int, k: int) -> dict[str, float]:
    """Return seconds of grouping, and the peak memory of the process in MiB with and without it."""
    features, digests = make_features(count), make_digests(count, 0)
    before, begun = peak_memory(), time.monotonic()
    result = group_records(features, digests, k, np.random.default_rng(1))
    seconds = time.monotonic() - begun
    left_over = len(result.left_over)
    return {"records": count, "seconds": seconds, "peak": peak_memory(), "before": before, "left_over": left_over}


def peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pairs_of(result: Grouping) -> set[tuple[int, int]]:
    return {pair for members in result.groups for pair in combinations(members.tolist(), 2)}


def spread(features: np.ndarray, result: Grouping) -> float:
    """Return the variance within groups."""
    return float(sum(((features[m] - features[m].mean(0)) ** 2).sum() for m in result.groups))


def measure_recovery(name: str, features: np.ndarray, k: int, rounds: int) -> list[dict[str, Any]]:
    """Return, for each strength, shares of pairs and of whole groups that attackers find, and the cost in variance."""
    features = features.astype(np.float32)
    rows, plain, base = [], group(features, k, 100, 0.0), 0.0
    for strength in PERTURBATIONS:
        ours = group(features, k, 1, strength)
        base = base or spread(features, ours)
        pairs, met = pairs_of(ours), Counter[tuple[int, int]]()
        for seed in range(rounds):
            met.update(pairs_of(group(features, k, 200 + seed, strength)))
        guess = [pair for pair, _ in met.most_common(len(pairs))]
        whole = {frozenset(m.tolist()) for m in ours.groups} & {frozenset(m.tolist()) for m in plain.groups}
        rows.append({
            "data": name, "records": len(features), "k": k, "perturbation": strength,
            "pairs": len(pairs & pairs_of(plain)) / len(pairs), "groups": len(whole) / len(ours.groups),
            "pairs_often_met": len(pairs.intersection(guess)) / len(pairs), "chance": (k - 1) / (len(features) - 1),
            "spread": spread(features, ours) / base,
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=30, help="groupings of the attacker's own")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_scale(args.one, args.k)))
        return
    scale = []
    for count in args.records:
        command = [sys.executable, "-P", __file__, "--one", str(count), "-k", str(args.k)]
        scale.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(json.dumps(scale[-1]), flush=True)
    recovery = measure_recovery("digits", load_digits().data, args.k, args.rounds)
    recovery += measure_recovery("synthetic", make_features(5000), args.k, args.rounds)
    if args.json:
        args.json.write_text(json.dumps({"scale": scale, "recovery": recovery}, indent=2) + "\n")


if __name__ == "__main__":
    main()
