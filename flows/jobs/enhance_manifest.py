"""What an enhancement writes of its pictures: a row for each record, and means with their intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from anonymizer.enhance import UPSAMPLINGS, Upsampling
from metrics.utility.image_quality import mean_with_interval

Method = Literal["enhanced"] | Upsampling
Row = dict[str, Any]  # ``number`` of a record, and its columns; those that are missing are null

ENHANCED: Literal["enhanced"] = "enhanced"
USED = "used"  # of a reference that was compared with
METHODS: tuple[Method, ...] = (ENHANCED, *UPSAMPLINGS)
DIRECTION = {"lpips": -1, "psnr": 1, "ssim": 1}  # 1: higher is better
BOUNDS = {"lpips": (0.0, math.inf), "psnr": (-math.inf, math.inf), "ssim": (-1.0, 1.0)}

COLUMNS = [
    ("file", pa.string()),
    ("record_id", pa.string()),
    ("reason", pa.string()),  # why there is no file
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("factor", pa.int32()),
    ("upsampling", pa.string()),
    ("levels", pa.list_(pa.float64())),
    ("t_boom", pa.list_(pa.int32())),
    ("log_snr", pa.list_(pa.float64())),
    ("model", pa.string()),
    ("model_digest", pa.string()),
    ("sampler", pa.string()),
    ("steps", pa.int32()),
    ("seed", pa.int64()),
]
REFERENCE = ("reference", pa.string())  # used, or why there was nothing to compare with


@dataclass(frozen=True)
class EnhanceSummary:
    """Counts only: safe to pass to a scheduler. ``read == enhanced + failed``."""

    read: int
    enhanced: int
    failed: int
    reasons: Mapping[str, int]  # of those that failed
    compared: int  # with a reference
    unusable_references: Mapping[str, int]  # of enhanced pictures, by reason; empty where none were asked for


def column_name(measure: str, method: str) -> str:
    """Return the column of a measure for one method of enlarging."""
    return measure if method == ENHANCED else f"{measure}_{method}"


def build_table(rows: Sequence[Row], measures: Sequence[str]) -> pa.Table:
    """Return the manifest; without references there are no measures."""
    scores = [(column_name(measure, method), pa.float64()) for measure in measures for method in METHODS]
    return pa.Table.from_pylist(list(rows), pa.schema([*COLUMNS, *([REFERENCE] if measures else []), *scores]))


def summarize(rows: Sequence[Row]) -> EnhanceSummary:
    """Return the counts of an enhancement."""
    failed = Counter(row["reason"] for row in rows if "file" not in row)
    references = Counter(row["reference"] for row in rows if "reference" in row)
    compared = references.pop(USED, 0)
    return EnhanceSummary(
        read=len(rows),
        enhanced=len(rows) - failed.total(),
        failed=failed.total(),
        reasons=dict(sorted(failed.items())),
        compared=compared,
        unusable_references=dict(sorted(references.items())),
    )


def compute_figures(table: pa.Table, measures: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """Return, for each measure, ``n``, the mean of each method, and the gain of enhancing over the other methods.

    Only pictures count for which every method has a finite value. ``gain`` is a mean of differences, picture by
    picture, above 0 where the enhanced one is better, whichever way the measure goes.
    """
    figures: dict[str, Any] = {}
    for measure in measures:
        scores: pd.DataFrame = table.select([column_name(measure, method) for method in METHODS]).to_pandas()
        values = scores.replace([math.inf, -math.inf], math.nan).dropna().to_numpy().T  # (methods, n)
        if not values.size:
            continue
        methods: list[dict[str, Any]] = [{"mean": _describe_mean(row, rng, BOUNDS[measure])} for row in values]
        for method, row in zip(methods[1:], values[1:], strict=True):
            method["gain"] = _describe_mean(DIRECTION[measure] * (values[0] - row), rng)
        figures[measure] = {"n": values.shape[1], **dict(zip(METHODS, methods, strict=True))}
    return figures


def _describe_mean(
    values: Any, rng: np.random.Generator, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> dict[str, float | None]:
    mean = asdict(mean_with_interval(values, rng, bounds))
    del mean["n"]
    return mean
