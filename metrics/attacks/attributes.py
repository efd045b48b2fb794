"""Attributes: can age group, gender or any other column be read off outputs as off originals?

A logistic regression on embeddings, cross-validated by person: no one is in training and test. The unaware attacker
learns from originals, the trained one from outputs; how well originals themselves can be read is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, Unpack

import numpy as np

from metrics.attacks.linkage import Bools, Floats, Names, Numbers, is_detected
from metrics.stats.intervals import concatenate
from metrics.stats.risk import Figure, FigureContext, Trials, make_figure
from metrics.stats.subgroups import split_by_group, subgroup_figures

MAX_GROUPS = 10  # distinct numbers that still count as groups
BINS = 4
FOLDS = 5
UNKNOWN = "unknown"  # the group of those whose value is missing


@dataclass(frozen=True)
class Predictions:
    """The truth about N pictures, ``labels`` and ``subjects`` (N,); readers put beside it what they read, (N,) each."""

    labels: Names
    subjects: Names

    def __add__(self, other: Self) -> Self:
        return concatenate(self, other)

    def __len__(self) -> int:
        return len(self.labels)

    def trials(self, reader: str) -> Trials:
        """Hits of one reader, for example ``outputs``."""
        return Trials(getattr(self, reader) == self.labels, self.subjects)

    @property
    def chance(self) -> float:
        """The share of the most frequent label."""
        return float(np.unique(self.labels, return_counts=True)[1].max() / len(self))


@dataclass(frozen=True)
class AttributePredictions(Predictions):
    """What was read off each picture.

    ``originals``: off the original (reference); ``unaware``: off the output by a reader of originals; ``trained``: off
    the output by a reader of outputs; ``unaware_control``, ``trained_control``: by readers who learnt labels that had
    been dealt out anew among people. A picture that was not detected is read as the most frequent label.
    """

    originals: Names
    unaware: Names
    trained: Names
    unaware_control: Names
    trained_control: Names
    seen: Bools


def parse_numbers(values: Sequence[Any]) -> Sequence[Any]:
    """A column of text that holds nothing but numbers, as those of CSV files do, as numbers; any other as it is."""
    try:
        return [float(value) if isinstance(value, str) else value for value in values]
    except ValueError:
        return values


def group_values(values: Sequence[Any], max_groups: int = MAX_GROUPS, bins: int = BINS) -> Names:
    """A column as labels (N,): text and few numbers as they are, many numbers as ``bins`` of equal size ("26 to 31").

    A bin goes from its lowest value to its highest; equal values share one, so there may be fewer bins. Raises
    ValueError for a missing value.
    """
    column = np.asarray(parse_numbers(values))
    if column.dtype.kind not in "iuf" or (column.dtype.kind != "f" and len(np.unique(column)) <= max_groups):
        if any(value is None or value != value for value in values):
            raise ValueError("values hold a missing one: leave its rows out")
        return column.astype(np.str_)
    if np.isnan(column).any():
        raise ValueError("values hold a missing one: leave its rows out")
    if len(np.unique(column)) <= max_groups:
        return np.array([f"{value:g}" for value in column], dtype=np.str_)
    edges = np.unique(np.quantile(column, np.arange(1, bins) / bins, method="lower"))
    place = np.searchsorted(edges, column, side="left")
    spans = {p: f"{column[place == p].min():g} to {column[place == p].max():g}" for p in np.unique(place)}
    return np.array([spans[p] for p in place], dtype=np.str_)


def group_known_values(values: Sequence[Any]) -> Names:
    """As ``groups``, (N,), of a column in which values may be missing (None or NaN): those are ``unknown``.

    Missing values do not keep numbers from being cut into bins, and take no part in it.
    """
    known = [value is not None and value == value for value in values]
    labels = iter(
        group_values([value for value, k in zip(values, known, strict=True) if k]).tolist() if any(known) else []
    )
    return np.array([next(labels) if k else UNKNOWN for k in known], dtype=np.str_)


def predict_attribute(
    originals: Floats,
    outputs: Floats,
    labels: Names,
    subjects: Names,
    rng: np.random.Generator,
    folds: int = FOLDS,
) -> AttributePredictions:
    """Read the ``labels`` (N,) off ``outputs`` (N, D), in ``folds`` that split ``subjects`` (N,).

    ``originals`` (N, D) are the pictures behind the outputs, in the same order. Raises ValueError.
    """
    from sklearn.model_selection import GroupKFold

    if not len(originals) == len(outputs) == len(labels) == len(subjects):
        sizes = f"{len(originals)}, {len(outputs)}, {len(labels)} and {len(subjects)}"
        raise ValueError(f"originals, outputs, labels and subjects must be of one length, got {sizes}")
    people = len(np.unique(subjects))
    if people < 2:
        raise ValueError(f"subjects must be two or more to read an attribute of strangers, got {people}")
    dealt = permute_labels(labels, subjects, rng)
    width = np.empty(len(labels), dtype=labels.dtype)
    found = {
        field.name: width.copy()
        for field in fields(AttributePredictions)
        if field.name not in ("labels", "subjects", "seen")
    }
    splits = GroupKFold(min(folds, people), shuffle=True, random_state=int(rng.integers(2**31)))
    for train, test in splits.split(originals, groups=subjects):
        for name, source, target, taught in (
            ("originals", originals, originals, labels),
            ("unaware", originals, outputs, labels),
            ("trained", outputs, outputs, labels),
            ("unaware_control", originals, outputs, dealt),
            ("trained_control", outputs, outputs, dealt),
        ):
            found[name][test] = fit_predict(source[train], taught[train], target[test])
    return AttributePredictions(labels=labels, subjects=subjects, seen=is_detected(outputs), **found)


def permute_labels(labels: Names, subjects: Names, rng: np.random.Generator) -> Names:
    """Labels dealt out anew among people: each takes another's (or, by luck, his own), drawn from that one's rows."""
    people, person, sizes = np.unique(subjects, return_inverse=True, return_counts=True)
    giver = rng.permutation(len(people))[person]
    order, start = np.argsort(person, kind="stable"), np.cumsum(sizes) - sizes
    row: Numbers = order[start[giver] + (rng.random(len(labels)) * sizes[giver]).astype(np.int64)]
    return labels[row]


def fit_predict(known: Floats, labels: Names, asked: Floats) -> Names:
    """Fit on rows that hold an embedding; with nothing to learn or to look at, the most frequent label."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    names, counts = np.unique(labels, return_counts=True)
    usable, visible = is_detected(known), is_detected(asked)
    found = np.full(len(asked), names[counts.argmax()], dtype=labels.dtype)  # or longer names would be cut off
    if len(np.unique(labels[usable])) > 1 and visible.any():
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(known[usable], labels[usable])
        found[visible] = model.predict(asked[visible])
    return found


def figures(
    found: AttributePredictions, reader: str, column: str, rng: np.random.Generator, **described: Unpack[FigureContext]
) -> list[Figure]:
    """The accuracy of one reader (``originals``, ``unaware``, ``trained``) for everybody and for each label.

    Chance is the share of the most frequent label. One label alone has none: a reader that always says it is right for
    all of its people; its control shows that.
    """
    control = None if reader == "originals" else found.trials(f"{reader}_control")
    measure, trials, labels = f"accuracy of {column}", found.trials(reader), found.labels
    whole = make_figure(trials, rng, measure=measure, control=control, chance=found.chance, **described)
    controls = split_by_group(control, labels) if control is not None else None
    parts = subgroup_figures(trials, labels, rng, column=column, measure=measure, controls=controls, **described)
    return [whole, *parts]
