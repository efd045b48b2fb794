"""Groups of exactly k near points by maximum distance to the average vector, where some points stay in separate groups.

MDAV: Domingo-Ferrer and Mateo-Sanz, 2002. The point farthest from the mean of those that are left takes its k - 1
nearest, then so does the point farthest from it. Time is quadratic: for parts of a few thousand points.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from anonymizer.grouping.partition import Floats, Indices

Tags = npt.NDArray[np.int64]


def form_groups(points: Floats, tags: Tags, k: int) -> tuple[list[Indices], Indices]:
    """Return disjoint groups of exactly ``k`` rows of ``points`` (n, D), and the rows that are left over, ascending.

    ``tags`` (n, A): no two members of a group share a tag of one column; negative: no tag. With one column as few rows
    are left over as the tags allow. Ties go to the first row.
    """
    if len(points) < k:
        return [], np.arange(len(points))
    cell = _Cell(points, tags, k)
    while cell.possible_groups():
        first = cell.farthest_from_mean()
        distances = cell.distances(cell.points[first])
        cell.form(first, distances)
        if cell.remaining >= 2 * k and cell.possible_groups():
            second = cell.farthest(distances)
            cell.form(second, cell.distances(cell.points[second]))
    left_over = np.ones(len(points), bool)
    for group in cell.groups:
        left_over[group] = False
    return cell.groups, np.flatnonzero(left_over)


class _Cell:
    """Points of which some have a group, or cannot have one: these do not remain."""

    def __init__(self, points: Floats, tags: Tags, k: int) -> None:
        self.points, self.k = points - points.mean(0), k  # centred, so that less precision is lost
        self.squares = np.einsum("nd,nd->n", self.points, self.points)
        self.is_left = np.ones(len(points), bool)
        self.remaining, self.sum = len(points), self.points.sum(0, dtype=np.float64)
        self.groups: list[Indices] = []
        self.tags, self.counts, self.column_of = _number_tags(tags)

    def distances(self, center: npt.NDArray[np.float32]) -> Floats:
        """Return the squared distance of each point to ``center``, up to a constant."""
        result: Floats = self.squares - 2 * (self.points @ center)
        return result

    def farthest(self, distances: Floats) -> int:
        """Return the remaining point of the largest distance."""
        return int(np.argmax(np.where(self.is_left, distances, -np.inf)))

    def farthest_from_mean(self) -> int:
        """Return the first point of the next group.

        Where more tags are urgent than a group has members, it is one that holds such a tag.
        """
        distances = self.distances((self.sum / self.remaining).astype(np.float32))
        if len(urgent := self._urgent_tags()) >= self.k:
            holds_urgent = np.isin(self.tags, urgent).any(1)
            distances = np.where(holds_urgent, distances, -np.inf)
        return self.farthest(distances)

    def form(self, first: int, distances: Floats) -> None:
        """Group ``first`` with its nearest; without enough that are allowed, it is left over."""
        nearest = np.where(self.is_left, distances, np.inf)
        members = [first]
        self._exclude(nearest, first)
        for tag in self._urgent_tags():
            if len(members) < self.k:
                self._add_nearest(members, nearest, np.where((self.tags == tag).any(1), nearest, np.inf))
        while len(members) < self.k and self._add_nearest(members, nearest, nearest):
            pass
        if len(members) == self.k:
            self.groups.append(np.sort(np.array(members, np.int64)))
            self._remove(members)
        else:
            self._remove([first])

    def _add_nearest(self, members: list[int], nearest: Floats, candidates: Floats) -> bool:
        """Add the nearest candidate to the members; return whether there is one."""
        index = int(np.argmin(candidates))
        if not np.isfinite(candidates[index]):
            return False
        members.append(index)
        self._exclude(nearest, index)
        return True

    def _exclude(self, nearest: Floats, member: int) -> None:
        """Exclude a member, and all points that share a tag with it."""
        nearest[member] = np.inf
        for column, tag in enumerate(self.tags[member]):
            if tag >= 0:
                nearest[self.tags[:, column] == tag] = np.inf

    def _remove(self, members: list[int]) -> None:
        self.is_left[members] = False
        self.remaining -= len(members)
        self.sum -= self.points[members].sum(0, dtype=np.float64)
        held = self.tags[members].ravel()
        np.subtract.at(self.counts, held[held >= 0], 1)

    def possible_groups(self) -> int:
        """Return how many groups the tags allow of what remains; with several columns, at most.

        Of a tag, each group takes one point: the largest g with ``sum of min(count, g) >= g k`` over all tags.
        """
        fewest = self.remaining // self.k
        for column in range(self.tags.shape[1]):
            counts = self.counts[self.column_of == column]
            untagged, groups = self.remaining - int(counts.sum()), self.remaining // self.k
            while (allowed := (untagged + int(np.minimum(counts, groups).sum())) // self.k) < groups:
                groups = allowed
            fewest = min(fewest, groups)
        return fewest

    def _urgent_tags(self) -> list[int]:
        """Return the tags that each further group must hold, the most frequent first.

        A tag of as many points as there will be groups would otherwise leave more over than it must (the rule of
        Anatomy: Xiao and Tao, 2006).
        """
        if not len(self.counts):
            return []
        urgent = np.flatnonzero(self.counts >= max(2, self.possible_groups()))
        return [int(tag) for tag in urgent[np.argsort(-self.counts[urgent], kind="stable")]]


def _number_tags(given: Tags) -> tuple[Tags, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return tags that are numbered from 0 over all columns, how many points hold each, and its column.

    A tag that only one point holds excludes nothing, and counts as none.
    """
    tags = np.full(given.shape, -1, np.int64)
    counts, columns = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    begin = 0
    for column in range(given.shape[1]):
        rows = np.flatnonzero(given[:, column] >= 0)
        _, numbers, count = np.unique(given[rows, column], return_inverse=True, return_counts=True)
        is_shared = count > 1
        tags[rows, column] = np.where(is_shared, np.cumsum(is_shared) - 1 + begin, -1)[numbers]
        counts.append(count[is_shared])
        columns.append(np.full(int(is_shared.sum()), column))
        begin += int(is_shared.sum())
    return tags, np.concatenate(counts), np.concatenate(columns)
