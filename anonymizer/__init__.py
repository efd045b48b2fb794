"""Release image datasets without releasing the people in them.

The public surface, for scripts and notebooks; each name is loaded when it is first used:

    import anonymizer

    config = anonymizer.RunConfig.model_validate({"source": {"uri": "photos"}, "output": {"uri": "release"}})
    anonymizer.release(config)
    opened = anonymizer.open_release("release")
    opened.manifest, opened.ledger, opened.figures   # pandas DataFrames

Any other module is private: it may change without notice.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anonymizer.backbones import load_backbone as load_backbone
    from anonymizer.boomerang import Boomerang as Boomerang
    from anonymizer.config import RunConfig as RunConfig
    from anonymizer.noise import KeyedNoise as KeyedNoise
    from anonymizer.release.opened import OpenedRelease as OpenedRelease
    from anonymizer.release.opened import open_release as open_release
    from flows.api import audit as audit
    from flows.api import augment as augment
    from flows.api import enhance as enhance
    from flows.api import plan as plan
    from flows.api import release as release
    from flows.api import verify as verify

_MODULES = {
    "Boomerang": "anonymizer.boomerang",
    "KeyedNoise": "anonymizer.noise",
    "OpenedRelease": "anonymizer.release.opened",
    "RunConfig": "anonymizer.config",
    "load_backbone": "anonymizer.backbones",
    "open_release": "anonymizer.release.opened",
    **dict.fromkeys(("audit", "augment", "enhance", "plan", "release", "verify"), "flows.api"),
}
__all__ = [
    "Boomerang", "KeyedNoise", "OpenedRelease", "RunConfig", "audit", "augment", "enhance", "load_backbone",
    "open_release", "plan", "release", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'anonymizer' has no public name {name!r}: see anonymizer.__all__")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _PublicSurface(ModuleType):
    """Keep public functions whose names are also those of rooms: importing a room binds no attribute over them."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _PublicSurface
