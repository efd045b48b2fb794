"""Demo dataset: photos of generated people, with the metadata leaks of real photos.

Faces come from the bundled model at level 1. Every file has the metadata that cameras, phones and colleagues leave, and
two files are broken, so that a release can show what becomes of each.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import ExifTags, Image, ImageCms

from anonymizer.backbones import Backbone
from anonymizer.boomerang import Boomerang
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.noise import KeyedNoise

GIVEN_NAMES = ("Ada", "Bruno", "Chiara", "Dmitri", "Elif", "Femi", "Greta", "Hiro", "Ines", "Jonas", "Kavya", "Luca")
FAMILY_NAMES = ("Almqvist", "Bernasconi", "Carvalho", "Dvorak", "Eriksen", "Farouk", "Grabowski", "Hadley")
SITES = ("site-lisbon", "site-oslo")
ADDRESS = "41 Harbour Lane"
PEOPLE_KEY = CustodianKey(b"people who do not exist")  # fixed, so that every demo shows the same people


def write_demo_source(
    folder: Path, count: int, backbone: Backbone, progress: Callable[[int], None], batch_size: int = 16
) -> list[str]:
    """Write ``count`` JPEGs and two broken files under ``folder``; return the invented names."""
    given, family = len(GIVEN_NAMES), len(FAMILY_NAMES)
    names = [f"{GIVEN_NAMES[i % given]} {FAMILY_NAMES[(i // given + i) % family]}" for i in range(count)]
    boomerang = Boomerang(backbone, "sde-dpm++", steps=25)
    for start in range(0, count, batch_size):
        numbers = range(start, min(start + batch_size, count))
        noise = KeyedNoise([PEOPLE_KEY.derive("person", bytes([n % 256, n // 256]))[:16] for n in numbers])
        blank = torch.zeros(len(numbers), 3, backbone.size, backbone.size)  # at level 1 nothing is left of it
        for n, face in zip(numbers, boomerang.sample(blank, 1.0, noise), strict=True):
            site = folder / SITES[n % len(SITES)] / f"week-{n % 4 + 1}"
            site.mkdir(parents=True, exist_ok=True)
            (site / f"{names[n].replace(' ', '_')}_{n:03d}.jpg").write_bytes(encode_leaky_jpeg(face, names[n]))
        progress(len(numbers))
    whole = sorted(folder.rglob("*.jpg"))[0].read_bytes()
    (folder / SITES[0] / "interrupted_upload.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (folder / SITES[1] / "empty_scan.jpg").write_bytes(b"")
    return names


def encode_leaky_jpeg(face: torch.Tensor, name: str) -> bytes:
    """Return a JPEG of ``face`` (3, H, W) in [-1, 1] with EXIF (name, GPS), XMP, ICC profile, comment, thumbnail."""
    pixels = ((face.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
    picture = Image.fromarray(pixels).resize((200, 200), Image.Resampling.BICUBIC)
    exif = picture.getexif()
    exif[ExifTags.Base.Artist] = name
    exif[ExifTags.Base.Make] = "Demo Camera"
    exif[ExifTags.Base.ImageDescription] = f"{name}, {ADDRESS}"
    gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
    gps |= {1: "N", 2: (38.0, 43.0, 20.5), 3: "W", 4: (9.0, 8.0, 30.2)}
    exif[ExifTags.IFD.GPSInfo] = gps
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{name}</dc:creator></x:xmpmeta>'
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=92, exif=exif, icc_profile=profile, comment=f"taken by {name}", xmp=xmp.encode())
    return _with_thumbnail(data.getvalue(), picture)


def _with_thumbnail(jpeg: bytes, picture: Image.Image) -> bytes:
    """Insert a JFIF extension segment (JFXX) that holds a small copy of the picture."""
    small = io.BytesIO()
    picture.resize((48, 48)).save(small, "JPEG", quality=70)
    payload = b"JFXX\0\x10" + small.getvalue()
    return jpeg[:2] + b"\xff\xe0" + (len(payload) + 2).to_bytes(2, "big") + payload + jpeg[2:]
