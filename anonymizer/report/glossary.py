"""Meaning of scores, reasons and settings in words, for reports and the dataset card."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date

import pyarrow.compute as pc

from anonymizer.config import ModelConfig, RunConfig
from anonymizer.records import Plan, Reason
from anonymizer.storage.parquet import TableLike

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"
PASSTHROUGH_COLUMN = "Copied from the source unchanged, because the publisher named it."

REASONS: Mapping[str, str] = {
    Reason.EMPTY: "There are no bytes.",
    Reason.NOT_AN_IMAGE: "No decoder knows these bytes.",
    Reason.TRUNCATED: "The picture ends early or is damaged.",
    Reason.TOO_MANY_BYTES: "Larger than source.limits.max_bytes.",
    Reason.TOO_MANY_PIXELS: "Larger than source.limits.max_pixels, or than the output format can hold.",
    Reason.TOO_MANY_FRAMES: "More frames than source.limits.max_frames.",
    Reason.UNSUPPORTED_MODE: "Pixels whose meaning would have to be guessed.",
    Reason.UNREADABLE: "Listed, but the bytes could not be read.",
    Reason.CHANGED: "Not what was there when the run was planned.",
    Reason.OUTSIDE_SOURCE: "A link or path that leaves the source.",
    Reason.DUPLICATE_ID: "A second record of the same id.",
    Reason.BAD_METADATA: "A label, caption or column that cannot be read.",
    Reason.NO_CONDITION: "The class or prompt for the model is missing, or unknown to it.",
    Reason.NOT_FINITE: "The model returned no usable picture.",
    Reason.OUT_OF_MEMORY: "Larger than what the model's device has room for, even alone.",
    Reason.NOT_SCORED: "A score that the run asks for is missing; the output was held back.",
    Reason.UNSAFE: "The model's own safety checker objects to the output; it was held back.",
    Reason.NO_FACE: "The policy asks about faces, and none was detected; the output was held back.",
    Reason.TOO_CLOSE: "Nearer to its original than the policy allows; the output was held back.",
    Reason.TOO_FAR: "Further from its original than the policy allows; the output was held back.",
    Reason.UNCLASSIFIED: "It has a column that the configuration neither carries, drops nor restricts.",
    Reason.WITHDRAWN: "Erased from an earlier release.",
}


@dataclass(frozen=True)
class Score:
    """How a score is read."""

    title: str
    short: str
    higher_is_closer: bool
    about: str

    @property
    def closest(self) -> str:
        return "highest" if self.higher_is_closer else "lowest"


SCORES: Mapping[str, Score] = {
    "clip_similarity": Score("CLIP similarity", "CLIP", True, "likeness of content: 1 is the same; higher is closer"),
    "lpips": Score("LPIPS distance", "LPIPS", False, "difference to the eye: 0 is the same; lower is closer"),
    "identity_distance": Score("Identity distance", "Identity", False, "between faces: 0 is the same; lower is closer"),
}


@dataclass(frozen=True)
class Setting:
    """One line of a list of settings."""

    name: str
    value: str
    note: str = ""


def describe_settings(
    plan: Plan,
    config: RunConfig,
    model: str,
    score_models: Mapping[str, str],
    image_size: str,
    levels: Mapping[float, int],
) -> list[Setting]:
    """Return how the images were made: nothing about the source, the output's place or the key.

    ``levels`` counts the released images at each level.
    """
    image, source = config.output, config.source
    encoding = image.image.upper() + ("" if image.image == "png" else f" at {image.quality}")
    padding = "it was padded to a square" + ("" if image.size == "model" else ", and the padding cut off again")
    fit, fit_note = {
        "crop": ("cropped", "its centred square was taken"),
        "pad": ("padded", padding),
        "tiles": ("kept", "it was worked on in overlapping tiles of the model's size"),
    }[source.fit]
    others = [f"{format_number(n)} at {level:g}" for level, n in sorted(levels.items()) if level != plan.level]
    others_note = "drawn again because a weaker level came too close, or kept from before"
    step, ratio = f"{format_number(plan.t_boom)} of {format_number(plan.T)}", f"{math.exp(plan.log_snr):.2g} to 1"
    return [
        Setting("Level", f"{plan.level:g}", "share of the noise schedule that was run; at 1 next to nothing is left"),
        *([Setting("Other levels", ", ".join(others), others_note)] if others else []),
        Setting("Step", step, "where the level starts: t_boom of T"),
        Setting("Log-SNR", format_signed(plan.log_snr), f"at that step: signal to noise {ratio}"),
        *_describe_condition(config.model),
        Setting("Sampler", f"{plan.sampler}, {format_number(plan.steps)} steps", "network calls for each picture"),
        Setting("Model", model, f"SHA-256 {plan.model_digest[:12]}…"),
        *(
            Setting(SCORES[name].title if name in SCORES else name, score_model, "the model that made the score")
            for name, score_model in score_models.items()
        ),
        Setting(
            "Pictures",
            f"{image_size}, {encoding}" if image_size else encoding,
            "freshly encoded from pixels, with nothing else",
        ),
        Setting("Other shapes", fit, fit_note),
        Setting("Settings", f"{plan.fingerprint[:12]}…", "fingerprint of all that changes pixels"),
    ]


def _describe_condition(model: ModelConfig) -> Iterator[Setting]:
    """Yield what the model knew of each image besides its pixels, without the words of a prompt."""
    if model.condition == "label":
        yield Setting("Condition", "its label", "the model was given the class of each picture")
    elif model.prompt_fields:
        yield Setting("Condition", "a prompt of its own", "what that says of a picture was drawn into it")
    elif model.prompt:
        yield Setting("Condition", "a prompt", "the same for all pictures")


def describe_sizes(images: TableLike) -> str:
    """Return the size, or the range of sizes, of images in a table with ``width`` and ``height``; "" for no images."""
    widths, heights = (pc.min_max(images[name]).as_py() for name in ("width", "height"))
    if widths["min"] is None:
        return ""
    smallest, largest = (f"{widths[end]} {TIMES} {heights[end]}" for end in ("min", "max"))
    return smallest if smallest == largest else f"{smallest} to {largest}"


def format_date(day: date) -> str:
    """Return a date as in ``3 May 2026``."""
    return f"{day.day} {day:%B %Y}"


def format_number(value: float) -> str:
    """Return a number with commas between thousands."""
    return f"{value:,}"


def format_signed(value: float) -> str:
    """Return a number with its sign and two digits."""
    return f"{value:+.2f}".replace("-", MINUS)
