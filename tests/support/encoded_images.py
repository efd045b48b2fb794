"""Encoded images for tests of the codec: smooth ones, and ones full of metadata."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """A smooth picture: a ramp in each channel."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)).convert(mode)


def leaky(kind: str) -> bytes:
    """A picture with EXIF (GPS, a time, a name), XMP, a profile, a comment and text."""
    exif = Image.Exif()
    exif[0x013B] = "Jane Doe"
    exif[0x0132] = "2024:05:06 07:08:09"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    options: dict[str, object] = {"exif": exif, "xmp": b"<x:xmpmeta/>"}
    options["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_text("Author", "Jane Doe")
        text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
        options = {**options, "pnginfo": text}
        options.pop("xmp")
    if kind == "JPEG":
        options["comment"] = b"Jane Doe at home"
    return saved(photo(), kind, **options)
