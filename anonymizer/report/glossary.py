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

REASONS = {reason.value: reason.meaning for reason in Reason}


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
    """Return how the images were made: nothing about the source, the output's location or the key.

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
    others_note = "drawn again because a weaker level came too close, or reused from an earlier release"
    step, ratio = f"{format_number(plan.t_boom)} of {format_number(plan.T)}", f"{math.exp(plan.log_snr):.2g} to 1"
    return [
        *_describe_groups(config),
        Setting("Level", f"{plan.level:g}", "share of the noise schedule that was run; at 1 next to nothing is left"),
        *([Setting("Other levels", ", ".join(others), others_note)] if others else []),
        Setting("Step", step, "where the level starts: t_boom of T"),
        Setting("Log-SNR", format_signed(plan.log_snr), f"at that step: signal to noise {ratio}"),
        *_describe_condition(config.model),
        Setting("Sampler", f"{plan.sampler}, {format_number(plan.steps)} steps", "network calls for each picture"),
        *_describe_determinism(plan),
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


def _describe_determinism(plan: Plan) -> Iterator[Setting]:
    """Yield the reason given for a sampler that draws no noise on its way back."""
    if plan.accept_deterministic is not None:
        note = (
            "the sampler draws no noise on its way back: outputs are nearer to their originals than at this level else"
        )
        yield Setting("Accepted because", plan.accept_deterministic, note)


def _describe_groups(config: RunConfig) -> Iterator[Setting]:
    """Yield what each image is drawn from, where that is a group."""
    if config.boomerang.k > 1:
        columns, by_subject = ", ".join(config.groups.columns(config.source)), config.groups.by_subject(config.source)
        alike = f", equal in {columns}" if columns else ""
        yield Setting(
            "Groups",
            f"{config.boomerang.k} or more",
            f"originals of different {'people' if by_subject else 'records'}{alike}, whose mean is drawn from; "
            f"{'one picture' if config.groups.outputs == 'one' else 'a picture for each member'} of each group",
        )


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
