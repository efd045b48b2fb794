"""Extra content of tar and Parquet parts is found, even in a release that is signed again."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.attest import statement
from anonymizer.data.sinks.parquet import IMAGE_TYPE
from anonymizer.storage.path import StoragePath
from tests.support.releases import folder_of, listing, picture, run, settings
from tests.support.signed_release import (
    FUZZ,
    failed_checks,
    list_images,
    sign_again,
    with_column,
    with_sizes,
    write_statement,
)
from tests.support.signing_keys import PUBLISHER, pem


def read_members(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def build_tar(found: Sequence[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.TarFile(fileobj=file, mode="w", format=form) as tar:
        for member, data in found:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def with_header(found: list[tuple[tarfile.TarInfo, bytes]], **values: Any) -> list[tuple[tarfile.TarInfo, bytes]]:
    for name, value in values.items():
        setattr(found[0][0], name, value)
    return found


def with_json_values(found: list[tuple[tarfile.TarInfo, bytes]], **more: Any) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        (m, json.dumps(json.loads(data) | more).encode() if m.name.endswith(".json") else data) for m, data in found
    ]


def with_secret(found: list[tuple[tarfile.TarInfo, bytes]], suffix: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(m, b"secret" if m.name.endswith(suffix) else data) for m, data in found]


TARS: Mapping[str, Callable[[bytes], bytes]] = {
    "a member": lambda data: build_tar([*read_members(data), (tarfile.TarInfo("more.txt"), b"more")]),
    "a member of one of the pictures": lambda data: build_tar(
        [*read_members(data), (tarfile.TarInfo(read_members(data)[0][0].name[:32] + ".exif"), b"more")]
    ),
    "a member twice": lambda data: build_tar([*read_members(data), read_members(data)[0]]),
    "a column": lambda data: build_tar(with_json_values(read_members(data), source_hmac="ab" * 32)),
    "another value of a column": lambda data: build_tar(with_json_values(read_members(data), age=99)),
    "a value of another kind": lambda data: build_tar(with_json_values(read_members(data), age="home/ada/1.png")),
    "another spelling of its values": lambda data: build_tar(
        [(m, data.replace(b": ", b" :  ") if m.name.endswith(".json") else data) for m, data in read_members(data)]
    ),
    "another label": lambda data: build_tar(with_json_values(read_members(data), label="ada")),
    "another caption": lambda data: build_tar(with_secret(read_members(data), ".txt")),
    "an owner": lambda data: build_tar(with_header(read_members(data), uname="ada")),
    "a time": lambda data: build_tar(with_header(read_members(data), mtime=1)),
    "a comment": lambda data: build_tar(
        with_header(read_members(data), pax_headers={"comment": "ada"}), tarfile.PAX_FORMAT
    ),
    "a link": lambda data: build_tar(with_header(read_members(data), type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "bytes after its end": lambda data: data + b"more",
    "zeros and bytes after its end": lambda data: data + b"\0" * 10240 + build_tar(read_members(data)),
    "bytes between members": lambda data: (
        data[: 512 + read_members(data)[0][0].size] + b"x" + data[512 + read_members(data)[0][0].size + 1 :]
    ),
    "no end": lambda data: data[:512],
    "no tar": lambda data: b"\1" * 10240,
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("what", TARS)
def test_extra_content_of_a_tar_part_is_found(signed_releases: Mapping[str, Path], tmp_path: Path, what: str) -> None:
    public_half = Path(shutil.copytree(signed_releases["webdataset"] / "public", tmp_path / "public"))
    part = public_half / "data" / "part-00000.tar"
    before = part.read_bytes()
    part.write_bytes(build_tar(read_members(before)))
    assert part.read_bytes() == before, "what is changed must be all that is"
    part.write_bytes(TARS[what](before))
    sign_again(public_half)
    assert failed_checks(public_half) == {"pictures"}


def with_images(table: pa.Table, **more: Any) -> pa.Table:
    """Return the table with fields of its image structs changed."""
    values = [row | {k: v(row) if callable(v) else v for k, v in more.items()} for row in table["image"].to_pylist()]
    kind = pa.array(values).type if set(more) - {"bytes", "path"} else IMAGE_TYPE
    return table.set_column(1, pa.field("image", kind), pa.array(values, kind))


PARTS: Mapping[str, Callable[[pa.Table], pa.Table]] = {
    "a column": lambda t: t.append_column("source_hmac", pa.array(["ab" * 32] * len(t))),
    "a column less": lambda t: t.drop_columns(["age"]),
    "columns in another order": lambda t: t.select(list(reversed(t.column_names))),
    "a field": lambda t: with_images(t, source="x"),
    "other paths": lambda t: with_images(t, path="ada/passport.png"),
    "no picture": lambda t: with_images(t, bytes=None),
    "more in a picture": lambda t: with_images(t, bytes=lambda row: row["bytes"] + b"more"),
    "other ids": lambda t: with_column(t, "output_id", ["0" * 32] * len(t)),
    "other labels": lambda t: with_column(t, "label", ["ada"] * len(t)),
    "other captions": lambda t: with_column(t, "caption", ["ada"] * len(t)),
    "another value of a column": lambda t: with_column(t, "age", [99] * len(t)),
    "metadata": lambda t: t.replace_schema_metadata({"source": "ada"}),
    "a row": lambda t: pa.concat_tables([t, t.slice(0, 1)]),
    "a row less": lambda t: t.slice(1),
    "rows in another order": lambda t: t.take(list(reversed(range(len(t))))),
}


@pytest.mark.parametrize("what", PARTS)
def test_extra_content_of_a_parquet_part_is_found(
    signed_releases: Mapping[str, Path], tmp_path: Path, what: str
) -> None:
    public_half = Path(shutil.copytree(signed_releases["parquet"] / "public", tmp_path / "public"))
    part = public_half / "data" / "part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table, part)
    sign_again(public_half)
    assert failed_checks(public_half) == set(), "what is changed must be all that is"
    pq.write_table(PARTS[what](table), part)
    sign_again(public_half)
    assert failed_checks(public_half) == {"pictures"}


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_a_signed_damaged_part_never_raises(signed_releases: Mapping[str, Path], layout: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        public_half = Path(shutil.copytree(signed_releases[layout] / "public", Path(scratch) / "public"))
        (part,) = list_images(public_half)
        signed, before = statement.read(StoragePath.from_uri(str(public_half))), part.read_bytes()
        name = str(part.relative_to(public_half))

        @FUZZ
        @given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
        def damage(at: float, other: int) -> None:
            data = bytearray(before)
            data[int(at * len(data))] ^= other
            part.write_bytes(data)
            digest = statement.file_digest(StoragePath.from_uri(str(part)))
            predicate = with_sizes(public_half, signed.predicate)
            write_statement(public_half, predicate, {**signed.digests, name: digest})
            assert failed_checks(public_half) <= {"pictures"}

        damage()


CARRIED = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5),
)  # fmt: skip


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_columns_of_any_values_are_the_same_in_parts_and_manifest(layout: str) -> None:
    @hypothesis_settings(max_examples=15, deadline=None, database=None)
    @given(st.lists(st.tuples(CARRIED, CARRIED), min_size=2, max_size=3))
    def released(values: list[tuple[Any, Any]]) -> None:
        with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
            patch.setenv("ANONYMIZER_SIGNING_KEY", pem(PUBLISHER))
            root = Path(scratch)
            folder_of(root / "in", {f"{i}.png": picture(i) for i in range(len(values))})
            rows = [{"path": f"{i}.png", "one": one, "other": other} for i, (one, other) in enumerate(values)]
            source = {"format": "listing", "image": "path", "carry": ["one", "other"]}
            run(settings(listing(root / "in", rows), root / "out", source=source, output={"format": layout}))
            assert failed_checks(root / "out" / "public") == set()

    released()
