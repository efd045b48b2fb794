"""An erasure is finished by the last approval, seen until then, and destroys one release: the one that was signed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.attest import dsse, statement
from anonymizer.errors import AnonymizerError, ConfigError, IntegrityError, OutputError, UsageError
from anonymizer.records import Scores
from anonymizer.release import approval, event_log, plan, publish, succession
from anonymizer.storage.layout import STATEMENT, Release
from anonymizer.storage.path import StoragePath
from flows.cli import main
from flows.jobs import erase as erase_job
from tests.support.interruptions import Stop, named, stop_at
from tests.support.releases import HEX, Unscored, folder_of, follow, picture, run, settings, tree, verification_failures
from tests.support.signed_release import flipped_bit, read_predicate, write_statement
from tests.support.signing_keys import ADA, EVE, PUBLISHER, VARIABLE, pem, public_key

SECTIONS: dict[str, Any] = {
    "source": {"subject": "folder"},
    "policy": {"approvals": 1, "approvers": {"ada": public_key(ADA)}},
}
SCORER = Unscored(Scores())
LOG = "restricted/events.jsonl"
UNFINISHED = "an erasure is not finished"
TRUST = (public_key(PUBLISHER),)


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    monkeypatch.setenv("COLUMNS", "500")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder and a copy of it, with releases that have one approver: ``january``, ``old``, which follows it, and
    ``march``, which follows that and waits for approval, as does ``new``, which is ``old`` without a person."""
    folder = tmp_path_factory.mktemp("made") / "place"
    source = folder_of(folder / "in", {f"{'AB'[i % 2]}/{i}.png": picture(i) for i in range(4)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANONYMIZER_KEY", HEX)
        patch.setenv(VARIABLE, pem(PUBLISHER))
        publish.approve(run(settings(source, folder / "january", **SECTIONS), scorer=SCORER), ADA)
        folder_of(source, {"B/4.png": picture(4)})
        publish.approve(run(follow(str(folder / "january"), source, folder / "old", **SECTIONS), scorer=SCORER), ADA)
        run(follow(str(folder / "old"), source, folder / "march", **SECTIONS), scorer=SCORER)
        erase(folder, "new")
    shutil.copytree(folder, folder.parent / "copy")
    return folder, folder.parent / "copy"


@pytest.fixture
def place(made: tuple[Path, Path]) -> Path:
    """The folder as it was made; at one address, which its files hold."""
    folder, copy = made
    shutil.rmtree(folder)
    return Path(shutil.copytree(copy, folder))


def erase(place: Path, output: str, *lines: str) -> erase_job.ErasureSummary:
    (file := place / "withdrawn.txt").write_text("\n".join(lines or ["subject:A"]))
    return erase_job.run(str(place / "old"), file, str(place / output))


def at(path: Path) -> Release:
    return Release.at(str(path))


def command(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def approve_command(place: Path, release: str) -> str:
    (key := place / "ada.key").write_text(pem(ADA))
    return command("approve", place / release, "--key", key, "--trust", public_key(PUBLISHER))


def destroyed(place: Path, release: str) -> bool:
    return set(tree(place / release)) == {LOG}


# -- what is said -----------------------------------------------------------------------------------------------------


def test_until_the_last_approval_both_say_so_first_and_nothing_says_erased(
    place: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    words = ("erase", place / "old", "--records", place / "withdrawn.txt", "--output", place / "new")
    for printed in (command(*words), command("status", place / "old"), command("status", place / "new")):
        assert "Erased" not in printed and " erased " not in printed.replace("is to be erased", "").replace(
            "nothing is erased", ""
        ).replace("Nothing is erased", ""), printed
    assert json.loads(command(*words, "--json")) | {"cautions": ()} == {
        **{"released": 3, "erased": 0, "pending": 2, "revoked": 0, "published": False, "cautions": ()},
        "standing": "not published: 0 of 1 approvals, see `anonymizer approve`",
    }
    assert "Nothing is erased yet: 2 records wait" in command(*words)
    for release in ("old", "new"):
        assert UNFINISHED in command("status", place / release).splitlines()[0]
        assert UNFINISHED in json.loads(command("status", place / release, "--json"))["erasure"]
    assert json.loads(command("status", place / "old", "--json"))["state"] != "complete"
    kinds = {event["event"] for release in ("old", "new") for event in event_log.read(at(place / release))}
    assert not {"erased", "destroyed", "destroying"} & kinds

    printed = approve_command(place, "new")
    assert "Approved; published" in printed and "destroyed, but for its event log" in printed
    assert destroyed(place, "old")
    assert UNFINISHED not in command("status", place / "new")
    assert json.loads(command("status", place / "new", "--json"))["erasure"] is None
    assert json.loads(command(*words, "--json"))["erased"] == 2


def test_the_last_approval_needs_no_key_of_the_custodian_or_publisher(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANONYMIZER_KEY")
    monkeypatch.delenv(VARIABLE)
    assert publish.approve(at(place / "new"), ADA, TRUST).is_published and destroyed(place, "old")
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    assert verification_failures(at(place / "new")) == []


def test_approving_twice_with_one_key_says_so(place: Path) -> None:
    new = at(place / "new")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, StoragePath, "move_to", named("/candidate"))
        publish.approve(new, ADA, TRUST)
    printed = approve_command(place, "new")
    assert "Already approved with this key: nothing was added; published" in printed and destroyed(place, "old")


def test_approval_wants_the_key_of_the_publisher(place: Path) -> None:
    (key := place / "ada.key").write_text(pem(ADA))
    without = CliRunner().invoke(main, ["approve", str(place / "new"), "--key", str(key)])
    assert without.exit_code == 2 and "--trust" in without.stderr
    words = ["approve", str(place / "new"), "--key", str(key), "--trust", public_key(EVE)]
    other = CliRunner().invoke(main, words)
    assert other.exit_code == 1 and "none of the keys that are trusted" in other.stderr
    assert not at(place / "new").is_published and publish.read_status(at(place / "new")).approved_by == ()  # type: ignore[union-attr]


# -- one at a time ----------------------------------------------------------------------------------------------------


def test_a_release_that_is_being_erased_from_is_followed_by_no_other(place: Path) -> None:
    with pytest.raises(ConfigError, match="an erasure from it is not finished: finish that one, and name"):
        run(follow(str(place / "old"), place / "in", place / "april", **SECTIONS), scorer=SCORER)
    with pytest.raises(ConfigError, match="an erasure from it is not finished"):  # begun before, and signed
        publish.approve(at(place / "march"), ADA, TRUST)
    assert not at(place / "march").is_published


def test_no_second_erasure_begins_before_the_first_is_finished(place: Path) -> None:
    """The one that is published first would destroy what the other is made of, and people come back."""
    with pytest.raises(OutputError, match="an erasure from it is not finished: finish that one, then erase the others"):
        erase(place, "second", "subject:B")
    assert not (place / "second").exists()


def test_an_erasure_is_given_up_with_a_reason(place: Path) -> None:
    assert "Cancelled" in command("erase", place / "old", "--cancel", "named the wrong person")
    assert event_log.read(at(place / "old"))[-1]["details"]["reason"] == "named the wrong person"
    assert json.loads(command("status", place / "old", "--json"))["erasure"] is None
    assert tree(place / "new") == {}  # it was signed, and an approver could publish it
    with pytest.raises(IntegrityError, match="nothing to approve"):
        publish.approve(at(place / "new"), ADA, TRUST)
    with pytest.raises(UsageError, match="nothing to cancel"):
        succession.cancel(plan.open_with_key(str(place / "old")), "again")
    assert erase(place, "second", "subject:B").pending == 3
    assert publish.approve(at(place / "second"), ADA, TRUST).is_published and destroyed(place, "old")
    with pytest.raises(OutputError, match="it was erased"):
        succession.cancel(plan.open_with_key(str(place / "old")), "too late")


# -- which one is destroyed -------------------------------------------------------------------------------------------


def test_an_interrupted_destruction_is_seen_and_finished(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, StoragePath, "remove", named("/old/restricted/config.yaml"))
        publish.approve(at(place / "new"), ADA, TRUST)
    for release in ("old", "new"):
        assert UNFINISHED in command("status", place / release).splitlines()[0]
    with pytest.raises(UsageError, match="is being destroyed already"):
        succession.cancel(plan.open_with_key(str(place / "old")), "too late")
    assert erase(place, "new").erased == 2 and destroyed(place, "old")


def moved(place: Path) -> None:
    (place / "old").rename(place / "elsewhere")


def replaced_by_january(place: Path) -> None:
    shutil.rmtree(place / "old")
    shutil.copytree(place / "january", place / "old")


def without_statement(place: Path) -> None:
    (place / "old/public" / STATEMENT).unlink()


def damaged_statement(place: Path) -> None:
    (place / "old/public" / STATEMENT).write_bytes(b"{}\n")


@pytest.mark.parametrize("tamper", [moved, replaced_by_january, without_statement, damaged_statement])
@pytest.mark.parametrize("is_published", [False, True])
def test_another_release_at_the_old_address_is_left_as_it_is(
    place: Path, tamper: Callable[[Path], None], is_published: bool
) -> None:
    """Before the last approval, and after the publication but before the destruction."""
    if is_published:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            stop_at(patch, succession, "finish")
            publish.approve(at(place / "new"), ADA, TRUST)
    tamper(place)
    before = {name: data for name, data in tree(place).items() if "new/" not in name and "withdrawn" not in name}
    with pytest.raises(AnonymizerError, match=r"is not the release that this one was signed to|was left as it is|not"):
        erase(place, "new") if is_published else publish.approve(at(place / "new"), ADA, TRUST)
    after = tree(place)
    assert {name: after[name] for name in before} == before
    assert at(place / "new").is_published == is_published
    assert not any(event["event"] == "predecessor destroyed" for event in event_log.read(at(place / "new")))


def test_the_new_release_must_verify_before_the_old_one_goes(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, succession, "finish")
        publish.approve(at(place / "new"), ADA, TRUST)
    next((place / "new/public").rglob("*.png")).write_bytes(b"x")
    before = tree(place / "old")
    with pytest.raises(IntegrityError, match=r"does not verify .*the old one was left as it is"):
        erase(place, "new")
    assert tree(place / "old") == before


# -- by somebody who can write to storage, and holds no key -----------------------------------------------------------


def forged_log(release: Path, *kinds: str, **details: Any) -> None:
    """Write a log in which the chain holds, as anybody can."""
    log = at(release)
    events = event_log.read(log) if (release / LOG).exists() else []
    (release / LOG).unlink()
    for kind in kinds:
        event_log.record(log, kind, **details)
    for event in events:
        event_log.record(log, event["event"], actor=event["actor"], **event["details"])


def resign(place: Path, release: str, change: Callable[[dict[str, Any]], object], by: Any = None) -> None:
    """Change the last decision, and sign it with another key or none."""
    path = place / release / "restricted/decisions.intoto.jsonl"
    *earlier, last = dsse.loads(path.read_bytes(), publish.DECISION_PREDICATE)
    predicate = dict(last.predicate)
    change(predicate)
    made = dsse.build(publish.DECISION_PREDICATE, last.digests, predicate, by)
    path.write_bytes(dsse.dumps([*earlier, made]))


def set_config(place: Path, release: str, previous: str) -> None:
    path = place / release / "restricted/config.yaml"
    text = path.read_text()
    assert str(place / "old") in text
    path.write_text(text.replace(str(place / "old"), str(place / previous)))


TAMPERINGS: dict[str, Callable[[Path], object]] = {
    "march pretends to take the place of old": lambda place: forged_log(place / "march", "erasing", records=1),
    "march's decision says so, unsigned": lambda place: resign(place, "march", lambda p: p.update(replaces=True)),
    "march's decision says so, signed by another": lambda place: resign(
        place, "march", lambda p: p.update(replaces=True), EVE
    ),
    "the decision of new stands in for march's": lambda place: shutil.copy(
        place / "new/restricted/decisions.intoto.jsonl", place / "march/restricted/decisions.intoto.jsonl"
    ),
    "new's settings name january": lambda place: set_config(place, "new", "january"),
    "new's decision names january": lambda place: resign(
        place, "new", lambda p: p.update(previous=str(place / "january")), EVE
    ),
    "new's decision is gone": lambda place: (place / "new/restricted/decisions.intoto.jsonl").unlink(),
    "new's decision is empty": lambda place: (place / "new/restricted/decisions.intoto.jsonl").write_bytes(b""),
    "new's decision has another policy": lambda place: resign(place, "new", lambda p: p.update(policy={}), EVE),
    "new's log says that all is done": lambda place: forged_log(place / "new", "predecessor destroyed"),
    "new's log is gone": lambda place: (place / "new" / LOG).unlink(),
    "old's log says that it is gone": lambda place: event_log.record(at(place / "old"), "destroyed"),
    "old's log is gone": lambda place: (place / "old" / LOG).unlink(),
    "the statement of march in new": lambda place: shutil.copy(
        place / "march/restricted/candidate" / STATEMENT, place / "new/restricted/candidate" / STATEMENT
    ),
    "the candidate of march in new": lambda place: (
        shutil.rmtree(place / "new/restricted/candidate"),
        shutil.copytree(place / "march/restricted/candidate", place / "new/restricted/candidate"),
    ),
    "old's public half in new's candidate": lambda place: (
        shutil.rmtree(place / "new/restricted/candidate"),
        shutil.copytree(place / "old/public", place / "new/restricted/candidate"),
    ),
    "another audit": lambda place: folder_of(place / "new/restricted/audit", {"public.json": b"{}"}),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_nothing_is_destroyed_or_published_but_what_was_signed(place: Path, tampering: str) -> None:
    candidates = {name: tree(place / name / "restricted/candidate") for name in ("new", "march")}
    january, old = tree(place / "january"), tree(place / "old/public")
    TAMPERINGS[tampering](place)
    for name, candidate in candidates.items():
        with suppress(AnonymizerError):
            publish.approve(at(place / name), ADA, TRUST)
        if at(place / name).is_published:
            public = tree(place / name / "public")
            assert {**public, STATEMENT: b""} == {**candidate, STATEMENT: b""}
    assert tree(place / "january") == january
    if not at(place / "new").is_published:
        assert tree(place / "old/public") == old
    elif not destroyed(place, "old"):
        assert UNFINISHED in command("status", place / "new").splitlines()[0]


def test_a_release_that_was_signed_for_another_place_is_not_approved_there(place: Path) -> None:
    """Its signatures hold, and somebody put it in the place of the one that waits."""
    for name in ("candidate", "decisions.intoto.jsonl"):
        part = place / "new/restricted" / name
        shutil.rmtree(part) if part.is_dir() else part.unlink()
        (shutil.copytree if name == "candidate" else shutil.copy)(place / "march/restricted" / name, part)
    with pytest.raises(IntegrityError, match=r"was decided on at another address, .*/march', and may be another"):
        publish.approve(at(place / "new"), ADA, TRUST)
    assert not at(place / "new").is_published and at(place / "old").is_published


def test_a_release_under_another_path_is_approved_with_its_statement(place: Path) -> None:
    (place / "link").symlink_to(place / "march")
    digest = publish.read_statement(at(place / "march")).digest
    succession.cancel(plan.open_with_key(str(place / "old")), "march may go on")
    with pytest.raises(IntegrityError, match=f"pin it: --statement {digest}"):
        publish.approve(at(place / "link"), ADA, TRUST)
    with pytest.raises(IntegrityError, match="has another statement than the pinned one"):
        publish.approve(at(place / "link"), ADA, TRUST, "0" * 64)
    assert publish.approve(at(place / "link"), ADA, TRUST, digest).is_published


def test_what_is_exchanged_while_it_is_read_is_neither_signed_nor_published(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check and the signature, and between the check before the move and the move."""
    new, eve = at(place / "new"), place / "eve"
    genuine, candidate = approval.check_public, place / "new/restricted/candidate"
    shutil.copytree(candidate, eve)
    (eve / "README.md").write_text("by Eve")
    predicate = read_predicate(eve) | {"publisher": public_key(EVE)}
    write_statement(eve, predicate, dict(publish.read_statement(new).digests), by=[EVE])

    def exchange(source: Path) -> None:
        shutil.rmtree(candidate)
        shutil.copytree(source, candidate)

    for module, planted in ((approval, eve), (publish, place / "march/restricted/candidate"), (publish, eve)):

        def slow(*words: Any, planted: Path = planted, **options: Any) -> Any:
            yield from genuine(*words, **options)
            exchange(planted)

        copy = shutil.copytree(candidate, place / f"copy {module.__name__} {planted.name}")
        with monkeypatch.context() as patch, pytest.raises(AnonymizerError):
            patch.setattr(module, "check_public", slow)
            publish.approve(new, ADA, TRUST)
        signed = statement.read(StoragePath.from_uri(str(new.public_or_candidate)))
        assert not signed.is_signed_by(ADA.public_key) or signed.predicate["publisher"] == public_key(PUBLISHER)
        assert at(place / "old").is_published
        (shutil.rmtree(place / "new/public"), candidate.mkdir()) if new.is_published else None
        exchange(copy)


def test_a_destroyed_release_that_is_put_back_is_followed_by_none_and_erased_from_by_none(place: Path) -> None:
    """Its seals and signatures hold, and its own log knows nothing of the erasure."""
    shutil.copytree(place / "old", place.parent / "backup")
    lines = (place.parent / "backup" / LOG).read_bytes().splitlines(keepends=True)  # as they were before it
    (place.parent / "backup" / LOG).write_bytes(b"".join(line for line in lines if b"erasure begun" not in line))
    for is_published in (False, True):
        if is_published:
            publish.approve(at(place / "new"), ADA, TRUST)
        shutil.rmtree(place / "old")
        shutil.copytree(place.parent / "backup", place / "old")
        with pytest.raises(ConfigError, match=r"people are erased from it, or were, by .*/new'"):
            run(follow(str(place / "old"), place / "in", place / "april", **SECTIONS), scorer=SCORER)
        with pytest.raises(ConfigError, match=r"people are erased from it, or were, by .*/new'"):
            publish.approve(at(place / "march"), ADA, TRUST)
        with pytest.raises(OutputError, match=r"people are erased from it, or were, by .*/new'"):
            erase(place, "second", "subject:B")
        if not is_published:
            shutil.rmtree(place / "old")
            shutil.copytree(place.parent / "copy/old", place / "old")
    shutil.rmtree(place.parent / "backup")


def test_an_erasure_under_way_is_known_without_the_end_of_the_log(place: Path) -> None:
    """Anybody can cut it off; the release that takes the place of this one knows of it, too."""
    log = place / "old" / LOG
    lines = [line for line in log.read_bytes().splitlines(keepends=True) if b"erasure begun" not in line]
    log.write_bytes(b"".join(lines))
    with pytest.raises(ConfigError, match=r"people are erased from it, or were, by .*/new'"):
        run(follow(str(place / "old"), place / "in", place / "april", **SECTIONS), scorer=SCORER)
    with pytest.raises(OutputError, match=r"people are erased from it, or were, by .*/new'"):
        erase(place, "second", "subject:B")


def test_a_cancelled_successor_that_is_put_back_is_not_approved(place: Path) -> None:
    copy = shutil.copytree(place / "new", place / "backup")
    succession.cancel(plan.open_with_key(str(place / "old")), "named the wrong person")
    shutil.rmtree(place / "new")
    shutil.move(copy, place / "new")
    with pytest.raises(ConfigError, match="was cancelled"):
        publish.approve(at(place / "new"), ADA, TRUST)
    assert at(place / "old").is_published and not at(place / "new").is_published


def guarded(place: Path) -> Iterator[Path]:
    folder = place / "new/restricted"
    yield folder / "decisions.intoto.jsonl"
    yield from (path for path in sorted((folder / "candidate").rglob("*")) if path.is_file())


@hypothesis_settings(
    max_examples=40, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_bit_of_what_is_approved_can_be_another(place: Path, data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(list(guarded(place))))
    begin = file.read_bytes()[:-1].rfind(b"\n") + 1 if file.suffix == ".jsonl" else 0  # of the last line
    position = data.draw(st.integers(begin, file.stat().st_size - 1))
    with flipped_bit(file, position, data.draw(st.integers(0, 7))):
        with pytest.raises(AnonymizerError):
            publish.approve(at(place / "new"), ADA, TRUST)
        assert not at(place / "new").is_published and at(place / "old").is_published
