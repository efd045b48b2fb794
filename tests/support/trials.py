"""Trials of an attack, for the tests of statistics."""

from __future__ import annotations

import numpy as np

from metrics.stats.intervals import Trials, as_subjects


def trials(hits: int, n: int, each: int = 1) -> Trials:
    """``hits`` of ``n``, ``each`` trials a person, the persons with hits first."""
    return Trials(np.arange(n) < hits, as_subjects(np.arange(n) // each))
