"""The utility of `benchmarks/protection.py`: what outputs teach of real pictures of other people, and how they look."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from anonymizer.errors import ModelError
from metrics.attacks.attributes import fit_predict
from metrics.features.dlib_faces import FaceFinder
from metrics.stats.intervals import Estimate, Floats, Names, Numbers, wilson_interval
from metrics.utility.fidelity import measure_distances


def measure_taught(outputs: Floats, labels: Names, real: Floats, truth: Names) -> Estimate:
    """Return the accuracy on ``real`` (M, D) of logistic regression on outputs (R, D) with the labels of a release."""
    right = fit_predict(outputs, labels, real) == truth
    return wilson_interval(int(right.sum()), len(right))


def thirds(values: Floats, of: Floats) -> Names:
    """Return which third of other people's ages each value lies in."""
    return np.searchsorted(np.quantile(of, (1 / 3, 2 / 3)), values).astype(np.str_)


def measure_likeness(
    originals: Floats, outputs: Floats, groups: Numbers, n: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Return the distances of outputs (G * n, D) from originals (N, D), and their variety in that of originals.

    ``groups`` (A, k): the originals behind the first outputs, n of each group.
    """
    subjects, names = (np.array([f"{side} {i}" for i in range(size)]) for side, size in
                       (("original", len(originals)), ("group", len(outputs) // n)))  # fmt: skip
    subjects = subjects.astype(np.promote_types(subjects.dtype, names.dtype))
    subjects[groups] = names[: len(groups), None]
    distances = measure_distances(originals, outputs, rng, subjects, np.repeat(names, n))
    return {
        "distances": {d.measure: asdict(d) for d in distances},
        "variety": mean_distance(outputs) / mean_distance(originals),
    }


def mean_distance(rows: Floats) -> float:
    """Return the mean cosine distance of two different rows of unit norm."""
    return float(1 - ((rows.sum(0) ** 2).sum() - len(rows)) / (len(rows) * (len(rows) - 1)))


def load_faces() -> FaceFinder | None:
    """Return dlib's detector where it is installed."""
    try:
        return FaceFinder.load()
    except ModelError:
        return None


def share_with_face(faces: FaceFinder, images: torch.Tensor) -> Estimate:
    return wilson_interval(sum(bool(faces.find_all(image)) for image in images), len(images))
