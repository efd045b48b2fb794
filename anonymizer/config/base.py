"""Base section and value types of all configurations: strict, frozen, and silent about passwords."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Attack = Literal[
    "linkage", "reidentification", "parrot", "averaging", "inversion", "membership", "attributes", "groups", "leaks"
]

CeilingName = Literal[
    "linkage_rank1", "linkage_rank5", "linkage_assigned", "knows_others", "membership_tpr_at_1", "membership_tpr_at_01",
    "membership_tpr_at_1_median", "membership_tpr_at_1_worst",
]  # fmt: skip

# Defaults of an audit, and of the least that a policy requires of one.
MATCHED_FILTER = "filter"  # compares by the level and the components of pictures of the kind, with no network
AUDIT_FEATURES = ("pixels", "lpips", "clip", "imagenet", "dlib", MATCHED_FILTER)
AUDIT_SAMPLE, AUDIT_PAIRS, AUDIT_OUTPUTS, AUDIT_AVERAGED = 300, 256, 8, 40

KEY_ENV_MESSAGE = "must be the name of an environment variable: put the key into that variable, not here"


class Section(BaseModel):
    """A part of a configuration; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# A user name with a password after it, and not a host with a port. Two protocols write ORG:REPO@VERSION there.
CREDENTIALS_PATTERN = re.compile(r"(?<!\bgithub)(?<!\bgit)://[^/:@]*:(?!\d+(?:/|$))[^@]*@")


def ensure(is_valid: Callable[[Any], object], message: str) -> AfterValidator:
    """Return a validator that raises ValueError unless ``is_valid(value)``.

    In the message, ``{}`` or ``{0}`` is the value, a tuple with commas; ``{1}`` is the value itself.
    """

    def check(value: Any) -> Any:
        if not is_valid(value):
            text = value
            if isinstance(value, tuple):
                text = ", ".join(x if isinstance(x, str) else f"{x:g}" for x in value) or "none"
            raise ValueError(message.format(text, value))
        return value

    return AfterValidator(check)


def _refuse_bool(value: Any) -> Any:
    if isinstance(value, bool):  # which Python takes for 0 or 1
        raise ValueError(f"must be a number, got {str(value).lower()}")
    return value


Uri = Annotated[
    str,
    ensure(
        lambda uri: not CREDENTIALS_PATTERN.search(uri),
        "holds a password, which would be stored with the run: leave it out of the address, and give it in the "
        "environment or in fsspec's own config file (~/.config/fsspec/)",
    ),
    ensure(lambda uri: uri.strip() and "\0" not in uri, "must name a folder, file or prefix, got {!r}"),
]
Int = Annotated[int, BeforeValidator(_refuse_bool)]
Float = Annotated[float, BeforeValidator(_refuse_bool)]
Sampler = Annotated[
    Literal["ddpm", "ddim", "dpm++", "sde-dpm++", "unipc", "lcm", "tcd"],
    Field(description="ddpm (the paper's), ddim, dpm++, sde-dpm++, unipc; of few-step models lcm, tcd"),
]
DETERMINISTIC_SAMPLERS = ("ddim", "dpm++", "unipc")  # draw no noise on the way back
Seed = Annotated[Int, Field(ge=0, lt=2**63)]
ImageFormat = Annotated[Literal["png", "jpeg", "webp"], Field(description="png, jpeg or webp")]
Quality = Annotated[Int, Field(ge=1, le=100, description="of jpeg and webp, 1 to 100")]


class ImageOutput(Section):
    """Where images that are no release go, and how they are encoded."""

    uri: Uri = Field(description="a new folder or prefix; any fsspec URI")
    image: ImageFormat = "png"
    quality: Quality = 95


def safe_repr(value: Any) -> str:
    """Return a short representation of a value for a message, without any password."""
    if CREDENTIALS_PATTERN.search(text := "nothing" if value is None else repr(value)):
        return "an address with a password"
    return text if len(text) <= 80 else text[:77] + "..."


def is_words(text: str) -> bool:
    """Return whether a text is one printable line that is not blank."""
    return bool(text.strip()) and text.isprintable()


def are_levels(values: tuple[float, ...]) -> bool:
    """Return whether all values are levels, in (0, 1]."""
    return all(0 < value <= 1 for value in values)


def get_setting(config: BaseModel, name: str) -> Any:
    """Return the value of the setting ``section.key``."""
    return reduce(getattr, name.split("."), config)
