"""What published scores give away: whoever holds the originals scores outputs against all of them, and compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from anonymizer import scores
from metrics.attacks.linkage import Floats, Numbers

MOST = 100  # outputs, and candidates; all pairs of them are scored


class CrossScorer(Protocol):
    def across(self, originals: torch.Tensor, outputs: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The score of each of N outputs against each of M originals: (N, M) by the name of the score."""


@dataclass(frozen=True)
class Published:
    """Of some records, ``rows`` (n,): each column of the manifest that publishes a score.

    ``scores`` holds for each column what is published of each output, (n,), NaN where nothing is, and what the attacker
    gets of each output against each original of these records, (n, n), put into the same bins where bins are published.
    ``likeness`` (n, n) is what he gets as it is, greater where pictures are more alike: he has it without being told.
    """

    rows: Numbers
    scores: Mapping[str, tuple[Floats, Floats]]
    likeness: Mapping[str, Floats]


def recompute(
    manifest: Sequence[Mapping[str, Any]],
    originals: torch.Tensor,
    outputs: torch.Tensor,
    scorer: CrossScorer,
    rng: np.random.Generator,
) -> Published:
    """Scores of at most ``MOST`` records, drawn by chance. Row i of all is one record: (N, 3, S, S) and their rows.

    What scored the release worked on pictures before they were encoded, the attacker has them after it.
    """
    rows = np.sort(rng.choice(len(manifest), min(MOST, len(manifest)), replace=False))
    where = torch.from_numpy(rows)
    found = {
        name: values.double().cpu().numpy() for name, values in scorer.across(originals[where], outputs[where]).items()
    }
    columns = scores.columns(manifest[0])
    told = {column: _told([manifest[row][column] for row in rows]) for column in columns}
    return Published(
        rows,
        {
            column: (told[column], found[name] if column == name else _binned(found[name]))
            for column, name in columns.items()
        },
        {column: -found[name] if name in scores.DISTANCES else found[name] for column, name in columns.items()},
    )


def _told(values: Sequence[float | str | None]) -> Floats:
    """Scores, or the middles of their bins; NaN where there is none."""
    return np.array([value if isinstance(value, float) else scores.middle(value) for value in values], dtype=np.float64)


def _binned(values: Floats) -> Floats:
    """The middle of the bin in which each value lies."""
    bins = [scores.middle(scores.label(value if np.isfinite(value) else None)) for value in values.ravel().tolist()]
    return np.array(bins).reshape(values.shape)
