"""What columns, scores, reasons and settings mean, said once for reports, card and tests."""

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
    Reason.UNREADABLE: "Listed, but the bytes could not be had.",
    Reason.CHANGED: "Not what was there when the run was planned.",
    Reason.OUTSIDE_SOURCE: "A link or path that leaves the source.",
    Reason.DUPLICATE_ID: "A second record of the same id.",
    Reason.BAD_METADATA: "A label, caption or column that cannot be read.",
    Reason.NO_CONDITION: "The class or prompt that the model should be told is missing, or unknown to it.",
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
    """What made the pictures: nothing of the source, the output's place or the key.

    ``sizes`` are of the pictures; ``levels`` count those that were released at each level.
    """
    others = {level: count for level, count in sorted(levels.items()) if level != plan.level}
    encoding = config.output.image.upper() + ("" if config.output.image == "png" else f" at {config.output.quality}")
    fits = {"crop": "its centred square was taken", "pad": "it was padded to a square, and the padding cut off again"}
    if config.output.size == "model":
        fits["pad"] = "it was padded to a square"
    fits["tiles"] = "it was worked on in overlapping tiles of the model's size"
    ways = {"crop": "cropped", "pad": "padded", "tiles": "kept"}
    facts = [
        Setting("Level", f"{plan.level:g}", "share of the noise schedule that was run; at 1 next to nothing is left"),
        *_other_levels(others),
        Setting(
            "Step", f"{format_number(plan.t_boom)} of {format_number(plan.T)}", "where the level starts: t_boom of T"
        ),
        Setting(
            "Log-SNR",
            f"{plan.log_snr:+.2f}".replace("-", MINUS),
            f"at that step: signal to noise {math.exp(plan.log_snr):.2g} to 1",
        ),
        *_describe_condition(config.model),
        Setting("Sampler", f"{plan.sampler}, {format_number(plan.steps)} steps", "network calls for each picture"),
        Setting("Model", model, f"SHA-256 {plan.model_digest[:12]}…"),
        *(
            Setting(SCORES[name].title if name in SCORES else name, made_by, "the model that made the score")
            for name, made_by in score_models.items()
        ),
        Setting(
            "Pictures",
            f"{image_size}, {encoding}" if image_size else encoding,
            "freshly encoded from pixels, with nothing else",
        ),
        Setting("Other shapes", ways[config.source.fit], fits[config.source.fit]),
        Setting("Settings", f"{plan.fingerprint[:12]}…", "fingerprint of all that changes pixels"),
    ]
    return facts


def _describe_condition(model: ModelConfig) -> Iterator[Setting]:
    """What the model knew of each picture besides its pixels; not in which words."""
    if model.condition == "label":
        yield Setting("Told", "its label", "the model was told the class of each picture")
    elif model.prompt_fields:
        yield Setting("Told", "a prompt of its own", "what that says of a picture was drawn into it")
    elif model.prompt:
        yield Setting("Told", "a prompt", "the same for all pictures")


def _other_levels(levels: Mapping[float, int]) -> Iterator[Setting]:
    if levels:
        said = ", ".join(f"{format_number(count)} at {level:g}" for level, count in levels.items())
        yield Setting("Other levels", said, "drawn again because a weaker level came too close, or kept from before")


def describe_sizes(pictures: TableLike) -> str:
    """The size of pictures in words, from a table with ``width`` and ``height``."""
    (low, high), (least, most) = (pc.min_max(pictures[name]).as_py().values() for name in ("width", "height"))
    if low is None:
        return ""
    return (
        f"{low} {TIMES} {least}" if (low, least) == (high, most) else f"{low} {TIMES} {least} to {high} {TIMES} {most}"
    )


def format_date(when: date) -> str:
    return f"{when.day} {when:%B %Y}"


def format_number(value: float) -> str:
    return f"{value:,}"
