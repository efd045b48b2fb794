"""Embeddings with known answers, for the tests of attacks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from metrics.attacks.linkage import link
from metrics.attacks.reidentification import Faces
from metrics.stats.intervals import Trials, as_subjects, wilson_interval

Floats = npt.NDArray[np.floating[Any]]


def unit(x: Any) -> Floats:
    rows = np.asarray(x, dtype=np.float64)
    result: Floats = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
    return result


def directions(rng: np.random.Generator, *shape: int) -> Floats:
    """Independent, uniform on the sphere: (..., D)."""
    return unit(rng.standard_normal(shape))


def names(count: int, each: int = 1, prefix: str = "p") -> npt.NDArray[np.str_]:
    """``count`` people, ``each`` times each, in order."""
    return as_subjects([f"{prefix}{person:04d}" for person in range(count) for _ in range(each)])


def people(rng: np.random.Generator, count: int, photos: int, spread: float, size: int = 64) -> tuple[Faces, Floats]:
    """Photos around one direction a person, and those directions (count, D)."""
    centres = directions(rng, count, size)
    noise = spread * rng.standard_normal((count, photos, size)) / size**0.5
    return Faces(unit(centres[:, None] + noise).reshape(-1, size), names(count, photos)), centres


def includes(trials: Trials, chance: float, confidence: float = 0.999) -> bool:
    """Whether a rate agrees with ``chance``; the interval is wide, for the many tests that ask."""
    result = wilson_interval(int(trials.hits.sum()), len(trials), confidence)
    return result.low <= chance <= result.high


def rank_1(originals: Any, outputs: Any) -> float:
    """The share of outputs (N, D) that are linked with their own original (N, D)."""
    subjects = np.array([f"person {i}" for i in range(len(outputs))])
    return link(outputs, originals, np.arange(len(outputs)), subjects, np.random.default_rng(0)).within(1).rate
