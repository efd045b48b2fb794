"""The page of an enhancement: images before and after, with their references, and the comparison with these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anonymizer.data import image_codec
from anonymizer.report.glossary import MINUS, REASONS, TIMES, Setting, format_number, format_signed
from anonymizer.report.rendering import render
from anonymizer.report.thumbnails import MAX_SIDE, Thumbnail, output_thumbnail
from anonymizer.storage.path import StoragePath

REFERENCE_REASONS: Mapping[str, str] = {  # why a reference was not used
    "missing": "No reference has the picture's name.",
    "wrong_size": "It is not the picture's sides times the factor.",
}


@dataclass(frozen=True)
class Measure:
    """How a score against references is read, and to how many digits."""

    title: str
    about: str
    digits: int

    def format(self, value: float | None, sign: str = "") -> str:
        return "\N{EN DASH}" if value is None else f"{value:{sign}.{self.digits}f}".replace("-", MINUS)

    def format_interval(self, low: float | None, high: float | None, sign: str = "") -> str:
        return "" if low is None or high is None else f"{self.format(low, sign)} to {self.format(high, sign)}"


MEASURES: Mapping[str, Measure] = {
    "lpips": Measure("LPIPS", "difference to the eye, as a network sees it: lower is better", 3),
    "psnr": Measure("PSNR, dB", "likeness pixel by pixel, which prefers a blur: higher is better", 2),
    "ssim": Measure("SSIM", "likeness of local structure, which prefers a blur too: higher is better", 3),
}


@dataclass(frozen=True)
class Example:
    """One image by several methods, as named panels; ``crop`` says which part of it they show, if not all."""

    record_id: str
    panels: Sequence[tuple[str, Thumbnail | str]]
    scores: Sequence[tuple[str, str]]
    crop: str = ""

    @property
    def is_large(self) -> bool:
        return any(isinstance(panel, Thumbnail) and not panel.is_small for _, panel in self.panels)


@dataclass(frozen=True)
class Group:
    """Examples under one heading."""

    title: str
    about: str
    examples: Sequence[Example]


@dataclass(frozen=True)
class MethodRow:
    """A method in the table of a measure. ``strip`` is low, value and high of the gain, from 0 to 200 around 100."""

    method: str
    mean: str
    interval: str
    gain: str = ""
    gain_interval: str = ""
    verdict: str = ""
    strip: Sequence[float] | None = None


def build_example(
    record_id: str, before: torch.Tensor, after: Mapping[str, torch.Tensor | str], scores: Mapping[str, float | None]
) -> Example:
    """Return an example from an image (3, h, w) in [-1, 1] and results (3, f h, f w), or why there is none, by name.

    Of results longer than 256 pixels the centre is shown, pixel for pixel: a small copy would hide the added detail.
    """
    height, width = before.shape[-2:]
    factor = next(image for image in after.values() if isinstance(image, torch.Tensor)).shape[-1] // width
    side = max(1, MAX_SIDE // factor)
    top, left = (max(0, (length - side) // 2) for length in (height, width))

    def cut(image: torch.Tensor, scale: int) -> Thumbnail:
        crop = image[:, top * scale : (top + side) * scale, left * scale : (left + side) * scale]
        encoded = image_codec.encode(crop)
        return output_thumbnail(encoded.data, encoded.width, encoded.height, "png")

    panels = {name: image if isinstance(image, str) else cut(image, factor) for name, image in after.items()}
    size = f"{format_number(width * factor)} {TIMES} {format_number(height * factor)}"
    captions = [
        (MEASURES[name].title.split(",")[0], MEASURES[name].format(value))
        for name, value in scores.items()
        if value is not None
    ]
    crop = f"the middle of {size} pixels" if max(height, width) > side else ""
    return Example(record_id, [("before", cut(before, 1)), *panels.items()], captions, crop)


def write_enhancement(
    page: StoragePath, summary: Mapping[str, Any], groups: Sequence[Group], failed: Mapping[str, Sequence[str]]
) -> None:
    """Write the page from the content of ``summary.json``; ``failed`` has ids of some failed records by reason."""
    page.write(
        render(
            "enhance.html.j2",
            summary=summary,
            levels=" then ".join(f"{step['level']:g}" for step in summary["passes"]),
            groups=groups,
            measures=[
                (MEASURES[name], figures["n"], _method_rows(MEASURES[name], figures))
                for name, figures in summary["figures"].items()
            ],
            failed=failed,
            reasons={**REASONS, **REFERENCE_REASONS},
            settings=_describe_run(summary),
        )
    )


def _method_rows(measure: Measure, figures: Mapping[str, Any]) -> list[MethodRow]:
    methods = {name: figure for name, figure in figures.items() if name != "n"}
    gains = [x for figure in methods.values() for x in figure.get("gain", {}).values() if x is not None]
    widest = max(map(abs, gains), default=0.0) or 1.0
    return [_method_row(measure, name, figure, widest) for name, figure in methods.items()]


def _method_row(measure: Measure, method: str, figure: Mapping[str, Any], widest: float) -> MethodRow:
    name, mean = "Lanczos" if method == "lanczos" else method, figure["mean"]
    own = (name, measure.format(mean["value"]), measure.format_interval(mean["low"], mean["high"]))
    if "gain" not in figure:
        return MethodRow(*own)
    value, low, high = (figure["gain"][side] for side in ("value", "low", "high"))
    gain = (measure.format(value, "+"), measure.format_interval(low, high, "+"))
    if low is None:
        return MethodRow(*own, *gain, "one picture says nothing about others")
    verdict = "better" if low > 0 else "worse" if high < 0 else "no clear difference"
    return MethodRow(*own, *gain, verdict, [round(100 + 95 * x / widest, 1) for x in (low, value, high)])


def _describe_run(summary: Mapping[str, Any]) -> list[Setting]:
    passes = [
        Setting(
            f"Pass {number}" if len(summary["passes"]) > 1 else "Boomerang",
            f"level {step['level']:g}",
            f"t_boom {format_number(step['t_boom'])} of {format_number(step['T'])}, "
            f"log-SNR {format_signed(step['log_snr'])} there",
        )
        for number, step in enumerate(summary["passes"], 1)
    ]
    sampler = f"{summary['sampler']}, {format_number(summary['steps'])} steps"
    return [
        Setting("Factor", f"{summary['factor']}", "how many times as long a side became"),
        Setting("Upsampling", summary["upsampling"], "before the first pass"),
        *passes,
        Setting("Sampler", sampler, "network calls for each picture or tile"),
        Setting("Model", summary["model"], f"SHA-256 {summary['model_digest'][:12]}…"),
        Setting("Seed", f"{summary['seed']}", "the same seed and picture give the same result"),
        *([Setting("LPIPS", summary["lpips"], "the model that made the score")] if "lpips" in summary else []),
    ]
