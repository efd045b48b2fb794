"""What an enhancement writes about its pictures: a row for each record, and means with their intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from anonymizer.enhance import UPSAMPLINGS, Enhancer, Upsampling
from metrics.utility.image_quality import mean_with_interval

Method = Literal["enhanced"] | Upsampling

ENHANCED: Literal["enhanced"] = "enhanced"
USED = "used"  # of a reference that was compared with
METHODS: tuple[Method, ...] = (ENHANCED, *UPSAMPLINGS)
DIRECTION = {"lpips": -1, "psnr": 1, "ssim": 1}  # 1: higher is better
BOUNDS = {"lpips": (0.0, math.inf), "psnr": (-math.inf, math.inf), "ssim": (-1.0, 1.0)}


@dataclass(frozen=True)
class EnhanceSummary:
    """Counts only: safe to hand to a scheduler. ``read == enhanced + failed``."""

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
    return measure if method == ENHANCED else f"{measure}_{method}"


def build_table(
    rows: Sequence[Row], enhancer: Enhancer, constants: Mapping[str, object], measures: Sequence[str]
) -> pa.Table:
    """The manifest. ``same``: what is the same for all rows; ``measures``: none where there are no references."""
    scores = [column_name(measure, method) for measure in measures for method in METHODS]
    schema = pa.schema([*ROW, *SAME, *([REFERENCE] if measures else []), *((name, pa.float64()) for name in scores)])
    columns: dict[str, list[object]] = {name: [getattr(row, name) for row in rows] for name, *_ in ROW}
    columns["reference"] = [row.reference for row in rows]
    columns |= {name: [row.scores.get(name) for row in rows] for name in scores}
    every = describe_passes(enhancer)
    of_passes = {name: [one[key] for one in every] for name, key in PASSES.items()}
    columns |= {name: [value] * len(rows) for name, value in (of_passes | dict(constants)).items()}
    return pa.table({one.name: pa.array(columns[one.name], one.type) for one in schema}, schema)


def describe_passes(enhancer: Enhancer) -> list[dict[str, float | int]]:
    """What each pass of Boomerang does."""
    whole = enhancer.whole
    return [
        {"level": level, "t_boom": t_boom, "T": enhancer.backbone.T, "log_snr": whole.log_snr(t_boom)}
        for level, t_boom in zip(enhancer.levels, enhancer.t_boom, strict=True)
    ]


def summarize(rows: Sequence[Row]) -> EnhanceSummary:
    failed = Counter(row.reason for row in rows if row.reason is not None)
    found = Counter(row.reference for row in rows if row.file is not None and row.reference is not None)
    compared = found.pop(USED, 0)
    return EnhanceSummary(
        read=len(rows),
        enhanced=len(rows) - failed.total(),
        failed=failed.total(),
        reasons=dict(sorted(failed.items())),
        compared=compared,
        unusable_references=dict(sorted(found.items())),
    )


def compute_figures(rows: Sequence[Row], measures: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """Measure -> ``n`` and, for each method, its mean; for those of old also how much better the enhanced picture is.

    Over the pictures for which every method has a finite value. ``gain`` is a mean of differences, picture by picture,
    above 0 where the enhanced one is better, whichever way the measure goes.
    """
    found: dict[str, Any] = {}
    for measure in measures:
        names = [column_name(measure, method) for method in METHODS]
        every = [[row.scores.get(name) for name in names] for row in rows]
        kept = [[v for v in values if v is not None and math.isfinite(v)] for values in every]
        values = np.array([one for one in kept if len(one) == len(names)]).reshape(-1, len(names))  # (n, methods)
        if not len(values):
            continue
        means = [{"mean": _mean_with_interval(values[:, at], rng, BOUNDS[measure])} for at in range(len(names))]
        for at in range(1, len(names)):
            means[at]["gain"] = _mean_with_interval(DIRECTION[measure] * (values[:, 0] - values[:, at]), rng)
        found[measure] = {"n": len(values)} | dict(zip(METHODS, means, strict=True))
    return found


def _mean_with_interval(
    values: Any, rng: np.random.Generator, within: tuple[float, float] = (-math.inf, math.inf)
) -> dict[str, float | None]:
    return {name: value for name, value in asdict(mean_with_interval(values, rng, within)).items() if name != "n"}


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
