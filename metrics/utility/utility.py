"""Utility: does a classifier trained on outputs predict originals of other people as well as one trained on originals?

Train on synthetic, test on real (Esteban, Hyland and Rätsch 2017), with the classifier of ``attacks.attributes``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.attacks.attributes import FOLDS, Predictions, cross_predict, permute_labels
from metrics.stats.intervals import Estimate, Floats, Names, rate_interval
from metrics.stats.risk import too_few


@dataclass(frozen=True)
class TransferPredictions(Predictions):
    """Predicted labels of N originals, by classifiers trained on other people; see ``attributes.fit_predict``."""

    originals: Names  # trained on originals: the reference
    outputs: Names
    control: Names  # trained on outputs under labels that were permuted among people


@dataclass(frozen=True)
class Utility:
    """Accuracies on ``n`` originals of ``subjects`` people, with 95 % intervals; None where too few, see ``note``."""

    n: int
    subjects: int
    chance: float  # of always predicting the most frequent label
    originals: Estimate | None = None
    outputs: Estimate | None = None
    control: Estimate | None = None
    note: str | None = None


def predict_by_transfer(
    originals: Floats, outputs: Floats, labels: Names, subjects: Names, rng: np.random.Generator, folds: int = FOLDS
) -> TransferPredictions:
    """Train on ``outputs`` and on ``originals`` (N, D) with ``labels`` (N,), in ``folds`` that split ``subjects`` (N,).

    Row i of all is one record; see ``attributes.group_values`` for labels of numbers. A row with NaN was not detected
    and is not trained on. Raises ValueError.
    """
    if originals.shape != outputs.shape or originals.ndim != 2:
        raise ValueError(
            f"originals and outputs must be (N, D), got {originals.shape} and {outputs.shape}: pair them row by row"
        )
    if not len(originals) == len(labels) == len(subjects):
        sizes = f"{len(originals)}, {len(labels)} and {len(subjects)}"
        raise ValueError(f"originals, labels and subjects must be of one length, got {sizes}: give one for each row")
    people = len(np.unique(subjects))
    if people < 2 or folds < 2:
        least = f"got {people} and {folds}: give pictures of more people"
        raise ValueError(f"subjects and folds must be two or more to hold people out, {least}")
    permuted = permute_labels(labels, subjects, rng)
    models = {
        "originals": (originals, labels, originals),
        "outputs": (outputs, labels, originals),
        "control": (outputs, permuted, originals),
    }
    return TransferPredictions(labels=labels, subjects=subjects, **cross_predict(models, subjects, folds, rng))


def measure_utility(predictions: TransferPredictions, rng: np.random.Generator) -> Utility:
    """Return the accuracy of each classifier with its interval, a bootstrap over people with several images."""
    trials = {teacher: predictions.trials(teacher) for teacher in ("originals", "outputs", "control")}
    people, chance = trials["outputs"].people, predictions.chance
    if few := too_few(trials["outputs"]):
        return Utility(len(predictions), people, chance, note=few)
    originals, outputs, control = (rate_interval(own, rng) for own in trials.values())
    return Utility(len(predictions), people, chance, originals, outputs, control)
