"""The page of an enhancement: pictures before and after, beside their references, and what the comparison says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anonymizer.data import image_codec
from anonymizer.report import thumbnails
from anonymizer.report.glossary import MINUS, REASONS, TIMES, Setting, format_number
from anonymizer.report.rendering import render
from anonymizer.report.thumbnails import MAX_PIXELATED, MAX_SIDE, Thumbnail
from anonymizer.storage.path import StoragePath

REFERENCE_REASONS: Mapping[str, str] = {  # why one was not used, beside reasons of records
    "missing": "No reference has the picture's name.",
    "wrong_size": "It is not the picture's sides times the factor.",
}


@dataclass(frozen=True)
class Measure:
    """How a comparison with references is read."""

    title: str
    about: str
    digits: int


MEASURES: Mapping[str, Measure] = {
    "lpips": Measure("LPIPS", "difference to the eye, as a network sees it: lower is better", 3),
    "psnr": Measure("PSNR, dB", "likeness pixel by pixel, which prefers a blur: higher is better", 2),
    "ssim": Measure("SSIM", "likeness of local structure, which prefers a blur too: higher is better", 3),
}


@dataclass(frozen=True)
class Example:
    """One picture in several ways, each with its name; ``part`` says which part of it is shown, if not all."""

    record_id: str
    panels: Sequence[tuple[str, Thumbnail | str]]
    scores: Sequence[tuple[str, str]]
    crop: str = ""

    @property
    def is_large(self) -> bool:
        return any(
            isinstance(shown, Thumbnail) and max(shown.width, shown.height) > MAX_PIXELATED for _, shown in self.panels
        )


@dataclass(frozen=True)
class Group:
    """Examples under one heading."""

    title: str
    about: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class MethodRow:
    """A method in the table of a measure. ``at``: low, value and high of the gain, on a strip of 200 with 0 at 100."""

    method: str
    mean: str
    interval: str
    gain: str = ""
    gain_interval: str = ""
    verdict: str = ""
    strip: tuple[float, float, float] | None = None


def build_example(
    record_id: str, before: torch.Tensor, after: Mapping[str, torch.Tensor | str], scores: Mapping[str, float | None]
) -> Example:
    """``before`` (3, h, w) in [-1, 1]; ``after``: name -> (3, f h, f w), or why there is none.

    Of what is longer than 256 pixels, the middle is shown, pixel for pixel: a small copy would hide what was added.
    """
    height, width = before.shape[-2:]
    large = next(picture for picture in after.values() if isinstance(picture, torch.Tensor))
    factor = large.shape[-1] // width
    most = max(1, MAX_SIDE // factor)
    box = _center_slice(height, most), _center_slice(width, most)
    cut = {
        name: picture
        if isinstance(picture, str)
        else _thumbnail(picture[:, *(_scale_slice(side, factor) for side in box)])
        for name, picture in after.items()
    }
    whole = max(height, width) <= most
    part = (
        ""
        if whole
        else f"the middle of {format_number(width * factor)} {TIMES} {format_number(height * factor)} pixels"
    )
    said = [(MEASURES[name].title.split(",")[0], _format_value(v, name)) for name, v in scores.items() if v is not None]
    return Example(record_id, [("before", _thumbnail(before[:, box[0], box[1]])), *cut.items()], said, part)


def _center_slice(length: int, most: int) -> slice:
    start = max(0, (length - most) // 2)
    return slice(start, start + min(length, most))


def _scale_slice(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def _thumbnail(picture: torch.Tensor) -> Thumbnail:
    encoded = image_codec.encode(picture)
    return thumbnails.output_thumbnail(encoded.data, encoded.width, encoded.height, ".png")


def write_enhancement(
    page: StoragePath, told: Mapping[str, Any], groups: Sequence[Group], failed: Mapping[str, Sequence[str]]
) -> None:
    """``told``: what summary.json says. ``failed``: reason -> ids of some records that could not be used."""
    measures = [(MEASURES[name], found["n"], _method_rows(name, found)) for name, found in told["figures"].items()]
    page.write(
        render(
            "enhance.html.j2",
            told=told,
            levels=" then ".join(f"{one['level']:g}" for one in told["passes"]),
            groups=groups,
            measures=measures,
            failed=failed,
            meaning=dict(REASONS) | dict(REFERENCE_REASONS),
            facts=_describe_run(told),
        )
    )


def _method_rows(measure: str, found: Mapping[str, Any]) -> list[MethodRow]:
    methods = {name: one for name, one in found.items() if name != "n"}
    gains = [one["gain"] for one in methods.values() if "gain" in one]
    widest = max((abs(x) for gain in gains for x in gain.values() if x is not None), default=0.0) or 1.0
    return [_method_row(measure, name, one, widest) for name, one in methods.items()]


def _method_row(measure: str, method: str, found: Mapping[str, Any], widest: float) -> MethodRow:
    name = "Lanczos" if method == "lanczos" else method
    mean, between = _format_interval(measure, found["mean"])
    if "gain" not in found:
        return MethodRow(name, mean, between)
    value, low, high = (found["gain"][side] for side in ("value", "low", "high"))
    gain, gain_between = _format_interval(measure, found["gain"], sign="+")
    if low is None:
        return MethodRow(name, mean, between, gain, gain_between, "one picture says nothing about others")
    verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
    left, middle, right = (round(100 + 95 * x / widest, 1) for x in (low, value, high))
    return MethodRow(name, mean, between, gain, gain_between, verdict, (left, middle, right))


def _format_interval(measure: str, found: Mapping[str, float | None], sign: str = "") -> tuple[str, str]:
    low, high = found["low"], found["high"]
    between = (
        ""
        if low is None or high is None
        else f"{_format_value(low, measure, sign)} to {_format_value(high, measure, sign)}"
    )
    return _format_value(found["value"], measure, sign), between


def _format_value(value: float | None, measure: str, sign: str = "") -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:{sign}.{MEASURES[measure].digits}f}".replace("-", MINUS)


def _describe_run(told: Mapping[str, Any]) -> list[Setting]:
    several = len(told["passes"]) > 1
    passes = [
        Setting(
            f"Pass {at}" if several else "Boomerang",
            f"level {one['level']:g}",
            f"t_boom {format_number(one['t_boom'])} of {format_number(one['T'])}, log-SNR {_format_signed(one['log_snr'])} there",  # noqa: E501
        )
        for at, one in enumerate(told["passes"], 1)
    ]
    return [
        Setting("Factor", f"{told['factor']}", "how many times as long a side became"),
        Setting("Upsampling", told["upsampling"], "before the first pass"),
        *passes,
        Setting(
            "Sampler",
            f"{told['sampler']}, {format_number(told['steps'])} steps",
            "network calls for each picture or tile",
        ),
        Setting("Model", told["model"], f"SHA-256 {told['model_digest'][:12]}…"),
        Setting("Seed", f"{told['seed']}", "the same seed and picture give the same result"),
        *([Setting("LPIPS", told["lpips"], "the model that made the score")] if "lpips" in told else []),
    ]


def _format_signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)
