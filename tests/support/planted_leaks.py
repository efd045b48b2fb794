"""Sources full of marks, and every spelling in which a mark, a digest or a key could appear elsewhere."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from PIL import Image, ImageCms, PngImagePlugin
from securesystemslib.signer import CryptoSigner

from anonymizer.crypto import signing
from tests.support.releases import KEY, folder_of, picture

PUBLISHER, ALICE = signing.generate_key_pair(), signing.generate_key_pair()
MARK = "Zz7Marker"
ADDRESS = re.compile(rb'"[^"]*/Zz7Marker(Root|Models/tiny)"')  # what a run's settings name, and nothing below it
# How long something took may begin like a score by chance.
TIMES = re.compile(rb'"(estimated_run_time|estimated_start_time_delta|total_run_time)": [0-9.e-]+')


def jpeg(seed: int, mark: str) -> bytes:
    image = Image.open(io.BytesIO(picture(seed, (16, 16))))
    exif = image.getexif()
    exif[0x010E] = exif[0x013B] = exif[0x9286] = mark  # description, artist, user comment
    exif.get_ifd(0x8825)[0x001D] = mark
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = profile.find(b"s\0R\0G\0B\0")
    assert at > 0
    profile[at : at + 8] = mark[-8:].encode().ljust(8, b"_")
    file = io.BytesIO()
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{mark}</x:xmpmeta>".encode()
    image.save(file, "JPEG", exif=exif, comment=mark, icc_profile=bytes(profile), xmp=xmp)
    return file.getvalue() + mark.encode()


def png(seed: int, mark: str) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", mark)
    text.add_text("Comment", mark, zip=True)
    text.add_itxt("Title", mark)
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(seed, (16, 16)))).save(file, "PNG", pnginfo=text)
    return file.getvalue()


def gif(seed: int, mark: str) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(seed, (16, 16)))).save(file, "GIF", comment=mark.encode())
    return file.getvalue()


def pictures() -> dict[str, bytes]:
    """File name -> bytes; two are broken. Every name and every file is marked."""
    whole = {f"{MARK} jpeg {i}.jpg": jpeg(i, f"{MARK}Exif{i}") for i in range(4)}
    whole |= {f"{MARK} png {i}.png": png(10 + i, f"{MARK}Text{i}") for i in range(2)}
    whole |= {f"{MARK} gif ä.gif": gif(20, f"{MARK}Comment")}
    cut = jpeg(30, f"{MARK}Cut")
    return whole | {f"{MARK} cut.jpg": cut[: len(cut) * 2 // 3], f"{MARK} text.jpg": f"{MARK}Body".encode()}


def as_folder(root: Path) -> tuple[Path, list[str]]:
    folder_of(root / f"{MARK}Root", {f"{MARK}Folder/{name}": data for name, data in pictures().items()})
    return root / f"{MARK}Root", ["source.subject=folder"]


def as_parquet(root: Path) -> tuple[Path, list[str]]:
    items = [
        {"image": {"bytes": data, "path": name}, "id": f"{MARK}Id{i}", "label": f"{MARK}L", "x": f"{MARK}X", "ok": i}
        for i, (name, data) in enumerate(pictures().items())
    ]  # fmt: skip
    path = root / f"{MARK}Root" / f"{MARK}.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(items).replace_schema_metadata({"note": f"{MARK}Schema"}), path)
    kept = ["source.id=id", "source.subject=label", "source.restricted=[x]"]
    return path.parent, [*kept, "source.carry=[ok]", "output.format=parquet"]


def as_tar(root: Path) -> tuple[Path, list[str]]:
    path = root / f"{MARK}Root" / f"{MARK}.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for i, (name, data) in enumerate(pictures().items()):
            key, _, suffix = name.rpartition(".")
            side = json.dumps({"who": f"{MARK}Json", "ok": i}).encode()
            members = {f"{MARK}Dir/{key}.{suffix}": data, f"{MARK}Dir/{key}.txt": f"{MARK}Caption".encode()}
            for member, content in (members | {f"{MARK}Dir/{key}.json": side}).items():
                info = tarfile.TarInfo(member)
                info.size, info.uname, info.gname = len(content), f"{MARK}User", f"{MARK}Group"
                tar.addfile(info, io.BytesIO(content))
    kept = ["source.restricted=[who]", "source.drop=[txt]"]
    return path.parent, [*kept, "source.carry=[ok]", "output.format=webdataset"]


def spellings(text: str) -> Iterator[bytes]:
    """Ways in which a text may lie in a file."""
    plain = text.encode()
    yield plain
    yield text.encode("utf-16-le")
    yield text.encode("utf-16-be")
    yield quote(text).encode()
    yield quote(text, safe="").lower().encode()
    yield plain.hex().encode()
    for shift in range(3):  # base64, wherever the text begins in what was encoded; edges depend on neighbours
        code = base64.b64encode(b"\0" * shift + plain)
        yield code[4 if shift else 0 : -4]
    yield json.dumps(text)[1:-1].encode()


def digests(data: bytes) -> Iterator[bytes]:
    for name in ("sha256", "md5", "sha1"):
        yield hashlib.new(name, data).hexdigest().encode()
        yield hashlib.new(name, data).digest()
        yield base64.b64encode(hashlib.new(name, data).digest())


def forbidden(source: Path, found: list[dict[str, Any]]) -> set[bytes]:
    """Everything that says which originals there were."""
    marks = set(spellings(MARK))
    for path in source.rglob("*"):
        marks |= {spelling for text in (path.name, str(path)) for spelling in digests(text.encode())}
        if path.is_file():
            marks |= set(digests(path.read_bytes()))
    for data in pictures().values():
        marks |= set(digests(data))
    for name in pictures():
        marks |= set(digests(name.encode()))
    for row in found:
        marks |= {*spellings(row["record_id"]), *digests(row["record_id"].encode())}
        if row["source_hmac"]:
            seed = KEY.noise_key(row["source_hmac"], row["config_fingerprint"])
            marks |= {row["source_hmac"].encode(), seed, seed.hex().encode(), base64.b64encode(seed)}
            marks |= {str(int.from_bytes(seed, "little")).encode()}
        for score in (row["clip_similarity"], row["lpips"]):
            if score is not None:
                marks |= {
                    f"{score:.6f}".encode(),
                    repr(score)[:9].encode(),
                    struct.pack("<f", score),
                    struct.pack("<d", score),
                }
    for secret in (KEY.secret, *(_raw(signer) for signer in (PUBLISHER, ALICE))):
        marks |= {secret.hex().encode(), secret.hex().upper().encode(), secret, base64.b64encode(secret)}
    return {mark for mark in marks if len(mark) >= 4}


def _raw(signer: CryptoSigner) -> bytes:
    """A private key's own 32 bytes, which its PEM file holds in base64."""
    key = load_pem_private_key(signer.private_bytes, password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key.private_bytes_raw()


def seen_in(name: str, data: bytes) -> list[bytes]:
    """A file as it lies there, its name, and what is inside where that is packed."""
    views = [name.encode(), data]
    if name.endswith(".intoto.jsonl"):
        views += [base64.b64decode(json.loads(line)["payload"]) for line in data.splitlines()]
    if name.endswith(".parquet"):
        table = pq.read_table(pa.BufferReader(data))
        views += [str(table.schema.to_string(show_schema_metadata=True)).encode(), repr(table.schema.metadata).encode()]
        for column in table.column_names:
            for value in table[column].to_pylist():
                value = value if not isinstance(value, dict) else value["bytes"]
                views.append(value if isinstance(value, bytes) else str(value).encode())
    return views


def pictures_of(public: dict[str, bytes]) -> Iterator[bytes]:
    for name, data in public.items():
        if name.endswith(".png"):
            yield data
        elif name.startswith("data/") and name.endswith(".parquet"):
            yield from (value["bytes"] for value in pq.read_table(pa.BufferReader(data))["image"].to_pylist())
        elif name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                yield from (tar.extractfile(m).read() for m in tar if m.name.endswith(".png"))  # type: ignore[union-attr]
