"""An erasure signs nothing that somebody wrote who can write to any storage and holds no key, and destroys nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.attest import dsse, statement
from anonymizer.errors import AnonymizerError
from anonymizer.records import Scores
from anonymizer.release import event_log, publish
from anonymizer.storage import parquet
from anonymizer.storage.layout import STATEMENT, Release
from anonymizer.storage.path import StoragePath
from flows.jobs import erase as erase_job
from tests.support.releases import (
    HEX,
    Unscored,
    folder_of,
    follow,
    picture,
    plain,
    rows,
    run,
    settings,
    tree,
    verification_failures,
)
from tests.support.signed_release import flipped_bit, read_predicate, sign_again, write_statement
from tests.support.signing_keys import EVE, PUBLISHER, VARIABLE, pem, public_key

SCORER = Unscored(Scores())
SUBJECT: dict[str, Any] = {"source": {"subject": "folder"}}
REQUEST = "subject:A\n"
UNREAD = {"report.html", "README.md"}  # of the restricted half: pages for people, which nothing reads


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder and a copy of it, with ``january``, ``february``, and ``old``, which takes the place of that one."""
    folder = tmp_path_factory.mktemp("made") / "place"
    names = {f"{'ABC'[i % 3]}/{i}.png": picture(i) for i in range(6)} | {"A/black.png": plain(0)}
    source = folder_of(folder / "in", names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANONYMIZER_KEY", HEX)
        patch.setenv(VARIABLE, pem(PUBLISHER))
        run(settings(source, folder / "january", **SUBJECT), scorer=SCORER)
        folder_of(source, {"B/9.png": picture(9)})
        run(follow(str(folder / "january"), source, folder / "february", **SUBJECT), scorer=SCORER)
        (folder / "c.txt").write_text("subject:C\n")
        erase_job.run(str(folder / "february"), folder / "c.txt", str(folder / "old"))
    (folder / "a.txt").write_text(REQUEST)
    shutil.copytree(folder, folder.parent / "copy")
    return folder, folder.parent / "copy"


@pytest.fixture
def place(made: tuple[Path, Path]) -> Path:
    folder, copy = made
    shutil.rmtree(folder)
    return Path(shutil.copytree(copy, folder))


def erase(place: Path) -> erase_job.ErasureSummary:
    return erase_job.run(str(place / "old"), place / "a.txt", str(place / "new"))


def test_what_nobody_changed_is_erased(place: Path) -> None:
    assert erase(place).published
    assert set(tree(place / "old")) == {"restricted/events.jsonl"}
    new = Release.at(str(place / "new"))
    assert {row["subject"] for row in rows(new)} == {"B"} and verification_failures(new) == []


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def original_for_output(place: Path) -> None:
    """Put an original in an output's place, with its digest, and let the publisher's signature fail."""
    public = place / "old/public"
    table, data = pq.read_table(public / "manifest.parquet"), (place / "in/B/1.png").read_bytes()
    (public / table["file"][0].as_py()).write_bytes(data)
    digests = [hashlib.sha256(data).hexdigest(), *table["sha256"].to_pylist()[1:]]
    column = table.schema.get_field_index("sha256")
    pq.write_table(table.set_column(column, "sha256", pa.array(digests)), public / "manifest.parquet")


def with_a_bad_signature(place: Path) -> None:
    path = place / "old/public" / STATEMENT
    (signed,) = dsse.loads(path.read_bytes(), *statement.PREDICATE_TYPES.values())
    unsigned = dsse.build(signed.predicate_type, signed.digests, signed.predicate, EVE)
    path.write_bytes(dsse.dumps([unsigned]))


def signed_by_another(place: Path) -> None:
    original_for_output(place)
    sign_again(place / "old/public", lambda predicate: predicate.update(publisher=public_key(EVE)), by=[EVE])


def change_ledger(place: Path, release: str, **values: Any) -> None:
    """Write values into all rows of a ledger, as anybody can who knows the format."""
    for path in (place / release / "restricted/ledger").iterdir():
        table = pq.read_table(path)
        for name, value in values.items():
            column = table.schema.get_field_index(name)
            field = table.schema.field(name)
            table = table.set_column(column, field, pa.array([value] * len(table), field.type))
        path.write_bytes(parquet.to_bytes(table))


def change_plan(place: Path, release: str, **values: Any) -> None:
    path = place / release / "restricted/plan.json"
    path.write_text(json.dumps(read_json(path) | values))


def change_config(place: Path, release: str, old: str, new: str) -> None:
    path = place / release / "restricted/config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def unlink(*names: str) -> Callable[[Path], object]:
    return lambda place: [(place / name).unlink() for name in names]


def rewrite_log(place: Path, release: str, *kinds: str) -> None:
    """Write a log in which the chain holds, as anybody can."""
    path = place / release / "restricted/events.jsonl"
    events = event_log.read(Release.at(str(place / release))) if path.exists() else []
    path.unlink(missing_ok=True)
    for kind in kinds:
        event_log.record(Release.at(str(place / release)), kind, records=1, copies=0, pictures=1, kept_since=None)
    for event in events:
        event_log.record(Release.at(str(place / release)), event["event"], **event["details"])


def without_seals(place: Path, release: str) -> None:
    """Make a release look as if it had been made without a key."""
    change_plan(place, release, key_check=None, inherited={}, hmac="")
    rewrite_log(place, release)


def planted_successor(place: Path) -> None:
    """A successor that seems to be begun, made of the old release, in which the person stays."""
    shutil.copytree(place / "old/restricted", place / "new/restricted")
    (place / "new/restricted/events.jsonl").unlink()
    rewrite_log(place, "new", "erasing", "planned")
    change_config(place, "new", str(place / "february"), str(place / "old"))
    change_ledger(place, "new", subject="B", record_id=None)


def planted_publication(place: Path) -> None:
    """The same, published under another key, with the old release as the one that it takes the place of."""
    planted_successor(place)
    without_seals(place, "new")
    shutil.copytree(place / "old/public", place / "new/public")
    digest = statement.read(StoragePath.from_uri(str(place / "old/public"))).digest
    predicate = read_predicate(place / "new/public")
    predicate["publisher"] = public_key(EVE)
    predicate["materials"]["previous"] = digest
    subjects = statement.subject_digests(StoragePath.from_uri(str(place / "new/public")))
    write_statement(place / "new/public", predicate, subjects, by=[EVE])


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "an original in an output's place": original_for_output,
    "a statement that another signed": with_a_bad_signature,
    "all of it signed by another": signed_by_another,
    "the person is called otherwise": lambda place: change_ledger(place, "old", subject="B"),
    "the person's records have no subject": lambda place: change_ledger(place, "old", subject=None),
    "all records are quarantined": lambda place: change_ledger(place, "old", status="quarantined"),
    "a record's label": lambda place: change_ledger(place, "old", label="Ada"),
    "digests of other originals": lambda place: change_ledger(place, "old", source_hmac="0" * 64),
    "the ledger is gone": lambda place: shutil.rmtree(place / "old/restricted/ledger"),
    "a shard's ledger in another's place": lambda place: shutil.copy(
        place / "old/restricted/ledger/shard-00000.parquet", place / "old/restricted/ledger/shard-00001.parquet"
    ),
    "the ledger of the release before": lambda place: shutil.copytree(
        place / "january/restricted/ledger", place / "old/restricted/ledger", dirs_exist_ok=True
    ),
    "who was erased is gone": unlink("old/restricted/erased.parquet"),
    "who was erased is nobody": lambda place: pq.write_table(
        pq.read_table(place / "old/restricted/erased.parquet").slice(0, 0), place / "old/restricted/erased.parquet"
    ),
    "the releases before are elsewhere": lambda place: (place / "old/restricted/before.json").write_text(
        json.dumps([str(place / "planted")])
    ),
    "the releases before are gone": unlink("old/restricted/before.json"),
    "revocations are gone from both halves": unlink(
        "old/restricted/revocations.intoto.jsonl", "old/public/revocations.intoto.jsonl"
    ),
    "revocations are gone from one half": unlink("old/restricted/revocations.intoto.jsonl"),
    "a plan of other records": lambda place: (place / "old/restricted/plan/shard-00000.json").write_text("[]"),
    "a plan at another level": lambda place: change_plan(place, "old", level=0.01, t_boom=1),
    "a plan of another model": lambda place: change_plan(place, "old", model="trusted/model"),
    "settings that trust another": lambda place: change_config(
        place, "old", "trust: []", f"trust: ['{public_key(EVE)}']"
    ),
    "settings that publish scores": lambda place: change_config(
        place, "old", "public_scores: binned", "public_scores: exact"
    ),
    "settings of another policy": lambda place: change_config(place, "old", "min_released: 0", "min_released: 1"),
    "settings with another key": lambda place: change_config(
        place, "old", "key_env: ANONYMIZER_KEY", "key_env: ANONYMIZER_OTHER"
    ),
    "a log that anybody wrote": lambda place: rewrite_log(place, "old"),
    "a log that is gone": unlink("old/restricted/events.jsonl"),
    "a log that ends early": lambda place: (place / "old/restricted/events.jsonl").write_bytes(
        b"".join((place / "old/restricted/events.jsonl").read_bytes().splitlines(keepends=True)[:2])
    ),
    "no decision": unlink("old/restricted/decisions.intoto.jsonl"),
    "no seal": lambda place: without_seals(place, "old"),
    "quarantine holds another picture": lambda place: next((place / "old/restricted/quarantine").iterdir()).write_bytes(
        (place / "in/A/black.png").read_bytes()
    ),
    "a file more in public": lambda place: (place / "old/public/more.txt").write_text("more"),
    "a picture is gone": lambda place: next((place / "old/public/images").rglob("*.png")).unlink(),
    "the release before in its place": lambda place: (
        shutil.rmtree(place / "old"), shutil.copytree(place / "january", place / "old")
    ),
    "a successor that was begun": planted_successor,
    "a successor that is published": planted_publication,
    "a candidate that waits there": lambda place: shutil.copytree(
        place / "old/public", place / "new/restricted/candidate"
    ),
}  # fmt: skip


@pytest.mark.parametrize("tampering", TAMPERINGS)
@pytest.mark.parametrize("has_key", [True, False])
def test_what_is_not_as_it_was_signed_and_sealed_is_not_erased_from(
    place: Path, tampering: str, has_key: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    TAMPERINGS[tampering](place)
    if not has_key:
        monkeypatch.delenv("ANONYMIZER_KEY")
    before = tree(place)
    with pytest.raises(AnonymizerError) as caught:
        erase(place)
    assert "\n" not in str(caught.value) and "A/" not in str(caught.value)
    assert tree(place) == before  # nothing is prepared, and the evidence is there


FUZZ = hypothesis_settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.slow
@FUZZ
@given(data=st.data())
def test_no_bit_of_either_half_can_be_another(place: Path, data: st.DataObject) -> None:
    files = [path for path in sorted((place / "old").rglob("*")) if path.is_file() and path.stat().st_size]
    file = data.draw(st.sampled_from([path for path in files if "restricted/report" not in str(path)]))
    position, bit = data.draw(st.integers(0, file.stat().st_size - 1)), data.draw(st.integers(0, 7))
    with flipped_bit(file, position, bit), pytest.raises(AnonymizerError):
        erase(place)
    assert not (place / "new").exists() or not tree(place / "new")


def test_an_erasure_of_anothers_release_names_the_key_that_is_trusted(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, pem(EVE))  # the next publisher
    with pytest.raises(AnonymizerError, match="is not signed by this run's own key or one in trust"):
        erase(place)
    done = erase_job.run(str(place / "old"), place / "a.txt", str(place / "new"), [public_key(PUBLISHER)])
    assert done.published and publish.read_statement(Release.at(str(place / "new"))).predicate["publisher"] == (
        public_key(EVE)
    )


def test_a_release_without_a_signature_is_erased_from_if_it_is_sealed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE)
    run(settings(place / "in", place / "unsigned", **SUBJECT), scorer=SCORER)
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    copy = shutil.copytree(place / "unsigned", place / "copy")
    (place / "unsigned/public/README.md").write_text("more")
    with pytest.raises(AnonymizerError, match=r"does not verify \(digests\)"):
        erase_job.run(str(place / "unsigned"), place / "a.txt", str(place / "new"))
    shutil.rmtree(place / "unsigned")
    shutil.copytree(copy, place / "unsigned")
    assert erase_job.run(str(place / "unsigned"), place / "a.txt", str(place / "new")).published


def test_a_signature_that_was_taken_away_is_missed(place: Path) -> None:
    path = place / "old/public" / STATEMENT
    predicate = read_predicate(place / "old/public") | {"publisher": None}
    (signed,) = dsse.loads(path.read_bytes(), *statement.PREDICATE_TYPES.values())
    write_statement(place / "old/public", predicate, signed.digests, by=[])
    before = tree(place)
    with pytest.raises(AnonymizerError, match="is not signed, and nothing sealed says that it never was"):
        erase(place)
    assert tree(place) == before


def test_a_release_that_was_moved_is_pinned_by_its_statement(place: Path) -> None:
    (place / "old").rename(place / "moved")
    moved = str(place / "moved")
    digest = statement.read(StoragePath.from_uri(f"{moved}/public")).digest
    with pytest.raises(AnonymizerError, match=f"was made for another address, .*{digest}"):
        erase_job.run(moved, place / "a.txt", str(place / "new"))
    with pytest.raises(AnonymizerError, match="has another statement"):
        erase_job.run(moved, place / "a.txt", str(place / "new"), pinned="0" * 64)
    assert erase_job.run(moved, place / "a.txt", str(place / "new"), pinned=digest).published
    assert set(tree(moved)) == {"restricted/events.jsonl"}
