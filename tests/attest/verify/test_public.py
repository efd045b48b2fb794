"""Verification of a public half: an untouched release passes, any flipped bit and any revoked image is found."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.attest import verify
from anonymizer.storage.layout import MANIFEST, REVOCATIONS, STATEMENT
from anonymizer.storage.path import StoragePath
from tests.support.releases import (
    folder_of,
    picture,
    release_without_images,
    run,
    settings,
)
from tests.support.signed_release import (
    LAYOUTS,
    check,
    failed_checks,
    failures,
    flipped_bit,
    has_failure,
    list_files,
    read_manifest,
    revoke,
    sign_again,
)
from tests.support.signing_keys import ADA, BOB, EVE, PUBLISHER, public_key

APPROVERS = {"ada": public_key(ADA), "bob": public_key(BOB)}


def test_an_untouched_release_passes_every_check(public_half: Path) -> None:
    found = check(public_half, [public_key(PUBLISHER)], approvers=APPROVERS)
    assert {finding.result for finding in found} == {"pass"}
    assert [finding.check for finding in found if finding.check != "metadata"] == [
        "signature", "approvals", "gate", "digests", "schema", "counts", "names", "merkle", "strays", "pictures",
    ]  # fmt: skip
    has_metadata = (public_half / "metadata.jsonl").exists()  # of pictures in folders
    assert has_metadata == ("metadata" in {finding.check for finding in found}) == (public_half / "images").exists()
    assert "ada, bob (2 required)" in {finding.message for finding in found}


def test_signing_the_same_again_changes_nothing(public_half: Path) -> None:
    before = (public_half / STATEMENT).read_bytes()
    sign_again(public_half)
    assert (public_half / STATEMENT).read_bytes() == before


@pytest.mark.parametrize("image", ["jpeg", "webp"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_picture_passes(tmp_path: Path, image: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
    source = folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(3)})
    run(settings(source, tmp_path / "out", output={"format": layout, "image": image}))
    assert failed_checks(tmp_path / "out" / "public") == set()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_empty_release_passes(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    release_without_images(tmp_path, monkeypatch, layout)
    assert failed_checks(tmp_path / "out" / "public") == set()


def test_an_unsigned_release_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANONYMIZER_SIGNING_KEY", raising=False)
    run(settings(folder_of(tmp_path / "in", {"1.png": picture(1)}), tmp_path / "out"))
    (one,) = [finding for finding in check(tmp_path / "out" / "public") if finding.result == "fail"]
    assert one.check == "signature" and "nobody answers for this release" in one.message


def test_a_release_in_an_object_store_is_verified(public_half: Path) -> None:
    fs = StoragePath.from_uri("memory://handout").fs
    fs.put(str(public_half), "/handout", recursive=True)
    try:
        assert failures(list(verify.check_public(StoragePath.from_uri("memory://handout")))) == set()
        fs.pipe_file("/handout/more.txt", b"more")
        assert failures(list(verify.check_public(StoragePath.from_uri("memory://handout")))) == {"strays"}
    finally:
        fs.rm("/handout", recursive=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_flipped_bit_anywhere_is_found(signed_releases: Mapping[str, Path], layout: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        public_half = Path(shutil.copytree(signed_releases[layout] / "public", Path(scratch) / "public"))
        there = list_files(public_half)

        @hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.sampled_from(there), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
        def flip(file: Path, at: float, bit: int) -> None:
            with flipped_bit(file, int(at * file.stat().st_size), bit):
                assert has_failure(public_half)

        flip()
        assert not has_failure(public_half)


def test_one_flipped_bit_in_each_file_is_found(public_half: Path) -> None:
    for file in list_files(public_half):
        for position in (0, file.stat().st_size // 2, file.stat().st_size - 1):
            with flipped_bit(file, position, 0):
                assert has_failure(public_half), file.name


def test_a_flipped_bit_in_any_byte_of_the_statement_is_found(folder_half: Path) -> None:
    file = folder_half / STATEMENT
    for position in range(file.stat().st_size):
        with flipped_bit(file, position, position % 8):
            assert has_failure(folder_half), position


@pytest.mark.slow
def test_every_flipped_bit_of_the_statement_and_any_byte_of_the_manifest_is_found(folder_half: Path) -> None:
    for name, bits in ((STATEMENT, range(8)), (MANIFEST, range(1))):
        for position in range((folder_half / name).stat().st_size):
            for bit in bits:
                with flipped_bit(folder_half / name, position, bit):
                    assert has_failure(folder_half), (name, position, bit)


def test_a_revoked_image_is_found_by_id_and_by_content(public_half: Path) -> None:
    row = read_manifest(public_half).slice(2, 1).to_pylist()[0]
    revoke(public_half, {"0" * 32: "0" * 64})
    assert failed_checks(public_half) == set()
    for back in ({row["output_id"]: "0" * 64}, {"0" * 32: row["sha256"]}):
        revoke(public_half, back)
        assert failed_checks(public_half) == {"revocations"}


def test_a_changed_or_unsigned_revocation_is_found(folder_half: Path) -> None:
    revoke(folder_half, {"0" * 32: "0" * 64})
    file = folder_half / REVOCATIONS
    with flipped_bit(file, 100, 1):
        assert failed_checks(folder_half) == {"digests"}
        sign_again(folder_half)
        assert failed_checks(folder_half) == {"revocations"}
    document = json.loads(file.read_bytes())
    file.write_bytes(json.dumps(document | {"signatures": []}, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    sign_again(folder_half)
    assert failed_checks(folder_half) == {"revocations"}


def test_a_revocation_by_another_key_is_noted(folder_half: Path) -> None:
    revoke(folder_half, {"0" * 32: "0" * 64}, EVE)
    found = check(folder_half, [public_key(PUBLISHER)], approvers=APPROVERS)
    assert [finding.check for finding in found if finding.result == "note"] == ["revocations"]
    assert failed_checks(folder_half) == set()
