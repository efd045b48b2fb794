"""Releases of versions that did not seal: verified as before, followed only once their custodian has sealed them.

``version_1/series.zip`` was made by such a version, ``settings("in", "january")`` of four pictures with the key of
these tests: the source, the release, and the key of its publisher.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import pyarrow as pa
import pytest

from anonymizer.crypto import signing
from anonymizer.errors import AnonymizerError, CustodianKeyError, IntegrityError, SigningKeyError
from anonymizer.release import adoption, event_log, plan
from anonymizer.release.ledger import Ledger
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from flows import api
from flows.jobs import erase as erase_job
from tests.support.releases import HEX, KEY, follow, released, rows, run, tree

SERIES = Path(__file__).parent / "version_1" / "series.zip"


@pytest.fixture
def january(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    with zipfile.ZipFile(SERIES) as archive:
        archive.extractall(tmp_path)
    restricted = tmp_path / "january" / "restricted"
    for path in (restricted, *restricted.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", str(tmp_path / "publisher.key"))
    return Release.at("january")


@pytest.fixture
def publisher(january: Release) -> str:
    signer = signing.signer_from_env("ANONYMIZER_SIGNING_KEY")
    assert signer is not None
    return signing.format_public_key(signer.public_key)


def outcomes(publisher: str, **settings: bool) -> dict[str, str]:
    findings = api.verify("january", [publisher], rescore=0, **settings)
    return {finding.check: finding.result for finding in findings}


def test_it_verifies_as_before_and_says_that_it_has_no_seals(january: Release, publisher: str) -> None:
    results = outcomes(publisher)
    assert "fail" not in results.values() and results["seals"] == "note" and results["ledger"] == "pass"


def test_nothing_is_built_on_it_before_it_is_sealed(january: Release) -> None:
    assert adoption.lacks_seals(january)
    with pytest.raises(IntegrityError, match="no seal by the custodian's key: restore it; a release of an earlier ver"):
        Ledger.open(Release(january.root, KEY))
    with pytest.raises(AnonymizerError, match="verify --seal"):
        run(follow(january, Path("in"), Path("february")))


def test_it_is_sealed_once_every_check_has_passed_and_then_followed(january: Release, publisher: str) -> None:
    before = tree("january/public")
    assert outcomes(publisher, seal=True)["seals"] == "pass"
    assert tree("january/public") == before and not adoption.lacks_seals(january)
    results = outcomes(publisher)
    assert "fail" not in results.values() and "seals" not in results
    assert outcomes(publisher, seal=True)["seals"] == "note"  # once is enough
    sealed = Release(january.root, KEY)
    assert plan.read(sealed).key_check == KEY.check_value and plan.read_config(sealed).output.uri == "january"
    assert [len(table) for _, table in Ledger.open(sealed).scan()] == [2, 2]
    february = run(follow(january, Path("in"), Path("february")))
    assert {row["kept"] for row in rows(february)} == {True} and released(february) == released(sealed)


def test_what_does_not_verify_is_not_sealed(january: Release, publisher: str) -> None:
    ledger = january.shard_ledger(0)
    ledger.write(january.shard_ledger(1).read())
    before = plan.read(january)
    assert outcomes(publisher, seal=True)["ledger"] == "fail"
    assert adoption.lacks_seals(january) and plan.read(january) == before


def test_sealing_needs_both_keys(january: Release, publisher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SigningKeyError, match="--seal: name the publisher's public key with --trust"):
        api.verify("january", rescore=0, seal=True)
    monkeypatch.delenv("ANONYMIZER_KEY")
    with pytest.raises(CustodianKeyError, match="--seal: needs the custodian's key that the release was made with"):
        api.verify("january", [publisher], rescore=0, seal=True)
    assert adoption.lacks_seals(january)


def test_only_the_custodian_can_say_that_a_release_was_sealed(january: Release, publisher: str) -> None:
    """A forged ledger, and an event by somebody without a key that calls it the signed one."""
    signed = Ledger.open(january).digest()
    rows = Ledger.open(january).read_shard(0)
    assert rows is not None
    captions = pa.array(["forged"] * len(rows), pa.string())
    forged = rows.set_column(rows.schema.get_field_index("caption"), rows.schema.field("caption"), captions)
    january.shard_ledger(0).write(parquet.to_bytes(forged))
    event_log.record(january, event_log.ADOPTED_EVENT, ledger=Ledger.open(january).digest(), signed=signed)
    results = outcomes(publisher, seal=True)
    assert results["ledger"] == "fail" and results["seals"] == "note"
    assert adoption.lacks_seals(january)
    with pytest.raises(IntegrityError, match="--seal: the ledger is not the one that was there when the release was"):
        adoption.adopt(january, KEY)


def test_a_record_is_erased_from_it_once_it_is_sealed(january: Release, publisher: str, tmp_path: Path) -> None:
    (request := tmp_path / "withdrawn.txt").write_text("a/person 0.png\n")
    with pytest.raises(AnonymizerError):
        erase_job.run("january", request, "later")
    assert outcomes(publisher, seal=True)["seals"] == "pass"
    summary = erase_job.run("january", request, "later")
    assert (summary.released, summary.erased, summary.published) == (3, 1, True)
