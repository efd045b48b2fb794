"""Groups of at least k alike records within strata, perturbed under a key and replayable with it.

Whoever holds the originals could compute the groups of any public method anew, and would then know the others of a
group. So features are moved by noise from a generator that only the custodian's key gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anonymizer.grouping.mdav import Tags, form_groups
from anonymizer.grouping.partition import CHUNK_ROWS, Floats, Indices, split_by_medians

CELL_POINTS = 2048  # points that are grouped by MDAV at once
MAX_PASSES = 4  # over what an earlier pass left over
SPACING_SAMPLE = 256  # points whose distance to their k-th neighbour is measured
PERTURBATION = 1.0  # in distances to the k-th neighbour; benchmarks/grouping.py, docs/protection.md


@dataclass(frozen=True)
class Grouping:
    """``numbers`` (N,) int32: the group of each record, from 0; -1 for those that are left over."""

    numbers: npt.NDArray[np.int32]

    @property
    def groups(self) -> list[Indices]:
        """The records of each group, ascending."""
        order = np.argsort(self.numbers, kind="stable")
        begins = np.flatnonzero(np.diff(self.numbers[order])) + 1
        return [group for group in np.split(order, begins) if len(group) and self.numbers[group[0]] >= 0]

    @property
    def left_over(self) -> Indices:
        """The records without a group, ascending."""
        return np.flatnonzero(self.numbers < 0)


def group_records(
    features: npt.NDArray[np.floating], digests: npt.NDArray[np.bytes_], k: int, rng: np.random.Generator, *,
    strata: Tags | None = None, tags: Tags | None = None, merge: bool = False, perturbation: float = PERTURBATION,
) -> Grouping:  # fmt: skip
    """Group records (N, D) of which no group has fewer than ``k``, and without ``merge`` none has more.

    ``digests`` (N,), distinct: the keyed digest of each record, by whose order the result does not depend on that of
    the records. ``strata`` (N,): groups lie within one. ``tags`` (N, A): no two members of a group share a value of
    one column; negative: none. With ``merge`` those left over join the nearest group, which grows to 2k - 1 at most.
    ``perturbation`` is the length of the noise in distances to the k-th neighbour. Time is n log n; memory is that of
    the features in float32. Raises ValueError for digests that are not distinct.
    """
    order = np.argsort(digests, kind="stable")
    if len(order) > 1 and (digests[order[1:]] == digests[order[:-1]]).any():
        raise ValueError("digests: two records have the same one: group one of the copies")
    if strata is not None:
        order = order[np.argsort(strata[order], kind="stable")]
        begins = np.flatnonzero(np.diff(strata[order])) + 1
    else:
        begins = np.empty(0, np.int64)
    if tags is None:
        tags = np.empty((len(features), 0), np.int64)
    numbers, count = np.full(len(features), -1, np.int32), 0
    for members in np.split(order, begins):
        if len(members) < k:
            continue
        points = _perturb(features, members, k, perturbation, rng)
        own = _group_stratum(points, tags[members], k, rng, merge=merge)
        numbers[members] = np.where(own >= 0, own + count, -1)
        count += int(own.max()) + 1
    return Grouping(numbers)


def _perturb(
    features: npt.NDArray[np.floating], members: Indices, k: int, perturbation: float, rng: np.random.Generator
) -> Floats:
    """Return features with noise whose length is ``perturbation`` median distances to the k-th neighbour."""
    points = np.empty((len(members), features.shape[1]), np.float32)
    for begin in range(0, len(members), CHUNK_ROWS):
        points[begin : begin + CHUNK_ROWS] = features[members[begin : begin + CHUNK_ROWS]]
    if perturbation and len(members) > k:
        scale = np.float32(perturbation * _spacing(points, k, rng) / max(1, points.shape[1]) ** 0.5)
        for begin in range(0, len(points), CHUNK_ROWS):
            rows = points[begin : begin + CHUNK_ROWS]
            rows += scale * rng.standard_normal(rows.shape, np.float32)
    return points


def _spacing(points: Floats, k: int, rng: np.random.Generator) -> float:
    """Return the median distance of a sample of points to their k-th neighbours."""
    sample = points[rng.choice(len(points), min(SPACING_SAMPLE, len(points)), replace=False)]
    nearest = np.empty((len(sample), 0), np.float32)
    for begin in range(0, len(points), CHUNK_ROWS):
        rows = points[begin : begin + CHUNK_ROWS]
        squares = np.einsum("nd,nd->n", rows, rows) + np.einsum("nd,nd->n", sample, sample)[:, None]
        nearest = np.concatenate([nearest, squares - 2 * sample @ rows.T], 1)
        if nearest.shape[1] > k + 1:
            nearest = np.partition(nearest, k, axis=1)[:, : k + 1]  # with the point itself
    return float(np.sqrt(np.median(nearest.max(1).clip(0))))


def _group_stratum(
    points: Floats, tags: Tags, k: int, rng: np.random.Generator, *, merge: bool
) -> npt.NDArray[np.int32]:
    """Return the number of each point's group, -1 for those that are left over."""
    numbers, count = np.full(len(points), -1, np.int32), 0
    left = np.arange(len(points))
    for _ in range(MAX_PASSES):
        before = len(left)
        for part in split_by_medians(points, left, CELL_POINTS, k, rng):
            for group in form_groups(points[part], tags[part], k)[0]:
                numbers[part[group]] = count
                count += 1
        left = np.flatnonzero(numbers < 0)
        if not k <= len(left) < before:
            break
    if merge and count:
        _merge_left_over(points, tags, numbers, count, 2 * k - 1)
    return numbers


def _merge_left_over(points: Floats, tags: Tags, numbers: npt.NDArray[np.int32], count: int, max_size: int) -> None:
    """Add each point that is left over to the group with the nearest mean that it may join."""
    has_group = np.flatnonzero(numbers >= 0)
    sizes = np.bincount(numbers[has_group], minlength=count)
    means = np.zeros((count, points.shape[1]), np.float32)
    np.add.at(means, numbers[has_group], points[has_group])
    means /= sizes[:, None].astype(np.float32)
    for index in np.flatnonzero(numbers < 0):
        distances = np.square(means - points[index]).sum(1)
        distances[sizes >= max_size] = np.inf
        for column, tag in enumerate(tags[index]):
            if tag >= 0:
                sharing = numbers[tags[:, column] == tag]
                distances[sharing[sharing >= 0]] = np.inf
        if np.isfinite(distances[nearest := int(np.argmin(distances))]):
            numbers[index] = nearest
            sizes[nearest] += 1
