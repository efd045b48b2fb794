"""The page of an enhancement: pictures before and after, beside their references, and what the comparison says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anonymizer.data import image_codec
from anonymizer.report import thumbnails
from anonymizer.report.glossary import MINUS, REASONS, TIMES, Fact, number
from anonymizer.report.rendering import render
from anonymizer.report.thumbnails import LONGEST_SIDE, SMALL, Shown
from anonymizer.storage.path import Place

REFERENCES: Mapping[str, str] = {  # why one was not used, beside reasons of records
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
    panels: Sequence[tuple[str, Shown | str]]
    scores: Sequence[tuple[str, str]]
    part: str = ""

    @property
    def large(self) -> bool:
        return any(isinstance(shown, Shown) and max(shown.width, shown.height) > SMALL for _, shown in self.panels)


@dataclass(frozen=True)
class Group:
    """Examples under one heading."""

    title: str
    about: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class Line:
    """A method in the table of a measure. ``at``: low, value and high of the gain, on a strip of 200 with 0 at 100."""

    method: str
    mean: str
    between: str
    gain: str = ""
    gain_between: str = ""
    verdict: str = ""
    at: tuple[float, float, float] | None = None


def example(
    record_id: str, before: torch.Tensor, after: Mapping[str, torch.Tensor | str], scores: Mapping[str, float | None]
) -> Example:
    """``before`` (3, h, w) in [-1, 1]; ``after``: name -> (3, f h, f w), or why there is none.

    Of what is longer than 256 pixels, the middle is shown, pixel for pixel: a small copy would hide what was added.
    """
    height, width = before.shape[-2:]
    large = next(picture for picture in after.values() if isinstance(picture, torch.Tensor))
    factor = large.shape[-1] // width
    most = max(1, LONGEST_SIDE // factor)
    box = _middle(height, most), _middle(width, most)
    cut = {
        name: picture if isinstance(picture, str) else _shown(picture[:, *(_times(side, factor) for side in box)])
        for name, picture in after.items()
    }
    whole = max(height, width) <= most
    part = "" if whole else f"the middle of {number(width * factor)} {TIMES} {number(height * factor)} pixels"
    said = [(MEASURES[name].title.split(",")[0], _text(v, name)) for name, v in scores.items() if v is not None]
    return Example(record_id, [("before", _shown(before[:, box[0], box[1]])), *cut.items()], said, part)


def _middle(length: int, most: int) -> slice:
    start = max(0, (length - most) // 2)
    return slice(start, start + min(length, most))


def _times(part: slice, factor: int) -> slice:
    return slice(part.start * factor, part.stop * factor)


def _shown(picture: torch.Tensor) -> Shown:
    encoded = image_codec.encode(picture)
    return thumbnails.shown(encoded.data, encoded.width, encoded.height, ".png")


def write_enhancement(
    page: Place, told: Mapping[str, Any], groups: Sequence[Group], failed: Mapping[str, Sequence[str]]
) -> None:
    """``told``: what summary.json says. ``failed``: reason -> ids of some records that could not be used."""
    measures = [(MEASURES[name], found["n"], _lines(name, found)) for name, found in told["figures"].items()]
    page.write(
        render(
            "enhance.html.j2",
            told=told,
            levels=" then ".join(f"{one['level']:g}" for one in told["passes"]),
            groups=groups,
            measures=measures,
            failed=failed,
            meaning=dict(REASONS) | dict(REFERENCES),
            facts=_facts(told),
        )
    )


def _lines(measure: str, found: Mapping[str, Any]) -> list[Line]:
    methods = {name: one for name, one in found.items() if name != "n"}
    gains = [one["gain"] for one in methods.values() if "gain" in one]
    widest = max((abs(x) for gain in gains for x in gain.values() if x is not None), default=0.0) or 1.0
    return [_line(measure, name, one, widest) for name, one in methods.items()]


def _line(measure: str, method: str, found: Mapping[str, Any], widest: float) -> Line:
    name = "Lanczos" if method == "lanczos" else method
    mean, between = _value(measure, found["mean"])
    if "gain" not in found:
        return Line(name, mean, between)
    value, low, high = (found["gain"][side] for side in ("value", "low", "high"))
    gain, gain_between = _value(measure, found["gain"], sign="+")
    if low is None:
        return Line(name, mean, between, gain, gain_between, "one picture says nothing about others")
    verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
    left, middle, right = (round(100 + 95 * x / widest, 1) for x in (low, value, high))
    return Line(name, mean, between, gain, gain_between, verdict, (left, middle, right))


def _value(measure: str, found: Mapping[str, float | None], sign: str = "") -> tuple[str, str]:
    low, high = found["low"], found["high"]
    between = "" if low is None or high is None else f"{_text(low, measure, sign)} to {_text(high, measure, sign)}"
    return _text(found["value"], measure, sign), between


def _text(value: float | None, measure: str, sign: str = "") -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:{sign}.{MEASURES[measure].digits}f}".replace("-", MINUS)


def _facts(told: Mapping[str, Any]) -> list[Fact]:
    several = len(told["passes"]) > 1
    passes = [
        Fact(
            f"Pass {at}" if several else "Boomerang",
            f"level {one['level']:g}",
            f"t_boom {number(one['t_boom'])} of {number(one['T'])}, log-SNR {_signed(one['log_snr'])} there",
        )
        for at, one in enumerate(told["passes"], 1)
    ]
    return [
        Fact("Factor", f"{told['factor']}", "how many times as long a side became"),
        Fact("Upsampling", told["upsampling"], "before the first pass"),
        *passes,
        Fact("Sampler", f"{told['sampler']}, {number(told['steps'])} steps", "network calls for each picture or tile"),
        Fact("Model", told["model"], f"SHA-256 {told['model_digest'][:12]}…"),
        Fact("Seed", f"{told['seed']}", "the same seed and picture give the same result"),
        *([Fact("LPIPS", told["lpips"], "the model that made the score")] if "lpips" in told else []),
    ]


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)
