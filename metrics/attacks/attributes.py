"""Attribute inference: can age group, gender or any other column be read off outputs as off originals?

Logistic regression on embeddings, cross-validated by person: nobody is in training and test. The unaware attacker
learns from originals, the trained one from outputs; predictions from originals themselves are the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, Unpack

import numpy as np

from metrics.attacks.linkage import is_detected
from metrics.stats.intervals import Bools, Floats, Names, Numbers, Trials, concatenate
from metrics.stats.risk import Figure, FigureContext, make_figure
from metrics.stats.subgroups import split_by_group, subgroup_figures

MAX_GROUPS = 10  # distinct numbers that still count as groups
BINS = 4
FOLDS = 5
UNKNOWN = "unknown"  # the group of missing values


@dataclass(frozen=True)
class Predictions:
    """The true ``labels`` and ``subjects`` (N,) of N images; subclasses add predictions, a column (N,) each."""

    labels: Names
    subjects: Names

    def __add__(self, other: Self) -> Self:
        return concatenate(self, other)

    def __len__(self) -> int:
        return len(self.labels)

    def trials(self, column: str) -> Trials:
        """Return which predictions of one column, for example ``outputs``, are right."""
        return Trials(getattr(self, column) == self.labels, self.subjects)

    @property
    def chance(self) -> float:
        """The share of the most frequent label."""
        return float(np.unique(self.labels, return_counts=True)[1].max() / len(self))


@dataclass(frozen=True)
class AttributePredictions(Predictions):
    """Predicted labels of each image; an image that was not detected gets the most frequent label."""

    originals: Names  # of originals: the reference
    unaware: Names  # of outputs, by a model of originals
    trained: Names  # of outputs, by a model of outputs
    unaware_control: Names  # by models of labels that were permuted among people
    trained_control: Names
    seen: Bools


def group_values(values: Sequence[Any], max_groups: int = MAX_GROUPS, bins: int = BINS) -> Names:
    """Return a column as labels (N,): text and few numbers as they are, many numbers in ``bins`` of equal size.

    Text that holds nothing but numbers, as in CSV files, counts as numbers. A bin ("26 to 31") goes from its lowest
    value to its highest; equal values share one, so there may be fewer bins. Raises ValueError for a missing value.
    """
    if not is_known(values).all():
        raise ValueError("values hold a missing one: leave its rows out")
    try:
        column = np.asarray([float(value) if isinstance(value, str) else value for value in values])
    except ValueError:
        column = np.asarray(values)
    few = len(np.unique(column)) <= max_groups
    if column.dtype.kind not in "iuf" or (column.dtype.kind != "f" and few):
        return column.astype(np.str_)
    if few:
        return np.array([f"{value:g}" for value in column], dtype=np.str_)
    edges = np.unique(np.quantile(column, np.arange(1, bins) / bins, method="lower"))
    bin_of = np.searchsorted(edges, column, side="left")
    spans = {b: f"{column[bin_of == b].min():g} to {column[bin_of == b].max():g}" for b in np.unique(bin_of)}
    return np.array([spans[b] for b in bin_of], dtype=np.str_)


def is_known(values: Sequence[Any]) -> Bools:
    """Return which values (N,) are neither None nor NaN."""
    return np.array([value is not None and value == value for value in values], dtype=bool)


def known_labels(values: Sequence[Any]) -> tuple[Bools, Names]:
    """Return which of N values are known, and the groups of those."""
    known = is_known(values)
    return known, group_values([value for value, k in zip(values, known, strict=True) if k])


def group_known_values(values: Sequence[Any]) -> Names:
    """Return a column as labels (N,), with missing values as ``unknown``; they take no part in the bins."""
    known, labels = known_labels(values)
    groups = np.full(len(known), UNKNOWN, dtype=np.promote_types(labels.dtype, f"<U{len(UNKNOWN)}"))
    groups[known] = labels
    return groups


def predict_attribute(
    originals: Floats, outputs: Floats, labels: Names, subjects: Names, rng: np.random.Generator, folds: int = FOLDS
) -> AttributePredictions:
    """Predict the ``labels`` (N,) from ``outputs`` (N, D), in ``folds`` that split ``subjects`` (N,).

    ``originals`` (N, D) are the images behind the outputs, in the same order. Raises ValueError.
    """
    if not len(originals) == len(outputs) == len(labels) == len(subjects):
        sizes = f"{len(originals)}, {len(outputs)}, {len(labels)} and {len(subjects)}"
        raise ValueError(f"originals, outputs, labels and subjects must be of one length, got {sizes}")
    if (people := len(np.unique(subjects))) < 2:
        raise ValueError(f"subjects must be two or more to read an attribute of strangers, got {people}")
    permuted = permute_labels(labels, subjects, rng)
    models = {
        "originals": (originals, labels, originals),
        "unaware": (originals, labels, outputs),
        "trained": (outputs, labels, outputs),
        "unaware_control": (originals, permuted, outputs),
        "trained_control": (outputs, permuted, outputs),
    }
    predicted = cross_predict(models, subjects, folds, rng)
    return AttributePredictions(labels=labels, subjects=subjects, seen=is_detected(outputs), **predicted)


def cross_predict(
    models: Mapping[str, tuple[Floats, Names, Floats]], subjects: Names, folds: int, rng: np.random.Generator
) -> dict[str, Names]:
    """Return predictions (N,) by model, cross-validated in folds that split ``subjects`` (N,).

    A model is the embeddings (N, D) and labels (N,) that it learns from, and the embeddings (N, D) that it predicts.
    """
    from sklearn.model_selection import GroupKFold

    predicted = {name: np.empty_like(labels) for name, (_, labels, _) in models.items()}
    splits = GroupKFold(
        min(folds, len(np.unique(subjects))), shuffle=True, random_state=int(rng.integers(2**31))
    ).split(subjects, groups=subjects)
    for train, test in splits:
        for name, (source, labels, target) in models.items():
            predicted[name][test] = fit_predict(source[train], labels[train], target[test])
    return predicted


def permute_labels(labels: Names, subjects: Names, rng: np.random.Generator) -> Names:
    """Permute labels among people: each takes another's (or, by chance, its own), drawn from that person's rows."""
    people, person, sizes = np.unique(subjects, return_inverse=True, return_counts=True)
    giver = rng.permutation(len(people))[person]
    order, start = np.argsort(person, kind="stable"), np.cumsum(sizes) - sizes
    row: Numbers = order[start[giver] + (rng.random(len(labels)) * sizes[giver]).astype(np.int64)]
    return labels[row]


def fit_predict(train: Floats, labels: Names, test: Floats) -> Names:
    """Fit on rows that hold an embedding; predict the most frequent label where there is nothing to fit or to see."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names, counts = np.unique(labels, return_counts=True)
    usable, visible = is_detected(train), is_detected(test)
    predicted = np.full(len(test), names[counts.argmax()], dtype=labels.dtype)  # or longer names would be cut off
    if len(np.unique(labels[usable])) > 1 and visible.any():
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(train[usable], labels[usable])
        predicted[visible] = model.predict(test[visible])
    return predicted


def figures(
    predictions: AttributePredictions,
    reader: str,
    column: str,
    rng: np.random.Generator,
    **context: Unpack[FigureContext],
) -> list[Figure]:
    """Return the accuracy of one reader (``originals``, ``unaware``, ``trained``) for everybody and for each label.

    A single label has no chance level: a reader that always predicts it is right for all of its people.
    """
    control = None if reader == "originals" else predictions.trials(f"{reader}_control")
    measure, trials, labels = f"accuracy of {column}", predictions.trials(reader), predictions.labels
    whole = make_figure(trials, rng, measure=measure, control=control, chance=predictions.chance, **context)
    controls = None if control is None else split_by_group(control, labels)
    return [whole, *subgroup_figures(trials, labels, rng, column=column, measure=measure, controls=controls, **context)]
