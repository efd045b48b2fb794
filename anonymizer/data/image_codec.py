"""Decode image files to float32 tensors in [-1, 1] and encode tensors to files that hold pixels only.

No tensor takes anything but pixels from a file, and no file takes anything but a tensor: orientation, colour profile
and transparency are applied when decoding, and every output is freshly encoded. Any defect of the bytes is raised as a
``RecordError`` with a typed reason; sizes are bounded by the header, before a pixel is decoded.
"""

from __future__ import annotations

import io
import math
import re
import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from anonymizer.config import Limits
from anonymizer.data.colour import resize_to_srgb, to_resizable_mode
from anonymizer.data.geometry import content_box, tiled_sides
from anonymizer.data.metadata import count_gif_frames
from anonymizer.data.pillow_warnings import suppress_pillow_warnings
from anonymizer.errors import RecordError
from anonymizer.records import Reason

Fit = Literal["crop", "pad", "tiles"]
Encoding = Literal["png", "jpeg", "webp"]

SUFFIXES: dict[str, str] = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
MEDIA_TYPES: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
LIMITS = Limits.model_validate({})
MAX_SIDE: dict[str, int] = {"png": 2**31 - 1, "jpeg": 65_500, "webp": 16_383}

# Raster formats: the signature of a file, and its reader. Readers are called directly rather than through Image.open,
# which would bring in formats that are programs (EPS) or documents (PDF), and a process-wide pixel limit that warns.
# Of a JPEG with several images (MPO), the first one is read.
FORMATS: dict[str, tuple[bytes, Any]] = {
    "PNG": (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    "JPEG": (rb"\xff\xd8\xff", JpegImageFile),
    "WEBP": (rb"RIFF....WEBP", WebPImageFile),
    "GIF": (rb"GIF8[79]a", GifImageFile),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", TiffImageFile),
    "AVIF": (rb"....ftyp(avif|avis|mif1)", AvifImageFile),
    "BMP": (rb"BM", BmpImageFile),
    "PPM": (rb"P[1-6][ \t\r\n#]", PpmImageFile),
}
WEAK_SIGNATURES = ("BMP", "PPM")  # so short that other files begin with them too

# Pillow's messages about a sound file with pixels of an unknown kind.
UNSUPPORTED_MODE = re.compile("unknown pixel mode|cannot handle |Unsupported BMP (pixel|bit|c)")


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image, fitted to the model.

    ``tensor``: (3, size, size) float32 in [-1, 1], or with other sides under "tiles". ``width``, ``height``: pixels of
    the part of the original that the tensor covers, after orientation: its centred square under "crop", else all of
    it. Together with the tensor's size they suffice to undo the fit.
    """

    tensor: torch.Tensor
    width: int
    height: int


@dataclass(frozen=True)
class EncodedImage:
    """A freshly encoded image; ``width`` and ``height`` in pixels."""

    data: bytes
    width: int
    height: int


def decode(data: bytes, size: int, fit: Fit = "crop", limits: Limits = LIMITS, multiple: int = 1) -> DecodedImage:
    """Return the first frame of an encoded image as sRGB, upright, opaque (on white), at ``size`` x ``size``.

    "crop" scales to cover and keeps the centre; "pad" scales to fit and repeats the edges; "tiles" keeps the image's
    own sides, each rounded to a ``multiple``, or scales it to cover if it is smaller. Lanczos, antialiased.
    Raises RecordError: EMPTY, NOT_AN_IMAGE, TRUNCATED, TOO_MANY_BYTES, TOO_MANY_PIXELS, TOO_MANY_FRAMES or
    UNSUPPORTED_MODE. Safe to call from several threads.
    """
    if not data:
        raise RecordError(Reason.EMPTY)
    if len(data) > limits.max_bytes:
        raise RecordError(Reason.TOO_MANY_BYTES)
    name = next((name for name, (start, _) in FORMATS.items() if re.match(start, data[:16], re.DOTALL)), None)
    if name is None:
        raise RecordError(Reason.NOT_AN_IMAGE)
    reason = Reason.NOT_AN_IMAGE if name in WEAK_SIGNATURES else Reason.TRUNCATED
    with suppress_pillow_warnings():
        try:
            image = _open(name, data, limits)
            reason = Reason.TRUNCATED
            return _to_tensor(image, size, fit, limits, multiple)
        except RecordError:
            raise
        except (Image.DecompressionBombError, MemoryError):
            raise RecordError(Reason.TOO_MANY_PIXELS) from None
        except Exception as error:  # a decoder raises anything at all on hostile bytes
            is_unsupported = UNSUPPORTED_MODE.match(str(error))
            raise RecordError(Reason.UNSUPPORTED_MODE if is_unsupported else reason) from None


def encode(
    tensor: torch.Tensor,
    shape: tuple[int, int] | None = None,
    encoding: Encoding = "png",
    quality: int = 95,
    size: Literal["model", "original"] = "model",
    fit: Fit = "pad",
) -> EncodedImage:
    """Return a (3, H, W) tensor in [-1, 1] as a file of pixels and nothing else; the same tensor gives the same bytes.

    ``size="original"`` takes ``shape``, the (width, height) of the ``DecodedImage``: padding is cut off (under "tiles"
    there is none) and the rest resized to it. Raises RecordError: NOT_FINITE, or TOO_MANY_PIXELS when the format cannot
    hold the shape.
    """
    if tensor.ndim != 3 or tensor.shape[0] != 3:
        raise ValueError(f"tensor must be (3, H, W), got {tuple(tensor.shape)}: pass one picture")
    pixels = tensor.detach().to("cpu", torch.float32).numpy()  # torch's threads would wait for each other from here on
    if not np.isfinite(pixels).all():
        raise RecordError(Reason.NOT_FINITE)
    levels = ((pixels.clip(-1, 1) + 1) * np.float32(127.5)).round().astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels.transpose(1, 2, 0)))  # (H, W, 3)
    if size == "model":
        shape = image.size
    elif shape is None:
        raise ValueError("size 'original' needs the picture's shape: pass (width, height)")
    if max(shape) > MAX_SIDE[encoding]:
        raise RecordError(Reason.TOO_MANY_PIXELS)
    if size == "original":
        left, top, width, height = (0, 0, *image.size) if fit == "tiles" else content_box(*shape, image.size[0])
        image = image.resize(shape, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))
    file = io.BytesIO()
    if encoding == "png":
        image.save(file, "PNG", compress_level=6)
    elif encoding == "jpeg":
        image.save(file, "JPEG", quality=quality, subsampling=0, optimize=False)
    else:
        image.save(file, "WEBP", quality=quality, method=4)
    return EncodedImage(file.getvalue(), *image.size)


def _open(name: str, data: bytes, limits: Limits) -> Any:
    """Return an image that is opened but not decoded, within the limits as far as its header tells."""
    if name == "WEBP":  # its reader allocates the whole canvas at once
        _check_pixels(_webp_size(data), limits)
    image = FORMATS[name][1](io.BytesIO(data))
    _check_pixels(image.size, limits)
    if name == "GIF":
        frames = count_gif_frames(data, limits.max_frames + 1)
    elif name == "TIFF":
        frames = _count_tiff_pages(image, limits.max_frames + 1)
    else:
        frames = getattr(image, "n_frames", 1)
    if frames > limits.max_frames:
        raise RecordError(Reason.TOO_MANY_FRAMES)
    return image


def _check_pixels(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise RecordError(Reason.TOO_MANY_PIXELS)
    if width < 1 or height < 1:
        raise RecordError(Reason.TRUNCATED)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of the canvas from the file's first chunk."""
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
    """Return 1 page, or ``limit`` if a TIFF has as many or more."""
    try:
        image.seek(limit - 1)
    except EOFError:
        return 1
    finally:
        image.seek(0)
    return limit


def _to_tensor(image: Any, size: int, fit: Fit, limits: Limits, multiple: int) -> DecodedImage:
    """Decode and resize, then convert colour and orientation, which cost little on the small image."""
    raw_width, raw_height = image.size
    longest, shortest = max(raw_width, raw_height), min(raw_width, raw_height)
    scale = 1.0
    if image.format == "JPEG" and fit != "tiles":
        # Decode at 1/2, 1/4 or 1/8 as long as twice the wanted size remains for Lanczos.
        share = 2 * size / (shortest if fit == "crop" else longest)
        drafted = image.draft(None, (math.ceil(raw_width * share), math.ceil(raw_height * share)))
        if drafted is not None:
            scale = raw_width / drafted[1][2]
    image.load()
    orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow turns a TIFF as it loads it
    box: tuple[float, ...] = (0, 0, raw_width, raw_height)
    if fit == "crop":
        left, top = (raw_width - shortest) / 2, (raw_height - shortest) / 2
        box, target = (left, top, left + shortest, top + shortest), (size, size)
    elif fit == "pad":
        target = content_box(raw_width, raw_height, size)[2:]
    else:
        target = tiled_sides(image.size, size, multiple)
        _check_pixels(target, limits)  # a narrow image is enlarged to a tile's side
    box = tuple(edge / scale for edge in box)

    pixels = resize_to_srgb(to_resizable_mode(image), target, box, image.info.get("icc_profile"))  # (h, w, 3), 0 to 255
    pixels = _turn_upright(pixels, orientation)
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
    """Return the EXIF orientation, 1 to 8; 1 if it is missing, broken or out of range."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # a broken EXIF block tells nothing about the pixels
        return 1
    return value if value in range(1, 9) else 1


def _turn_upright(pixels: Any, orientation: int) -> Any:
    """Return (h, w, 3) pixels turned to EXIF orientation 1."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    flips_rows, flips_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1]
