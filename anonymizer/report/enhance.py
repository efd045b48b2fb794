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
        """Return a value with its digits, or a dash for None; ``sign`` as in format specifications."""
        return "\N{EN DASH}" if value is None else f"{value:{sign}.{self.digits}f}".replace("-", MINUS)


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
            measures=[(MEASURES[name], figures, _gain_scale(figures)) for name, figures in summary["figures"].items()],
            failed=failed,
            reasons={**REASONS, **REFERENCE_REASONS},
            settings=_describe_run(summary),
        )
    )


def _gain_scale(figures: Mapping[str, Any]) -> float:
    """Return the factor by which the gains of all methods, with their intervals, fit into -95 to 95."""
    gains = (figure.get("gain", {}) for name, figure in figures.items() if name != "n")
    values = [abs(value) for gain in gains for value in gain.values() if value is not None]
    return 95 / (max(values, default=0.0) or 1.0)


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
