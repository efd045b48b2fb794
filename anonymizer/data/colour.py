"""Convert pixels of any well-defined mode to opaque sRGB: palettes, inks, deep greys, transparency, profiles."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from anonymizer.errors import RecordError
from anonymizer.records import Reason


def to_resizable_mode(image: Any) -> Any:
    """Return the image in a mode that can be resized: L, RGB, CMYK, RGBa (transparent) or F (0 to 255)."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):
        levels = np.asarray(image).astype(np.float32)
        tags = image.tag_v2 if image.format == "TIFF" else {}
        white = 4095 if tags.get(258) == (12,) else 65535  # bits per sample
        grey = (white - levels if tags.get(262) == 0 else levels) * (255 / white)  # photometric 0: zero is white
        clear = image.info.get("transparency")
        return Image.fromarray(grey if not isinstance(clear, int) else np.where(levels == clear, 255, grey))
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if mode == "RGBa":
            return image
        if mode in ("1", "L", "RGB", "P", "PA", "LA", "La", "RGBA"):
            return image.convert("RGBA").convert("RGBa") if mode != "La" else to_resizable_mode(image.convert("LA"))
    if mode in ("L", "RGB", "CMYK"):
        return image
    if mode == "1":
        return image.convert("L")
    if mode in ("P", "RGBX", "YCbCr", "LAB"):
        return image.convert("RGB")
    raise RecordError(Reason.UNSUPPORTED_MODE)


def resize_to_srgb(image: Any, target: Any, box: Any, profile: bytes | None) -> Any:
    """Return the resized image on white in sRGB as an (h, w, 3) array of 0 to 255."""
    small = image.resize(target, Image.Resampling.LANCZOS, box=box)
    if small.mode == "RGBa":
        premultiplied = np.asarray(small).astype(np.int16)
        small = Image.fromarray(np.clip(premultiplied[..., :3] + 255 - premultiplied[..., 3:], 0, 255).astype(np.uint8))
    if profile and (converted := _apply_profile(small, profile)) is not None:
        return np.asarray(converted)
    if small.mode == "F":
        return np.repeat(np.clip(np.asarray(small), 0, 255)[..., None], 3, axis=2)
    return np.asarray(small.convert("RGB"))


def _apply_profile(image: Any, profile: bytes) -> Any:
    """Return the image in sRGB by its ICC profile; None if the profile is broken or not for such pixels."""
    try:
        is_cached = len(profile) < 2**22
        space, transform = _profile_transform(profile) if is_cached else _profile_transform.__wrapped__(profile)
        if space == "RGB" and image.mode in ("RGB", "L"):
            return transform.apply(image.convert("RGB"))
        if space == "GRAY" and image.mode in ("L", "F"):
            return transform.apply(Image.fromarray(np.asarray(image).clip(0, 255).round().astype(np.uint8)))
        return transform.apply(image) if space == "CMYK" and image.mode == "CMYK" else None
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@functools.lru_cache(maxsize=16)
def _profile_transform(profile: bytes) -> tuple[str, Any]:
    """Return a profile's colour space and its transform to sRGB; cached, since images of a dataset share profiles."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    intent, mode = ImageCms.Intent.RELATIVE_COLORIMETRIC, {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space)
    if mode is None:
        raise ValueError("a colour space of no supported mode")
    srgb = ImageCms.createProfile("sRGB")  # without a cache of pixels, one transform can serve several threads
    return space, ImageCms.buildTransform(source, srgb, mode, "RGB", intent, ImageCms.Flags.NOCACHE)
