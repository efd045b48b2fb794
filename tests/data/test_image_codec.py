"""Images of any mode are decoded to upright sRGB; every defect has a typed reason; outputs hold pixels only."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageDraw

from anonymizer.config import Limits
from anonymizer.data.geometry import content_box
from anonymizer.data.image_codec import MEDIA_TYPES, SUFFIXES, DecodedImage, decode, encode
from anonymizer.data.metadata import find_metadata
from anonymizer.errors import RecordError
from anonymizer.records import Reason
from tests.support import ROOT
from tests.support.encoded_images import leaky, photo, saved

LIMITS = Limits.model_validate({})
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def levels(picture: DecodedImage) -> np.ndarray:
    """(size, size, 3) of 0 to 255."""
    return (picture.tensor.permute(1, 2, 0).numpy() + 1) * 127.5


def reason(data: bytes, **limits: int) -> Reason:
    with pytest.raises(RecordError) as caught:
        decode(data, 16, "crop", Limits.model_validate(limits))
    return caught.value.reason


# Decoding


def test_an_image_of_the_models_size_is_decoded_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    picture = decode(saved(Image.fromarray(pixels)), 16, "crop", LIMITS)
    assert picture.tensor.shape == (3, 16, 16) and picture.tensor.dtype == torch.float32
    assert np.abs(levels(picture) - pixels).max() < 1e-3
    assert (picture.width, picture.height) == (16, 16)


def test_black_is_minus_one_and_white_is_one() -> None:
    assert decode(saved(Image.new("RGB", (9, 9))), 8, "crop", LIMITS).tensor.unique().tolist() == [-1.0]
    assert decode(saved(Image.new("RGB", (9, 9), WHITE)), 8, "crop", LIMITS).tensor.unique().tolist() == [1.0]


MODES = {
    "PNG": ["1", "L", "P", "RGB", "LA", "RGBA"],
    "JPEG": ["1", "L", "RGB", "CMYK", "YCbCr"],
    "WEBP": ["L", "P", "RGB", "LA", "RGBA"],
    "GIF": ["1", "L", "P", "RGB", "LA", "RGBA"],
    "TIFF": ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "LAB"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
    "PPM": ["1", "L", "RGB"],
    "AVIF": ["L", "RGB", "LA", "RGBA"],
}


@pytest.mark.parametrize("kind, mode", [(kind, mode) for kind, modes in MODES.items() for mode in modes])
def test_every_mode_that_a_format_can_hold_shows_the_same_picture(kind: str, mode: str) -> None:
    grey = mode in ("1", "L", "LA")
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        original = ImageCms.profileToProfile(photo(), srgb, lab, outputMode="LAB")
        assert original is not None
    else:
        original = (photo(mode="L") if grey else photo()).convert(mode)
    found = levels(decode(saved(original, kind), 40, "crop", LIMITS))
    wanted = np.asarray(photo(mode="L").convert("RGB") if grey else photo())[:, 10:50].astype(float)

    def blocks(pixels: np.ndarray) -> np.ndarray:  # dithered modes agree on average
        return pixels.reshape(5, 8, 5, 8, 3).mean(axis=(1, 3))

    assert np.abs(blocks(found) - blocks(wanted)).max() < (16 if mode in ("1", "P", "CMYK") or kind == "GIF" else 6)


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    for data in (
        saved(Image.fromarray(ramp)),
        saved(Image.fromarray(ramp), "TIFF"),
        saved(Image.fromarray(ramp), "PPM"),
    ):
        found = levels(decode(data, 64, "crop", LIMITS))
        assert np.abs(found - ramp[..., None] / 257).max() < 0.01


def tiff(order: str, bits: int, photometric: int, pixels: bytes) -> bytes:
    """A 64 x 64 grey TIFF, written by hand."""
    tags = {256: 64, 257: 64, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1, 278: 64, 279: len(pixels)}
    directory = struct.pack(order + "H", len(tags))
    directory += b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (struct.pack(order + "2sHI", b"MM" if order == ">" else b"II", 42, 8) + directory).ljust(200, b"\0") + pixels


def test_sixteen_bit_tiffs_of_either_byte_order_and_direction_are_read() -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).round(), (64, 1))
    for data in (tiff(">", 16, 1, ramp.astype(">u2").tobytes()), tiff("<", 16, 1, ramp.astype("<u2").tobytes())):
        assert np.abs(levels(decode(data, 64, "crop", LIMITS)) - ramp[..., None] / 257).max() < 0.01
    inverted = tiff("<", 16, 0, ramp.astype("<u2").tobytes())  # white is zero
    assert np.abs(levels(decode(inverted, 64, "crop", LIMITS)) - (255 - ramp[..., None] / 257)).max() < 0.01
    assert reason(tiff(">", 16, 0, ramp.astype(">u2").tobytes())) is Reason.UNSUPPORTED_MODE


def test_twelve_bit_grey_is_scaled_by_its_own_white() -> None:
    pairs = np.array([4095, 2048], np.uint16)
    row = bytes([pairs[0] >> 4, (pairs[0] & 15) << 4 | pairs[1] >> 8, pairs[1] & 255]) * 32
    found = levels(decode(tiff("<", 12, 1, row * 64), 64, "crop", LIMITS))
    assert np.allclose(found[:, ::2], 255, atol=0.1) and np.allclose(found[:, 1::2], 2048 / 4095 * 255, atol=0.1)


def test_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 128), (0, 0, 4, 8))
    found = levels(decode(saved(image), 8, "crop", LIMITS))
    assert np.allclose(found[:, 6:], 255, atol=1)
    assert np.allclose(found[:, 1], [127, 127, 255], atol=2)


def test_a_transparent_palette_colour_becomes_white() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    for kind in ("PNG", "GIF"):
        assert np.allclose(levels(decode(saved(image, kind, transparency=1), 8, "crop", LIMITS)), 255, atol=1)
        assert np.allclose(levels(decode(saved(image, kind), 8, "crop", LIMITS)), GREEN, atol=1)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_corner_that_exif_calls_top_left_is_there_after_decoding(kind: str, orientation: int, fit: str) -> None:
    # EXIF: where in the picture the stored row 0 and column 0 belong
    row_is, column_is = [
        ("top", "left"), ("top", "right"), ("bottom", "right"), ("bottom", "left"),
        ("left", "top"), ("right", "top"), ("right", "bottom"), ("left", "bottom"),
    ][orientation - 1]  # fmt: skip
    stored = Image.new("RGB", (48, 32), WHITE)
    ImageDraw.Draw(stored).rectangle((0, 0, 7, 31), fill=RED)  # column 0
    ImageDraw.Draw(stored).rectangle((8, 0, 47, 7), fill=BLUE)  # row 0
    exif = Image.Exif()
    exif[0x0112] = orientation
    quality = {"quality": 100} if kind != "TIFF" else {}
    picture = decode(saved(stored, kind, exif=exif, **quality), 48, fit, LIMITS)  # type: ignore[arg-type]
    turned = orientation >= 5
    if fit == "pad":
        assert (picture.width, picture.height) == ((32, 48) if turned else (48, 32))
        left, top, width, height = content_box(picture.width, picture.height, 48)
        pixels = levels(picture)[top : top + height, left : left + width]
        edges = {"top": pixels[2], "bottom": pixels[-3], "left": pixels[:, 2], "right": pixels[:, -3]}
        assert np.abs(edges[column_is][12:-12] - RED).mean() < 40
        assert np.abs(edges[row_is][12:-12] - BLUE).mean() < 40
    else:
        assert (picture.width, picture.height) == (32, 32)
        pixels = levels(picture)  # the red column is cropped away
        edges = {"top": pixels[2], "bottom": pixels[-3], "left": pixels[:, 2], "right": pixels[:, -3]}
        assert np.abs(edges[row_is][12:-12] - BLUE).mean() < 40


def test_a_wrong_or_broken_orientation_is_ignored() -> None:
    wanted = decode(saved(photo()), 16, "crop", LIMITS).tensor
    for exif in (
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*",
    ):
        assert torch.equal(decode(saved(photo(), "PNG", exif=exif), 16, "crop", LIMITS).tensor, wanted)


def icc_profile(red: tuple[float, float, float], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    """A matrix profile (ICC 2.1) with gamma 2.2 and the given colorants (XYZ, D50), written by hand."""

    def fixed(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    curve = b"curv" + bytes(4) + struct.pack(">IHH", 1, round(2.2 * 256), 0)
    name = b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(12 + 67) + bytes(4)
    bodies = {
        b"desc": name,
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249),
    }
    bodies |= {k: b"XYZ " + bytes(4) + fixed(*v) for k, v in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue))}
    bodies |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, data, at = struct.pack(">I", len(bodies)), b"", 128 + 4 + 12 * len(bodies)
    for tag, body in bodies.items():
        body += bytes(-len(body) % 4)
        table += struct.pack(">4sII", tag, at + len(data), len(body))
        data += body
    head = struct.pack(">I4sI4s4s4s", at + len(data), bytes(4), 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head = (head + bytes(12) + b"acsp").ljust(68, b"\0") + fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + table + data


SRGB_RED, SRGB_GREEN, SRGB_BLUE = (0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colours_are_converted_by_their_profile(kind: str) -> None:
    swapped = icc_profile(SRGB_GREEN, SRGB_RED, SRGB_BLUE)  # a world in which the first channel is green light
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.new("RGB", (16, 16), RED), kind, icc_profile=swapped, **options)
    assert np.allclose(levels(decode(data, 16, "crop", LIMITS)), GREEN, atol=3)


def test_grey_of_any_depth_is_converted_by_its_profile() -> None:
    linear = icc_profile(SRGB_RED, SRGB_GREEN, SRGB_BLUE).replace(b"RGB XYZ ", b"GRAYXYZ ").replace(b"rTRC", b"kTRC")
    linear = linear.replace(struct.pack(">IHH", 1, round(2.2 * 256), 0), struct.pack(">IHH", 1, 256, 0))  # gamma 1
    wanted = 255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    deep = Image.fromarray(np.full((9, 9), 100 * 257, np.uint16))
    for image in (Image.new("L", (9, 9), 100), deep):
        assert np.allclose(levels(decode(saved(image, icc_profile=linear), 9, "crop", LIMITS)), wanted, atol=1.5)


def test_grey_with_a_colour_profile_stays_grey_and_a_broken_profile_is_ignored() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.allclose(
        levels(decode(saved(Image.new("L", (9, 9), 120), icc_profile=srgb), 9, "crop", LIMITS)), 120, atol=1
    )
    for broken in (b"x", b"x" * 200, srgb[:150], bytes(128)):
        assert np.allclose(
            levels(decode(saved(Image.new("RGB", (9, 9), RED), icc_profile=broken), 9, "crop", LIMITS)), RED
        )


def test_cmyk_jpegs_have_the_colours_that_they_name() -> None:
    for ink, colour in (((0, 255, 255, 0), RED), ((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), BLACK)):
        data = saved(Image.new("CMYK", (16, 16), ink), "JPEG", quality=100)
        assert np.allclose(levels(decode(data, 16, "crop", LIMITS)), colour, atol=4)


def test_the_first_frame_of_an_animation_is_used() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    for kind, options in (
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100}),
    ):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.allclose(levels(decode(data, 16, "crop", LIMITS)), RED, atol=4)
        assert reason(data, max_frames=2) is Reason.TOO_MANY_FRAMES
        decode(data, 16, "crop", Limits.model_validate({"max_frames": 3}))


# Shapes


def test_crop_keeps_the_centre_and_pad_keeps_everything() -> None:
    image = Image.new("RGB", (90, 30), GREEN)
    image.paste(RED, (0, 0, 30, 30))
    image.paste(BLUE, (60, 0, 90, 30))
    cropped, padded = (decode(saved(image), 30, fit, LIMITS) for fit in ("crop", "pad"))  # type: ignore[arg-type]
    assert (cropped.width, cropped.height) == (30, 30) and np.allclose(levels(cropped), GREEN, atol=1)
    assert (padded.width, padded.height) == (90, 30)
    for rows in (levels(padded)[:3], levels(padded)[10:20], levels(padded)[-3:]):  # the edges are repeated
        assert np.allclose(rows[:, 4], RED, atol=1) and np.allclose(rows[:, -5], BLUE, atol=1)


def test_large_images_are_averaged_and_not_subsampled() -> None:
    stripes = np.zeros((640, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    found = levels(decode(saved(Image.fromarray(stripes)), 16, "crop", LIMITS))
    assert np.abs(found - 127.5).max() < 3


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (20_000, 1), (20_000, 30), (3, 20_000)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_extreme_shapes_are_decoded_and_encoded(size: tuple[int, int], fit: str, kind: str) -> None:
    picture = decode(saved(Image.new("RGB", size, (200, 60, 60)), kind, quality=100), 32, fit, LIMITS)  # type: ignore[arg-type]
    assert np.allclose(levels(picture), (200, 60, 60), atol=3)
    out = encode(picture.tensor, (picture.width, picture.height), "png", size="original")
    assert (out.width, out.height) == ((min(size), min(size)) if fit == "crop" else size)


def test_a_large_jpeg_decoded_at_a_fraction_looks_like_the_whole_one() -> None:
    image = photo(1601, 1203)
    for fit in ("crop", "pad"):
        small = levels(decode(saved(image, "JPEG", quality=98), 32, fit, LIMITS))  # type: ignore[arg-type]
        whole = levels(decode(saved(image, "PNG"), 32, fit, LIMITS))  # type: ignore[arg-type]
        assert np.abs(small - whole).max() < 4


# Errors


def test_empty_and_random_bytes_have_their_reasons() -> None:
    assert reason(b"") is Reason.EMPTY
    for data in (
        b"hello",
        b"\0" * 1000,
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.4",
        b"<svg/>",
        b"BMW",
        b"P5 is no picture",
    ):
        assert reason(data) is Reason.NOT_AN_IMAGE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_half_an_image_is_truncated(kind: str) -> None:
    data = saved(photo(), kind)
    assert reason(data[: len(data) // 2]) is Reason.TRUNCATED


def test_limits_hold() -> None:
    assert reason(saved(photo()), max_bytes=100) is Reason.TOO_MANY_BYTES
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF"):
        assert reason(saved(photo(), kind), max_pixels=60 * 40 - 1) is Reason.TOO_MANY_PIXELS
        decode(saved(photo(), kind), 16, "crop", Limits.model_validate({"max_pixels": 60 * 40}))


def test_a_header_that_lies_about_its_size_is_refused_before_pixels_are_decoded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    side = 50_000
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    png += chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    webp = (
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + (16_000).to_bytes(3, "little") * 2
    )
    gif = b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    for data in (png, webp, gif, b"P6 50000 50000 255\n123"):
        assert reason(data) is Reason.TOO_MANY_PIXELS


def test_modes_without_a_clear_meaning_are_refused() -> None:
    for mode in ("F", "I"):
        assert reason(saved(Image.new(mode, (9, 9)), "TIFF")) is Reason.UNSUPPORTED_MODE


def test_errors_hold_the_reason_and_nothing_else() -> None:
    with pytest.raises(RecordError) as caught:
        decode(b"Jane Doe, 12 Example Street", 16, "crop", LIMITS)
    assert str(caught.value) == "not_an_image" and caught.value.__cause__ is None


SAMPLES = [
    saved(photo(24, 17), "PNG"),
    saved(photo(24, 17).convert("P"), "PNG", transparency=3),
    saved(photo(24, 17), "JPEG"),
    saved(photo(24, 17).convert("CMYK"), "JPEG", progressive=True),
    saved(photo(24, 17), "WEBP"),
    saved(photo(24, 17).convert("RGBA"), "WEBP", lossless=True),
    saved(photo(24, 17), "GIF", save_all=True, append_images=[photo(24, 17).rotate(180)]),
    saved(photo(24, 17), "TIFF"),
    saved(photo(24, 17), "TIFF", compression="tiff_lzw"),
    saved(photo(24, 17), "BMP"),
    saved(photo(24, 17), "PPM"),
    saved(photo(24, 17), "AVIF"),
]
TIGHT = Limits.model_validate({"max_pixels": 1_000_000})


def image_or_reason(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            picture = decode(data, 8, "crop", TIGHT)
        except RecordError:
            pass
        else:
            assert picture.tensor.shape == (3, 8, 8) and bool(torch.isfinite(picture.tensor).all())
            assert float(picture.tensor.abs().max()) <= 1
        assert all(isinstance(name, str) for name in find_metadata(data))


@pytest.mark.parametrize("number", range(len(SAMPLES)))
def test_an_image_cut_anywhere_is_an_image_or_a_reason(number: int) -> None:
    data = SAMPLES[number]
    for length in sorted({*range(0, min(len(data), 120)), *range(120, len(data), max(1, len(data) // 150))}):
        image_or_reason(data[:length])


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SAMPLES), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_image_is_an_image_or_a_reason(data: bytes, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(damaged)] ^= value
    image_or_reason(bytes(damaged))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", *(sample[:16] for sample in SAMPLES)]), st.binary(max_size=200))
def test_random_bytes_are_an_image_or_a_reason(start: bytes, data: bytes) -> None:
    image_or_reason(start + data)


# Encoding


@pytest.mark.parametrize("image", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size", ["model", "original"])
def test_encoded_images_hold_pixels_only_and_are_the_same_bytes_each_time(image: str, size: str) -> None:
    picture = decode(leaky("JPEG"), 32, "pad", LIMITS)
    shape = (picture.width, picture.height)
    out = encode(picture.tensor, shape, image, 90, size)  # type: ignore[arg-type]
    assert find_metadata(out.data) == [] and b"Jane" not in out.data
    assert (out.width, out.height) == ((32, 32) if size == "model" else (60, 40))
    assert out.data == encode(picture.tensor.clone(), shape, image, 90, size).data  # type: ignore[arg-type]
    with Image.open(io.BytesIO(out.data)) as reopened:
        assert reopened.size == (out.width, out.height) and reopened.mode == "RGB"
        assert Image.MIME[reopened.format or ""] == MEDIA_TYPES[image]
    assert SUFFIXES[image].startswith(".")


def test_png_keeps_every_level_through_a_round_trip() -> None:
    tensor = torch.arange(256, dtype=torch.float32).reshape(1, 16, 16).repeat(3, 1, 1) / 127.5 - 1
    again = decode(encode(tensor).data, 16, "crop", LIMITS)
    assert torch.allclose(again.tensor, tensor, atol=1e-6)


def test_original_size_undoes_the_padding() -> None:
    image = Image.new("RGB", (120, 60), GREEN)
    image.paste(RED, (0, 0, 60, 60))
    picture = decode(saved(image), 64, "pad", LIMITS)
    out = encode(picture.tensor, (picture.width, picture.height), size="original")
    with Image.open(io.BytesIO(out.data)) as back:
        assert back.size == (120, 60)
        assert np.abs(np.asarray(back).astype(int) - np.asarray(image)).mean() < 4


def test_values_outside_the_range_are_clamped_and_nan_is_refused() -> None:
    assert decode(encode(torch.full((3, 8, 8), 7.0)).data, 8, "crop", LIMITS).tensor.unique().tolist() == [1.0]
    for value in (float("nan"), float("inf")):
        tensor = torch.zeros(3, 8, 8)
        tensor[1, 2, 3] = value
        with pytest.raises(RecordError) as caught:
            encode(tensor)
        assert caught.value.reason is Reason.NOT_FINITE


def test_a_shape_that_a_format_cannot_hold_has_a_reason() -> None:
    with pytest.raises(RecordError) as caught:
        encode(torch.zeros(3, 8, 8), (20_000, 10), "webp", size="original")
    assert caught.value.reason is Reason.TOO_MANY_PIXELS


def test_only_raster_formats_are_opened() -> None:
    source = (ROOT / "anonymizer/data/image_codec.py").read_text()
    assert "Image.open(" not in source.replace("Image.open:", "")


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_the_limit_on_pixels_is_one_of_the_file_and_not_of_the_models_size(fit: str) -> None:
    limits = Limits.model_validate({"max_pixels": 100})
    assert decode(encode(torch.zeros(3, 10, 10)).data, 64, fit, limits).tensor.shape == (3, 64, 64)
