"""Utility: does a reader taught by outputs read strangers' pictures as well as one taught by originals?

Train on synthetic, test on real (Esteban, Hyland and Rätsch 2017): as ``attacks.attributes`` reads, with a logistic
regression on embeddings and cross-validated by person, but always judged on originals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.attacks.attributes import FOLDS, Predictions, fit_predict, permute_labels
from metrics.attacks.linkage import Floats, Names
from metrics.stats.risk import Estimate, rate_interval, too_few


@dataclass(frozen=True)
class TransferPredictions(Predictions):
    """What readers read off each of N originals of people whom they had not seen.

    ``originals``: a reader taught by originals of other people (reference); ``outputs``: by outputs of other people;
    ``control``: by those outputs under labels that had been dealt out anew among people. An original that was not
    detected is read as the label most frequent among what the reader was taught.
    """

    originals: Names
    outputs: Names
    control: Names


@dataclass(frozen=True)
class Utility:
    """Accuracies on ``n`` originals of ``subjects`` people, 95 % intervals; none where they are too few, see ``note``.

    ``chance`` is what always saying the most frequent label gives.
    """

    n: int
    subjects: int
    chance: float
    originals: Estimate | None = None
    outputs: Estimate | None = None
    control: Estimate | None = None
    note: str | None = None


def predict_by_transfer(
    originals: Floats,
    outputs: Floats,
    labels: Names,
    subjects: Names,
    rng: np.random.Generator,
    folds: int = FOLDS,
) -> TransferPredictions:
    """Teach ``labels`` (N,) by ``outputs`` and by ``originals`` (N, D), in ``folds`` that split ``subjects`` (N,).

    Row i of all is one record; see ``attributes.groups`` for labels of numbers. A row with NaN was not detected and
    teaches nothing. Raises ValueError.
    """
    from sklearn.model_selection import GroupKFold

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
    dealt = permute_labels(labels, subjects, rng)
    found = {teacher: np.empty_like(labels) for teacher in ("originals", "outputs", "control")}
    splits = GroupKFold(min(folds, people), shuffle=True, random_state=int(rng.integers(2**31)))
    for train, test in splits.split(originals, groups=subjects):
        for teacher, source, taught in (
            ("originals", originals, labels),
            ("outputs", outputs, labels),
            ("control", outputs, dealt),
        ):
            found[teacher][test] = fit_predict(source[train], taught[train], originals[test])
    return TransferPredictions(labels=labels, subjects=subjects, **found)


def measure_utility(found: TransferPredictions, rng: np.random.Generator) -> Utility:
    """The accuracy of each reader with its interval, a bootstrap over people where one has several pictures."""
    whole = found.trials("outputs")
    if few := too_few(whole):
        return Utility(len(found), whole.people, found.chance, note=few)

    def accuracy(teacher: str) -> Estimate:
        trials = found.trials(teacher)
        bounds = rate_interval(trials, rng)
        return Estimate(trials.rate, bounds.low, bounds.high)

    readers = accuracy("originals"), accuracy("outputs"), accuracy("control")
    return Utility(len(found), whole.people, found.chance, *readers)
