"""What an enhancement writes of its pictures: a row for each record, and means with their intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa

from anonymizer.enhance import UPSAMPLINGS, Enhancer, Upsampling
from metrics.utility.image_quality import mean_with_interval

Method = Literal["enhanced"] | Upsampling

ENHANCED: Literal["enhanced"] = "enhanced"
USED = "used"  # of a reference that was compared with
METHODS: tuple[Method, ...] = (ENHANCED, *UPSAMPLINGS)
DIRECTION = {"lpips": -1, "psnr": 1, "ssim": 1}  # 1: higher is better
BOUNDS = {"lpips": (0.0, math.inf), "psnr": (-math.inf, math.inf), "ssim": (-1.0, 1.0)}

ROW = [
    ("file", pa.string()),
    ("record_id", pa.string()),
    ("reason", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
]
SAME = [
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
PASSES = {"levels": "level", "t_boom": "t_boom", "log_snr": "log_snr"}  # column -> what of each pass it lists
REFERENCE = ("reference", pa.string())


@dataclass(frozen=True)
class EnhanceSummary:
    """Counts only: safe to pass to a scheduler. ``read == enhanced + failed``."""

    read: int
    enhanced: int
    failed: int
    reasons: Mapping[str, int]  # of those that failed
    compared: int  # with a reference
    unusable_references: Mapping[str, int]  # of enhanced pictures, by reason; empty where none were asked for


@dataclass(frozen=True, slots=True)
class Row:
    """One record; ``reason`` says why there is no file. ``reference``: why there was nothing to compare with, or used.

    ``scores``: name of a column -> value.
    """

    number: int
    record_id: str
    file: str | None = None
    reason: str | None = None
    width: int | None = None
    height: int | None = None
    reference: str | None = None
    scores: Mapping[str, float | None] = field(default_factory=dict)


def column_name(measure: str, method: str) -> str:
    """Return the column of a measure for one method of enlarging."""
    return measure if method == ENHANCED else f"{measure}_{method}"


def build_table(
    rows: Sequence[Row], enhancer: Enhancer, constants: Mapping[str, object], measures: Sequence[str]
) -> pa.Table:
    """Return the manifest. ``constants``: columns that are the same in all rows; ``measures``: of references."""
    scores = [(column_name(measure, method), pa.float64()) for measure in measures for method in METHODS]
    schema = pa.schema([*ROW, *SAME, *([REFERENCE] if measures else []), *scores])
    passes = describe_passes(enhancer)
    of_passes = {name: [one[key] for one in passes] for name, key in PASSES.items()}
    return pa.Table.from_pylist([{**asdict(row), **row.scores, **of_passes, **constants} for row in rows], schema)


def describe_passes(enhancer: Enhancer) -> list[dict[str, float | int]]:
    """Return what each pass of Boomerang does."""
    return [
        {"level": level, "t_boom": t_boom, "T": enhancer.backbone.T, "log_snr": enhancer.whole.log_snr(t_boom)}
        for level, t_boom in zip(enhancer.levels, enhancer.t_boom, strict=True)
    ]


def summarize(rows: Sequence[Row]) -> EnhanceSummary:
    """Return the counts of an enhancement."""
    failed = Counter(row.reason for row in rows if row.reason is not None)
    references = Counter(row.reference for row in rows if row.file is not None and row.reference is not None)
    compared = references.pop(USED, 0)
    return EnhanceSummary(
        read=len(rows),
        enhanced=len(rows) - failed.total(),
        failed=failed.total(),
        reasons=dict(sorted(failed.items())),
        compared=compared,
        unusable_references=dict(sorted(references.items())),
    )


def compute_figures(rows: Sequence[Row], measures: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """Return, for each measure, ``n``, the mean of each method, and the gain of enhancing over the other methods.

    Only pictures count for which every method has a finite value. ``gain`` is a mean of differences, picture by
    picture, above 0 where the enhanced one is better, whichever way the measure goes.
    """
    figures: dict[str, Any] = {}
    scores = pd.DataFrame([dict(row.scores) for row in rows], dtype=float)
    for measure in measures:
        names = [column_name(measure, method) for method in METHODS]
        values = scores.reindex(columns=names).replace([math.inf, -math.inf], math.nan).dropna().to_numpy()
        if not len(values):
            continue
        methods: list[dict[str, Any]] = []
        for at in range(len(names)):
            methods.append({"mean": _describe_mean(values[:, at], rng, BOUNDS[measure])})
        for at in range(1, len(names)):
            methods[at]["gain"] = _describe_mean(DIRECTION[measure] * (values[:, 0] - values[:, at]), rng)
        figures[measure] = {"n": len(values), **dict(zip(METHODS, methods, strict=True))}
    return figures


def _describe_mean(
    values: Any, rng: np.random.Generator, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> dict[str, float | None]:
    mean = asdict(mean_with_interval(values, rng, bounds))
    del mean["n"]
    return mean
