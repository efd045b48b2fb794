"""Bytes to float32 tensors in [-1, 1] and back: the only codec of the package, and the place where metadata dies.

Nothing of the file but its pixels gets into a tensor, and nothing but a tensor gets into a file: orientation, colour
profile and transparency are applied on the way in, and every output is freshly encoded. Whatever is wrong with the
bytes ends as a ``RecordError`` with a typed reason; sizes are bounded from the header, before a pixel is decoded.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from anonymizer.config import Limits
from anonymizer.data.colour import resize_to_srgb, to_resizable_mode
from anonymizer.data.geometry import content_box, tiled_sides
from anonymizer.data.metadata import count_gif_frames, find_metadata
from anonymizer.data.pillow_warnings import suppress_pillow_warnings
from anonymizer.errors import RecordError
from anonymizer.records import Reason

__all__ = ["FORMATS", "MEDIA_TYPES", "SUFFIXES", "DecodedImage", "EncodedImage", "decode", "encode", "find_metadata"]

Fit = Literal["crop", "pad", "tiles"]
Encoding = Literal["png", "jpeg", "webp"]

SUFFIXES: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
MEDIA_TYPES: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
LIMITS = Limits.model_validate({})
MAX_SIDE: dict[str, int] = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}


@dataclass(frozen=True)
class Format:
    """A raster format that is opened: how its bytes begin, who reads it, and whether that beginning is telling."""

    matches: Callable[[bytes], bool]
    reader: Callable[[io.BytesIO], ImageFile.ImageFile]
    is_distinctive: bool = True


# Readers are called directly rather than through Image.open: that would bring in formats that are programs (EPS) or
# documents (PDF), and a process-wide pixel limit that warns. A JPEG with more pictures (MPO) gives its first one.
FORMATS: dict[str, Format] = {
    "PNG": Format(lambda b: b.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    "JPEG": Format(lambda b: b.startswith(b"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    "WEBP": Format(lambda b: b.startswith(b"RIFF") and b[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    "GIF": Format(lambda b: b.startswith((b"GIF87a", b"GIF89a")), GifImagePlugin.GifImageFile),
    "TIFF": Format(lambda b: b.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")), TiffImagePlugin.TiffImageFile),
    "AVIF": Format(
        lambda b: b[4:8] == b"ftyp" and b[8:12] in (b"avif", b"avis", b"mif1"), AvifImagePlugin.AvifImageFile
    ),
    "BMP": Format(lambda b: b.startswith(b"BM"), BmpImagePlugin.BmpImageFile, is_distinctive=False),
    "PPM": Format(
        lambda b: b[:1] == b"P" and b[1:2] in b"123456" and b[2:3] in b" \t\r\n#",
        PpmImagePlugin.PpmImageFile,
        is_distinctive=False,
    ),
}


# How Pillow says that a sound file has pixels that it does not know.
UNSUPPORTED_MESSAGES = (
    "unknown pixel mode",
    "cannot handle ",
    "Unsupported BMP pixel",
    "Unsupported BMP bit",
    "Unsupported BMP c",
)


@dataclass(frozen=True)
class DecodedImage:
    """A decoded picture, brought to the model's shape.

    ``tensor``: (3, size, size) float32 in [-1, 1], or of other sides under "tiles". ``width``, ``height``: pixels of
    the part of the original that the tensor shows, after orientation; the centred square of it under "crop", all of it
    otherwise. With the tensor's size they are all that is needed to undo the fit.
    """

    tensor: torch.Tensor
    width: int
    height: int


@dataclass(frozen=True)
class EncodedImage:
    """A freshly encoded picture; ``width`` and ``height`` in pixels."""

    data: bytes
    width: int
    height: int


def decode(data: bytes, size: int, fit: Fit = "crop", limits: Limits = LIMITS, multiple: int = 1) -> DecodedImage:
    """The first frame of an encoded picture as sRGB, upright, opaque (on white), at ``size`` x ``size``.

    "crop" scales to cover and keeps the centre; "pad" scales to fit and repeats the edges; "tiles" keeps the picture's
    own sides, each rounded to a ``multiple``, or scales it to cover if it is smaller. Lanczos, antialiased.
    Raises RecordError: EMPTY, NOT_AN_IMAGE, TRUNCATED, TOO_MANY_BYTES, TOO_MANY_PIXELS, TOO_MANY_FRAMES or
    UNSUPPORTED_MODE. Safe to call from several threads.
    """
    if not data:
        raise RecordError(Reason.EMPTY)
    if len(data) > limits.max_bytes:
        raise RecordError(Reason.TOO_MANY_BYTES)
    name = next((name for name, known in FORMATS.items() if known.matches(data[:16])), None)
    if name is None:
        raise RecordError(Reason.NOT_AN_IMAGE)
    with suppress_pillow_warnings():
        try:
            image = _open(name, data, limits)
        except Exception as error:  # hostile bytes raise anything at all in a decoder; it is the record that is bad
            raise _to_record_error(
                error, Reason.TRUNCATED if FORMATS[name].is_distinctive else Reason.NOT_AN_IMAGE
            ) from None
        try:
            return _to_tensor(image, size, fit, limits, multiple)
        except Exception as error:  # as above
            raise _to_record_error(error, Reason.TRUNCATED) from None


def encode(
    tensor: torch.Tensor,
    shape: tuple[int, int] | None = None,
    encoding: Encoding = "png",
    quality: int = 95,
    size: Literal["model", "original"] = "model",
    fit: Fit = "pad",
) -> EncodedImage:
    """A (3, H, W) tensor in [-1, 1] as a file with pixels and nothing else; the same tensor gives the same bytes.

    ``size="original"`` takes ``shape``, the (width, height) of the ``Picture``: padding is cut off (under "tiles" there
    is none) and the rest resized to it. Raises RecordError: NOT_FINITE, or TOO_MANY_PIXELS when the format cannot hold
    the shape.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"tensor must be (3, H, W), got {tuple(tensor.shape)}: pass one picture")
    pixels = (
        tensor.detach().to("cpu", torch.float32).numpy()
    )  # from here without torch, whose threads wait for each other
    if not np.isfinite(pixels).all():
        raise RecordError(Reason.NOT_FINITE)
    levels = ((pixels.clip(-1, 1) + 1) * np.float32(127.5)).round().astype(np.uint8)
    out = Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))  # (H, W, 3)
    if size == "original":
        if shape is None:
            raise ValueError("size 'original' needs the picture's shape: pass (width, height)")
        if max(shape) > MAX_SIDE[encoding]:
            raise RecordError(Reason.TOO_MANY_PIXELS)
        left, top, width, height = (0, 0, *out.size) if fit == "tiles" else content_box(*shape, out.size[0])
        out = out.resize(shape, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    file = io.BytesIO()
    if encoding == "png":
        out.save(file, "PNG", compress_level=6)
    elif encoding == "jpeg":
        out.save(file, "JPEG", quality=quality, subsampling=0, optimize=False)
    else:
        out.save(file, "WEBP", quality=quality, method=4)
    return EncodedImage(file.getvalue(), *out.size)


def _to_record_error(error: Exception, default: Reason) -> RecordError:
    if isinstance(error, RecordError):
        return error
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return RecordError(Reason.TOO_MANY_PIXELS)
    return RecordError(Reason.UNSUPPORTED_MODE if str(error).startswith(UNSUPPORTED_MESSAGES) else default)


def _open(name: str, data: bytes, limits: Limits) -> Any:
    """An opened but not yet decoded image, within the limits as far as its header goes."""
    if name == "WEBP":  # its reader takes memory for the whole canvas as soon as it is made
        _check_pixels(*_webp_size(data), limits)
    image = FORMATS[name].reader(io.BytesIO(data))
    _check_pixels(*image.size, limits)
    if name == "GIF":
        frames = count_gif_frames(data, limits.max_frames + 1)
    elif name == "TIFF":
        frames = _count_tiff_pages(image, limits.max_frames + 1)
    else:
        frames = getattr(image, "n_frames", 1)
    if frames > limits.max_frames:
        raise RecordError(Reason.TOO_MANY_FRAMES)
    return image


def _check_pixels(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.max_pixels:
        raise RecordError(Reason.TOO_MANY_PIXELS)
    if width < 1 or height < 1:
        raise RecordError(Reason.TRUNCATED)


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise RecordError(Reason.TRUNCATED)


def _count_tiff_pages(image: Any, limit: int) -> int:
    """Pages of a TIFF, counted up to ``most``."""
    try:
        image.seek(limit - 1)
    except EOFError:
        return 1
    finally:
        image.seek(0)
    return limit


def _to_tensor(image: Any, size: int, fit: Fit, limits: Limits, multiple: int) -> DecodedImage:
    """Decode, resize, then colour and orientation, which cost little on the small picture that is left."""
    raw_width, raw_height = image.size
    longest, shortest = max(raw_width, raw_height), min(raw_width, raw_height)
    scale = 1.0
    if image.format == "JPEG" and fit != "tiles":
        # Decode at 1/2, 1/4 or 1/8 as long as twice the wanted size is left for Lanczos.
        share = 2 * size / (shortest if fit == "crop" else longest)
        drafted = image.draft(None, (math.ceil(raw_width * share), math.ceil(raw_height * share)))
        if drafted is not None:
            scale = raw_width / drafted[1][2]
    image.load()
    orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow turns a TIFF as it loads it
    if fit == "crop":
        left, top = (raw_width - shortest) / 2, (raw_height - shortest) / 2
        box = (left, top, left + shortest, top + shortest)
        target = (size, size)
    elif fit == "pad":
        box = (0, 0, raw_width, raw_height)
        target = content_box(raw_width, raw_height, size)[2:]
    else:
        box = (0, 0, raw_width, raw_height)
        target = tiled_sides(image.size, size, multiple)
        _check_pixels(*target, limits)  # a narrow picture is enlarged to a tile's side
    box = tuple(edge / scale for edge in box)

    pixels = resize_to_srgb(to_resizable_mode(image), target, box, image.info.get("icc_profile"))  # (h, w, 3), 0 to 255
    pixels = _UPRIGHT[orientation](pixels)
    width, height = (raw_height, raw_width) if orientation >= 5 else (raw_width, raw_height)
    if fit == "crop":
        width = height = shortest
    elif fit == "pad":
        left, top, inner_width, inner_height = content_box(width, height, size)
        sides = ((top, size - top - inner_height), (left, size - left - inner_width), (0, 0))
        pixels = np.pad(pixels, sides, mode="edge")
    scaled = pixels.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(127.5) - np.float32(1)  # (3, H, W)
    return DecodedImage(torch.from_numpy(scaled), width, height)


def _orientation(image: Any) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1
    return value if value in _UPRIGHT else 1


_UPRIGHT: dict[int, Callable[[Any], Any]] = {  # EXIF orientation -> what turns the stored pixels upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
