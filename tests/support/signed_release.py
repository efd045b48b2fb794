"""A published release that is signed and approved, and ways to tamper with it."""

from __future__ import annotations

import copy
import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from securesystemslib.signer import CryptoSigner

from anonymizer.attest import dsse, merkle, revocation, statement, verify
from anonymizer.attest.verify import Finding
from anonymizer.attest.verify.findings import MAX_LENGTH
from anonymizer.records import Scores
from anonymizer.release import publish
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST, REVOCATIONS, STATEMENT, Release
from anonymizer.storage.path import StoragePath
from tests.support.releases import Unscored, folder_of, listing, picture, plain, run, settings
from tests.support.signing_keys import ADA, BOB, PUBLISHER, public_key

ALL = (PUBLISHER, ADA, BOB)
LAYOUTS = ["folder", "webdataset", "parquet"]
Change = Callable[[dict[str, Any]], object]


def publish_release(root: Path, layout: str) -> Path:
    """Publish a release with labels, captions, a further column, a quarantined and a failed image; return its root."""
    files = {f"{i}.png": picture(i) for i in range(6)} | {"black.png": plain(0), "bad.png": b"no picture"}
    folder_of(root / "in", files)
    rows = [{"path": name, "who": f"{'ab'[i % 2]}", "says": f"picture {i}", "age": i} for i, name in enumerate(files)]
    source = {"format": "listing", "image": "path", "label": "who", "caption": "says", "carry": ["age"]}
    approvers = {"ada": public_key(ADA), "bob": public_key(BOB)}
    config = settings(
        listing(root / "in", rows), root / "out", source=source, output={"format": layout},
        policy={"approvals": 2, "approvers": approvers, "max_failed": 0.5},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
        release = run(config, scorer=Unscored(Scores()))
    for signer in (ADA, BOB):
        publish.approve(release, signer)
    return root / "out"


@pytest.fixture(scope="session")
def signed_releases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {layout: publish_release(tmp_path_factory.mktemp(layout), layout) for layout in LAYOUTS}


@pytest.fixture(params=LAYOUTS)
def public_half(request: pytest.FixtureRequest, signed_releases: Mapping[str, Path], tmp_path: Path) -> Path:
    """Public half of a release in each of the layouts, to be tampered with."""
    return Path(shutil.copytree(signed_releases[request.param] / "public", tmp_path / "public"))


@pytest.fixture
def folder_half(signed_releases: Mapping[str, Path], tmp_path: Path) -> Path:
    """Public half whose images are files."""
    return Path(shutil.copytree(signed_releases["folder"] / "public", tmp_path / "public"))


@pytest.fixture
def signed_release(signed_releases: Mapping[str, Path], tmp_path: Path) -> Release:
    """Both halves of a release."""
    return Release.at(str(shutil.copytree(signed_releases["folder"], tmp_path / "both")))


def check(folder: Path, trust: Sequence[str] = (), **known: Any) -> list[Finding]:
    found = list(verify.check_public(StoragePath.from_uri(str(folder)), trust, **known))
    assert all(
        len(f.message.splitlines()) == 1 and f.message.isprintable() and len(f.message) <= MAX_LENGTH + 1 for f in found
    )
    return found


def failures(found: Sequence[Finding]) -> set[str]:
    return {finding.check for finding in found if finding.result == "fail"}


def failed_checks(folder: Path) -> set[str]:
    """Return the names of the checks that a public half fails."""
    return failures(check(folder))


def has_failure(folder: Path) -> bool:
    return any(finding.result == "fail" for finding in verify.check_public(StoragePath.from_uri(str(folder))))


def read_predicate(folder: Path) -> dict[str, Any]:
    return copy.deepcopy(dict(statement.read(StoragePath.from_uri(str(folder))).predicate))


def sign_again(
    folder: Path,
    change: Change = lambda predicate: None,
    digests: Change = lambda digests: None,
    by: Sequence[CryptoSigner] = ALL,
) -> None:
    """Write a statement about the current files, changed, signed by all former signers or by others."""
    path = StoragePath.from_uri(str(folder))
    predicate, manifest = read_predicate(folder), parquet.read(path / MANIFEST)
    predicate["manifest"] |= {
        "rows": len(manifest),
        "columns": manifest.column_names,
        "merkle_root": merkle.root(merkle.encode_rows(manifest)).hex(),
    }
    subjects = statement.subject_digests(path)
    digests(subjects)
    predicate["sizes"] = {name: (folder / name).stat().st_size for name in subjects}
    change(predicate)
    write_statement(folder, predicate, subjects, by)


def with_sizes(folder: Path, predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return a predicate with the sizes that its files have now."""
    return {**predicate, "sizes": {name: (folder / name).stat().st_size for name in predicate["sizes"]}}


def set_approvals(predicate: dict[str, Any], **values: Any) -> None:
    """Change ``required`` or ``approvers``, in the policy as well."""
    predicate["approvals"] |= values
    names = {"required": "approvals", "approvers": "approvers"}
    predicate["policy"] |= {names[name]: value for name, value in values.items()}


def write_statement(
    folder: Path, predicate: Any, subjects: Mapping[str, str], by: Sequence[CryptoSigner] = ALL
) -> dsse.SignedStatement:
    made = dsse.build(statement.PREDICATE_TYPE, subjects, predicate, None)
    for signer in by:
        made = made.with_signature(signer)
    (folder / STATEMENT).write_bytes(dsse.dumps([made]))
    return made


def read_manifest(folder: Path) -> pa.Table:
    return parquet.read(StoragePath.from_uri(str(folder)) / MANIFEST)


def write_manifest(folder: Path, table: pa.Table) -> None:
    (folder / MANIFEST).write_bytes(parquet.to_bytes(table))


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """Return the table with a column replaced, or appended."""
    at = table.schema.get_field_index(name)
    if at < 0:
        return table.append_column(name, values)
    field = table.schema.field(name)
    return table.set_column(at, field, pa.array(values, field.type) if isinstance(values, list) else values)


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def list_images(folder: Path) -> list[Path]:
    return [path for path in list_files(folder) if path.parent.name != "public"]


@contextmanager
def flipped_bit(file: Path, position: int, bit: int) -> Iterator[None]:
    """Flip one bit of a file meanwhile."""

    def flip() -> None:
        with open(file, "r+b", buffering=0) as raw:
            raw.seek(position)
            (byte,) = raw.read(1)
            raw.seek(position)
            raw.write(bytes([byte ^ 1 << bit]))

    flip()
    try:
        yield
    finally:
        flip()


def revoke(folder: Path, revoked: Mapping[str, str], signer: CryptoSigner = PUBLISHER) -> None:
    (folder / REVOCATIONS).write_bytes(dsse.dumps([revocation.build(revoked, signer)]))
    sign_again(folder)


def replace_image(folder: Path, data: bytes, **more: Any) -> None:
    """Replace the first image of a release whose images are files, and sign it again."""
    table = read_manifest(folder)
    first = table.slice(0, 1).to_pylist()[0]
    (folder / first["file"]).write_bytes(data)
    for name, value in ({"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} | more).items():
        table = with_column(table, name, pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type))
    write_manifest(folder, table)
    sign_again(folder)


def encode_image(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GREY = Image.fromarray(np.full((8, 8, 3), 99, dtype=np.uint8))
FUZZ = hypothesis_settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
