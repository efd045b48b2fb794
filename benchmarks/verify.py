"""Compare the speed of verifying a public half with coreutils' sha256sum over the same files, which only reads them.

    python benchmarks/verify.py [--scale 1] [--repeats 5] [--json FILE]

Each repeat takes sha256sum, a digest pass of ours and the whole check in turn, so that what else the machine does hits
all of them; medians are shown. Files were just written: they are read from memory, where hashing and decoding count.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import secrets
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from anonymizer.attest import dsse, merkle, statement
from anonymizer.attest.verify import check_public
from anonymizer.config import OutputConfig, PolicyConfig
from anonymizer.crypto import signing
from anonymizer.data.sinks import ReleasedImage, open_sink
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST, STATEMENT
from anonymizer.storage.path import StoragePath

DISTINCT = 64  # pictures; the rest are copies under other names
SUFFIXES = {"png": ".png", "jpeg": ".jpg"}
CASES = [  # layout, kind, side, pictures at scale 1
    ("folder", "png", 64, 20_000),
    ("parquet", "png", 64, 20_000),
    ("webdataset", "png", 64, 20_000),
    ("folder", "png", 512, 3_000),
    ("folder", "jpeg", 512, 6_000),
    ("parquet", "jpeg", 512, 6_000),
]


def encode_pictures(kind: str, side: int) -> list[bytes]:
    """Return images that compress as photographs do: soft shapes and a little noise."""
    rng, encoded = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
        pixels = (soft + rng.normal(0, 4, soft.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        options = {"quality": 95, "subsampling": 0} if kind == "jpeg" else {"compress_level": 6}
        Image.fromarray(pixels).save(file, kind, **options)
        encoded.append(file.getvalue())
    return encoded


def write_public_half(folder: StoragePath, layout: str, kind: str, side: int, count: int) -> None:
    """Write a public half that its publisher signed."""
    data = encode_pictures(kind, side)
    ids = sorted(secrets.token_hex(16) for _ in range(count))
    digests = [hashlib.sha256(image).hexdigest() for image in data]
    released = (ReleasedImage(image, data[i % DISTINCT], SUFFIXES[kind]) for i, image in enumerate(ids))
    config = OutputConfig.model_validate({"uri": str(folder), "format": layout})
    placed = list(open_sink(config, {}).write(released, folder.fs, folder.path))
    manifest = manifest_table(
        output_id=ids,
        file=[image.file for image in placed],
        member=pa.array([image.member for image in placed], pa.string()),
        sha256=[digests[i % DISTINCT] for i in range(count)],
        bytes=pa.array([len(data[i % DISTINCT]) for i in range(count)], pa.int64()),
        width=side,
        height=side,
        format=kind,
    )
    (folder / MANIFEST).write_uncommitted(parquet.to_bytes(manifest))
    signer = signing.generate_key_pair()
    contents = make_predicate(manifest, signing.format_public_key(signer.public_key))
    digests = statement.subject_digests(folder)
    contents["sizes"] = statement.file_sizes(folder, digests)
    envelope = dsse.build(statement.PREDICATE_TYPE, digests, contents, signer)
    (folder / STATEMENT).write_uncommitted(dsse.dumps([envelope]))


def manifest_table(**columns: Any) -> pa.Table:
    """Return a manifest of columns or of a value for all rows; the rest as in a release without scores."""
    nothing = pa.scalar(None, pa.string())
    same = {"label": nothing, "caption": nothing, "level": 0.6, "t_boom": 600, "log_snr": -1.5, "sampler": "sde-dpm++"}
    same |= {"steps": 20, "model": "a local model", "model_digest": "0" * 64, "config_fingerprint": "0" * 64}
    rows = len(columns["output_id"])
    return pa.table({name: _column(name, value, rows) for name, value in (columns | same).items()})


def _column(name: str, value: Any, rows: int) -> Any:
    if isinstance(value, int):
        return pa.repeat(pa.scalar(value, pa.int32()), rows)
    return pa.repeat(value, rows) if isinstance(value, str | float | pa.Scalar) else value


def make_predicate(manifest: pa.Table, publisher: str) -> dict[str, Any]:
    zeros, rows = "0" * 64, len(manifest)
    root = merkle.root(merkle.encode_rows(manifest)).hex()
    return {
        "version": 2,
        "release": "0" * 16,
        "created": "2026-11-25T12:00:00+00:00",
        "manifest": {"rows": rows, "columns": manifest.column_names, "merkle_root": root, "public_scores": "none"},
        "materials": {"originals": rows, "hmac_sha256": zeros, "previous": None, "sealed": False},
        "settings": {
            "fingerprint": zeros, "level": 0.6, "levels": [0.6], "t_boom": 600, "T": 1000, "log_snr": -1.5,
            "sampler": "sde-dpm++", "steps": 20,
        },
        "model": {"name": "a local model", "sha256": zeros},
        "code": {"anonymizer": "0", "libraries": {}},
        "counts": {"read": rows, "released": rows, "quarantined": 0, "failed": 0, "waiting": 0, "images": rows},
        "gate": {"result": "pass", "rules": [], "waivers": []},
        "policy": PolicyConfig().model_dump(mode="json"),
        "audit": None,
        "publisher": publisher,
        "approvals": {"required": 0, "approvers": {}},
        "events": {"count": 1, "hash": zeros},
    }  # fmt: skip


def sha256sum(folder: StoragePath) -> None:
    listed = "\0".join(f"{folder.path}/{name}" for name in folder.list_files())
    subprocess.run(["xargs", "-0", "sha256sum"], input=listed.encode(), stdout=subprocess.DEVNULL, check=True)


def compute_digests(folder: StoragePath) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda name: statement.file_digest(folder / name), folder.list_files()):
            pass


def verify(folder: StoragePath, decode: int | None = None) -> None:
    wrong = [finding for finding in check_public(folder, decode=decode) if finding.result == "fail"]
    assert not wrong, wrong


def measure(folder: StoragePath, repeats: int) -> dict[str, float]:
    """Return the median MB/s of each."""
    size = sum(os.path.getsize(f"{folder.path}/{name}") for name in folder.list_files())
    checks: dict[str, Callable[[StoragePath], None]] = {
        "sha256sum": sha256sum,
        "digests": compute_digests,
        "verify": verify,
        SAMPLED: lambda folder: verify(folder, 100),
    }
    times: dict[str, list[float]] = {name: [] for name in checks}
    for _ in range(repeats):
        for name, check in checks.items():
            started = time.monotonic()
            check(folder)
            times[name].append(time.monotonic() - started)
    return {"MB": size / 1e6} | {name: size / 1e6 / statistics.median(seconds) for name, seconds in times.items()}


def iter_results(scale: float, repeats: int) -> Iterator[dict[str, Any]]:
    for layout, kind, side, pictures in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            folder, count = StoragePath.from_uri(str(Path(scratch) / "public")), max(1, round(pictures * scale))
            write_public_half(folder, layout, kind, side, count)
            yield {"case": f"{layout}, {count:,} {kind.upper()} of {side} x {side}"} | measure(folder, repeats)


SAMPLED = "--decode 100"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(
        f"{'MB/s, on ' + str(os.cpu_count()) + ' cores':35} {'MB':>6} {'sha256sum':>10} {'digests':>10} {'verify':>10} "
        f"{SAMPLED:>12}"
    )
    measured = []
    for result in iter_results(args.scale, args.repeats):
        measured.append(result)
        share = {name: result[name] / result["sha256sum"] for name in ("digests", "verify", SAMPLED)}
        print(f"{result['case']:35} {result['MB']:6.0f} {result['sha256sum']:10.0f} "
              + " ".join(f"{result[name]:4.0f} x{share[name]:4.2f}" for name in share), flush=True)  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
