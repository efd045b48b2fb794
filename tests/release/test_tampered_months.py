"""An attacker who can write to every earlier release and holds no key: nothing of theirs is signed or published."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.attest import dsse, revocation
from anonymizer.config import RunConfig
from anonymizer.errors import AnonymizerError
from anonymizer.records import Scores
from anonymizer.release.plan import resolve_config
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage.layout import Release
from flows.jobs import erase as erase_job
from tests.support.releases import (
    HEX,
    KEY,
    Unscored,
    begin,
    folder_of,
    follow,
    one_shard,
    outputs,
    picture,
    plain,
    rows,
    run,
    settings,
    tree,
)
from tests.support.signed_release import read_predicate, write_statement
from tests.support.signing_keys import EVE, PUBLISHER, VARIABLE, pem, public_key

SUBJECT: dict[str, Any] = {"source": {"subject": "folder"}, "policy": {"scores": {"lpips": {"min": 0.0001}}}}
SCORER = Unscored(Scores())  # black originals have no score, and their outputs are held back


@dataclass
class World:
    """January, from which Ben was erased; February after it; and the settings of March."""

    root: Path
    january: Path
    february: Path
    config: RunConfig
    files: Mapping[str, bytes]  # of january and february, as they were made
    expected: Any  # what March is when nobody has touched anything

    def restore(self) -> None:
        for folder in (self.january, self.february, self.root / "march"):
            shutil.rmtree(folder, ignore_errors=True)
        for name, data in self.files.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.root / name).write_bytes(data)
        for folder in (self.january, self.february):
            for path in [folder / "restricted", *(folder / "restricted").rglob("*")]:
                path.chmod(0o700 if path.is_dir() else 0o600)

    def attempt(self) -> str:
        """Make March; "refused" in one line and without a signature, or "same" as if nobody had touched anything."""
        march = self.root / "march"
        try:
            release = run(self.config, scorer=SCORER)
        except AnonymizerError as error:
            assert "\n" not in str(error)
            assert not (march / "public").exists()
            assert not any(b'"sig"' in d for name, d in tree(march).items() if name.endswith("release.intoto.jsonl"))
            return "refused"
        assert outcome(release) == self.expected, "something of the attacker's was published"
        return "same"


def outcome(release: Release) -> Any:
    """What is published, and what became of each record."""
    ends = {row["record_id"]: (row["status"], row["reason"], row["kept"]) for row in rows(release)}
    revoked = (release.public / "revocations.intoto.jsonl").read()
    erased = sorted(map(str, pq.read_table(release.erased.path).to_pylist()))
    return outputs(release), ends, revoked, erased


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("months")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANONYMIZER_KEY", HEX)
        patch.setenv(VARIABLE, pem(PUBLISHER))
        names = ["Ada/0", "Ada/1", "Ben/2", "Cyd/3", "Cyd/4", "Dan/5"]
        source = folder_of(root / "in", {f"{name}.png": picture(i) for i, name in enumerate(names)})
        folder_of(source, {"Eve/black.png": plain(0)})
        run(settings(source, root / "first", **SUBJECT), scorer=SCORER)
        (root / "names.txt").write_text("subject:Ben\n")
        erase_job.run(str(root / "first"), root / "names.txt", str(root / "january"))
        away = (source / "Dan/5.png").read_bytes()
        (source / "Dan/5.png").unlink()
        folder_of(source, {"Flo/6.png": picture(6)})
        run(follow(str(root / "january"), source, root / "february", **SUBJECT), scorer=SCORER)
        (source / "Dan/5.png").write_bytes(away)  # back after a month; and Ben is still in the source
        folder_of(source, {"Gil/7.png": picture(7)})
        config = follow(str(root / "february"), source, root / "march", **SUBJECT)
        files = {name: d for name, d in tree(root).items() if name.startswith(("january/", "february/"))}
        expected = outcome(run(config, scorer=SCORER))
        assert expected[1]["Ben/2.png"] == ("failed", "withdrawn", False)
        assert sum(kept for _, _, kept in expected[1].values()) == 6 and len(expected[0]) == 7
        yield World(root, root / "january", root / "february", config, files, expected)


@pytest.fixture
def months(world: World) -> World:
    world.restore()
    return world


# -- manipulations that were thought of -------------------------------------------------------------------------------

Tamper = Callable[[Path], object]
ORIGINAL = picture(0)


def images(half: Path) -> list[Path]:
    return sorted((half / "public/images").rglob("*.png"))


def change_table(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(file)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), file)


def set_column(name: str, values: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        field = table.schema.field(name)
        return table.set_column(at, field, pa.array(values(table[name].to_pylist()), field.type))

    return change


def ledger(change: Callable[[pa.Table], pa.Table], shard: int = 0) -> Tamper:
    return lambda half: change_table(half / f"restricted/ledger/shard-{shard:05d}.parquet", change)


def manifest(change: Callable[[pa.Table], pa.Table]) -> Tamper:
    return lambda half: change_table(half / "public/manifest.parquet", change)


def edit(name: str, change: Callable[[Any], object]) -> Tamper:
    """Change a JSON file in place."""

    def do(half: Path) -> None:
        document = json.loads((half / name).read_bytes())
        change(document)
        (half / name).write_text(json.dumps(document))

    return do


def remove(*names: str) -> Tamper:
    def do(half: Path) -> None:
        for name in names:
            path = half / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return do


def write(name: str, data: bytes) -> Tamper:
    return lambda half: (half / name).write_bytes(data)


def take_from_other(name: str) -> Tamper:
    """The same file of the other release: sealed and signed, and not for this one."""
    return lambda half: (half / name).write_bytes((other(half) / name).read_bytes())


def other(half: Path) -> Path:
    return half.parent / {"january": "february", "february": "january"}[half.name]


def put_original(half: Path) -> None:
    images(half)[0].write_bytes(ORIGINAL)


def put_original_everywhere(half: Path) -> None:
    """In picture, manifest, ledger, event chain and statement; what is signed stays as it was, but for one bit."""
    file = images(half)[0]
    before, after = hashlib.sha256(file.read_bytes()).hexdigest(), hashlib.sha256(ORIGINAL).hexdigest()
    file.write_bytes(ORIGINAL)
    swap = set_column("sha256", lambda values: [after if value == before else value for value in values])
    change_table(half / "public/manifest.parquet", swap)
    for path in (half / "restricted/ledger").iterdir():
        change_table(path, swap)
    statement = half / "public/release.intoto.jsonl"
    line = json.loads(statement.read_bytes())
    signature = line["signatures"][0]["sig"]
    line["signatures"][0]["sig"] = ("B" if signature[0] == "A" else "A") + signature[1:]
    statement.write_text(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n")


def sign_as(signer: Any, publisher: str | None = None) -> Tamper:
    """Write a statement about what lies there by now."""

    def do(half: Path) -> None:
        put_original(half)
        folder = half / "public"
        predicate = read_predicate(folder)
        if publisher is not None:
            predicate["publisher"] = publisher
        write_statement(folder, predicate, dict(_digests(folder)), [signer])

    return do


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not name.startswith(("images/", "release.")):
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()


def shorten_revocations(half: Path) -> None:
    for name in ("public", "restricted"):
        path = half / name / "revocations.intoto.jsonl"
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def revoke_as_attacker(half: Path) -> None:
    data = dsse.dumps([revocation.build({"a" * 32: "b" * 64}, EVE)])
    for name in ("public", "restricted"):
        path = half / name / "revocations.intoto.jsonl"
        path.write_bytes(path.read_bytes() + data)


def rewrite_events(half: Path) -> None:
    """A chain that is whole, as far as it needs no key."""
    path = half / "restricted/events.jsonl"
    lines, previous = [], "0" * 64
    for line in path.read_bytes().splitlines():
        event = json.loads(line)
        event.pop("hmac", None)
        event.pop("sha256", None)
        event["previous"] = previous
        event["sha256"] = hashlib.sha256(json.dumps(event, sort_keys=True).encode()).hexdigest()
        lines.append(json.dumps(event, sort_keys=True).encode())
        previous = hashlib.sha256(lines[-1]).hexdigest()
    path.write_bytes(b"\n".join(lines) + b"\n")


def replace_release(half: Path) -> None:
    """Everything of the other month, which is signed and sealed."""
    shutil.rmtree(half)
    shutil.copytree(other(half), half)


def empty_erased(half: Path) -> None:
    change_table(half / "restricted/erased.parquet", lambda table: table.slice(0, 0))


def empty_erased_in_the_plan_too(half: Path) -> None:
    empty_erased(half)
    digest = hashlib.sha256((half / "restricted/erased.parquet").read_bytes()).hexdigest()
    edit("restricted/plan.json", lambda plan: plan["inherited"].update({"erased.parquet": digest}))(half)


def rotate(values: list[Any]) -> list[Any]:
    return values[1:] + values[:1]


BOTH = {  # manipulations of either month
    "an original for an output": put_original,
    "an original for an output, everywhere": put_original_everywhere,
    "signed again by the attacker": sign_as(EVE, public_key(EVE)),
    "signed again by the attacker in the publisher's name": sign_as(EVE),
    "no statement": remove("public/release.intoto.jsonl"),
    "the other month's statement": take_from_other("public/release.intoto.jsonl"),
    "no revocations in public": remove("public/revocations.intoto.jsonl"),
    "no revocations in the restricted half": remove("restricted/revocations.intoto.jsonl"),
    "no revocations at all": remove("public/revocations.intoto.jsonl", "restricted/revocations.intoto.jsonl"),
    "a shorter list of revocations": shorten_revocations,
    "a revocation by the attacker": revoke_as_attacker,
    "a stray file": write("public/stray.txt", b"x"),
    "a picture less": lambda half: images(half)[0].unlink(),
    "a row less in the manifest": manifest(lambda table: table.slice(1)),
    "another label in the manifest": manifest(set_column("label", lambda values: ["x"] * len(values))),
    "another level in the manifest": manifest(set_column("level", lambda values: [0.99] * len(values))),
    "another report": write("public/report.html", b"x"),
    "digests exchanged in the ledger": ledger(set_column("sha256", rotate)),
    "originals exchanged in the ledger": ledger(set_column("source_hmac", rotate)),
    "other scores in the ledger": ledger(set_column("lpips", lambda values: [9.0] * len(values))),
    "all released in the ledger": ledger(set_column("status", lambda values: ["released"] * len(values))),
    "nothing released in the ledger": ledger(set_column("status", lambda values: ["failed"] * len(values))),
    "a shard less": remove("restricted/ledger/shard-00000.parquet"),
    "no ledger": remove("restricted/ledger"),
    "no plan": remove("restricted/plan.json"),
    "no manifest": remove("public/manifest.parquet"),
    "no public half": remove("public"),
    "no restricted half": remove("restricted"),
    "shards exchanged": lambda half: shutil.copy(
        half / "restricted/ledger/shard-00001.parquet", half / "restricted/ledger/shard-00000.parquet"
    ),
    "the other month's shard": take_from_other("restricted/ledger/shard-00000.parquet"),
    "another level in the plan": edit("restricted/plan.json", lambda plan: plan.update(level=0.1)),
    "no key in the plan": edit("restricted/plan.json", lambda plan: plan.update(key_check=None)),
    "another address in the plan": edit("restricted/plan.json", lambda plan: plan.update(output="/elsewhere")),
    "the other month's plan": take_from_other("restricted/plan.json"),
    "a planned record less": take_from_other("restricted/plan/shard-00000.json"),
    "no policy in the settings": lambda half: (half / "restricted/config.yaml").write_bytes(
        (half / "restricted/config.yaml").read_bytes().replace(b"lpips:", b"clip_similarity:")
    ),
    "the other month's settings": take_from_other("restricted/config.yaml"),
    "nobody erased": empty_erased,
    "nobody erased, and the plan agrees": empty_erased_in_the_plan_too,
    "no list of the erased": remove("restricted/erased.parquet"),
    "no list of releases": write("restricted/before.json", b"[]"),
    "a list of the attacker's releases": write("restricted/before.json", b'["/tmp/attacker"]'),
    "the list of releases is gone": remove("restricted/before.json"),
    "no events": remove("restricted/events.jsonl"),
    "events cut off": lambda half: (half / "restricted/events.jsonl").write_bytes(
        b"".join((half / "restricted/events.jsonl").read_bytes().splitlines(keepends=True)[:2])
    ),
    "events chained anew": rewrite_events,
    "the other month's events": take_from_other("restricted/events.jsonl"),
    "no decision": remove("restricted/decisions.intoto.jsonl"),
    "the other month's decision": take_from_other("restricted/decisions.intoto.jsonl"),
    "an original in the quarantine": lambda half: next((half / "restricted/quarantine").iterdir()).write_bytes(
        ORIGINAL
    ),
    "the other month in its place": replace_release,
}


@pytest.mark.parametrize("month", ["february", "january"])
@pytest.mark.parametrize("tamper", BOTH)
def test_every_manipulation_of_an_earlier_release_is_found(months: World, tamper: str, month: str) -> None:
    assert len(BOTH) >= 40
    BOTH[tamper](months.root / month)
    assert months.attempt() == "refused"


def test_untouched_months_are_followed(months: World) -> None:
    assert months.attempt() == "same"
    for month in (months.january, months.february):
        release = Release.at(str(month), KEY)
        assert [f for f in check_restricted(release, resolve_config(release), KEY) if f.result == "fail"] == []


# -- manipulations that are drawn -------------------------------------------------------------------------------------

DRAWS = hypothesis_settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Files that no later run reads: pages and locks.
UNREAD = ("restricted/report.html", "restricted/.lock", "restricted/.events.lock")
ACTIONS = ("flip", "cut", "remove", "other file", "append", "random")


def change_file(path: Path, action: str, donor: bytes, position: float, rng: np.random.Generator) -> None:
    data = path.read_bytes()
    at = int(position * max(len(data) - 1, 0))
    if action == "remove":
        path.unlink()
        return
    changed = {
        "flip": lambda: data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :] if data else b"x",
        "cut": lambda: data[:at],
        "other file": lambda: donor,
        "append": lambda: data + donor[: 1 + at],
        "random": lambda: rng.bytes(len(data)),
    }[action]()
    path.write_bytes(changed)


@DRAWS
@given(data=st.data())
def test_any_change_of_any_file_is_refused_or_changes_nothing(world: World, data: st.DataObject) -> None:
    world.restore()
    names = sorted(world.files)
    drawn = []
    for _ in range(data.draw(st.integers(1, 3))):
        name, donor = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
        action, position = data.draw(st.sampled_from(ACTIONS)), data.draw(st.floats(0, 1))
        if (world.root / name).exists():
            change_file(world.root / name, action, world.files[donor], position, np.random.default_rng(0))
            drawn.append(name)
    changed = [name for name in drawn if not (world.root / name).exists() or
               (world.root / name).read_bytes() != world.files[name]]  # fmt: skip
    found = world.attempt()
    if any(name.partition("/")[2] not in UNREAD for name in changed):
        assert found == "refused", changed


@pytest.mark.slow
@DRAWS
@given(data=st.data())
def test_any_change_of_a_run_that_is_under_way_is_refused_or_changes_nothing(world: World, data: st.DataObject) -> None:
    """Plan, inherited lists, staged pictures, ledger and events of a release of which a shard is done."""
    world.restore()
    begin(world.config)
    one_shard(world.config, 0, scorer=SCORER)
    march = world.root / "march"
    files = tree(march)
    name = data.draw(st.sampled_from(sorted(files)))
    donor = data.draw(st.sampled_from(sorted(files)))
    action, position = data.draw(st.sampled_from(ACTIONS)), data.draw(st.floats(0, 1))
    change_file(march / name, action, files[donor], position, np.random.default_rng(0))
    world.attempt()  # refused, or the same
