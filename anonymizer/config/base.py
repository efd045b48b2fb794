"""What all sections of a configuration are made of: strict, frozen, and silent about passwords."""

from __future__ import annotations

import re
from functools import reduce
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

Attack = Literal["linkage", "reidentification", "parrot", "averaging", "inversion", "membership", "attributes", "leaks"]

KEY_ENV_MESSAGE = "must be the name of an environment variable: put the key into that variable, not here"


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# A user name with a password after it, and not a host with a port. Two protocols write ORG:REPO@VERSION there.
CREDENTIALS_PATTERN = re.compile(r"(?<!\bgithub)(?<!\bgit)://[^/:@]*:(?!\d+(?:/|$))[^@]*@")


def _address(value: str) -> str:
    if CREDENTIALS_PATTERN.search(value):  # neither repeated here nor stored with the run
        raise ValueError(
            "holds a password, which would be stored with the run: leave it out of the address, and give it in the "
            "environment or in fsspec's own config file (~/.config/fsspec/)"
        )
    if not value.strip() or "\0" in value:
        raise ValueError(f"must name a folder, file or prefix, got {value!r}")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # which Python would take for 0 or 1
        raise ValueError(f"must be a number, got {str(value).lower()}")
    return value


def _kind(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError(f"must say in a few words what is on the pictures, got {value!r}")
    return value.strip()


Uri = Annotated[str, AfterValidator(_address)]
PictureKind = Annotated[str, AfterValidator(_kind)]
Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]


def safe_repr(value: Any) -> str:
    """A value as it may be repeated: short, and not if it holds a password."""
    if CREDENTIALS_PATTERN.search(text := "nothing" if value is None else repr(value)):
        return "an address with a password"
    return text if len(text) <= 80 else text[:77] + "..."


def get_setting(config: BaseModel, name: str) -> Any:
    """The value of ``section.key``."""
    return reduce(getattr, name.split("."), config)
