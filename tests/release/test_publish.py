"""Publication: the policy's decision is signed, approvals are counted, and a changed candidate is refused."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anonymizer.attest import dsse, statement
from anonymizer.crypto import signing
from anonymizer.errors import ConfigError, CustodianKeyError, GateError, IntegrityError, SigningKeyError
from anonymizer.records import Scores
from anonymizer.release import event_log, publish
from anonymizer.storage.layout import Release
from flows.cli import main
from tests.support.releases import (
    GARBAGE,
    HEX,
    KEY,
    Unscored,
    folder_of,
    people,
    picture,
    plain,
    released,
    run,
    settings,
    tree,
)
from tests.support.signing_keys import ADA, PUBLISHER, VARIABLE, pem, public_key


@pytest.fixture(autouse=True)
def publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())


def test_a_release_that_breaks_the_policy_is_not_published_and_the_decision_is_signed(tmp_path: Path) -> None:
    config = settings(people(tmp_path / "in", 3), tmp_path / "out", policy={"min_released": 4})
    release = Release.at(config.output.uri)
    with pytest.raises(GateError, match=r"min_released \(at least 4\): 3 released") as caught:
        run(config)
    assert "\n" not in str(caught.value)
    assert not release.public.exists() and not release.statement.exists()
    (decision,) = dsse.loads(release.decision_log.read(), publish.DECISION_PREDICATE)
    assert decision.predicate["result"] == "fail"
    assert set(decision.predicate["rules"][0]) == {"rule", "bound", "found", "result", "is_figure"}
    signer = signing.signer_from_env("ANONYMIZER_SIGNING_KEY")
    assert signer is not None and decision.is_signed_by(signer.public_key)

    waiver = {"rule": "min_released", "who": "Ada", "why": "pilot", "until": "2999-01-01"}
    run(settings(tmp_path / "in", tmp_path / "out", policy={"min_released": 4, "waivers": [waiver]}))
    gate = publish.read_statement(release).predicate["gate"]
    assert gate["result"] == "pass"
    assert gate["rules"] == [{"rule": "min_released", "bound": "at least 4", "result": "waived"}]
    assert gate["waivers"] == [waiver]
    assert [d.predicate["result"] for d in dsse.loads(release.decision_log.read(), publish.DECISION_PREDICATE)] == [
        "fail",
        "pass",
    ]


EMPTY = {  # what stands in the way -> files, settings, and what the error says of it
    "nothing can be read": ({"a.png": GARBAGE, "b.png": b""}, {}, "2 failed (1 empty, 1 not_an_image)"),
    "nothing can be scored": ({"a.png": plain(0)}, {}, "1 were quarantined and 0 failed (1 not_scored)"),
    "the gate holds back all": (
        {"a.png": picture(1), "b.png": picture(2)},
        {"scores": {"lpips": {"min": 0.99}}},
        "2 were quarantined and 0 failed (2 too_close)",
    ),
}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("why", EMPTY)
def test_a_release_without_a_picture_is_not_published_whatever_the_policy_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, signed: bool
) -> None:
    files, policy, says = EMPTY[why]
    if not signed:
        monkeypatch.delenv("ANONYMIZER_SIGNING_KEY")
    source = folder_of(tmp_path / "in", files)
    config = settings(source, tmp_path / "out", policy=policy | {"min_released": 0, "max_quarantined": 1.0})
    release = Release.at(config.output.uri)
    for _ in range(2):  # and not by the same command again
        with pytest.raises(GateError, match=r"^release: nothing is published, since no picture could be") as caught:
            run(config, scorer=Unscored(Scores()))
        assert says in str(caught.value) and "\n" not in str(caught.value)
    assert not release.public.exists() and not release.statement.exists()


def test_a_policy_without_a_key_to_sign_with_stops_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANONYMIZER_SIGNING_KEY")
    with pytest.raises(ConfigError, match=r"ANONYMIZER_SIGNING_KEY: not set, and a policy's decision is signed"):
        publish.check_signing_key(settings("in", "out", policy={"min_released": 1}))
    publish.check_signing_key(settings("in", "out"))


def test_two_named_people_must_approve_before_anything_is_public(tmp_path: Path) -> None:
    ada, bob, eve = signing.generate_key_pair(), signing.generate_key_pair(), signing.generate_key_pair()
    approvers = {"ada": signing.format_public_key(ada.public_key), "bob": signing.format_public_key(bob.public_key)}
    config = settings(people(tmp_path / "in", 3), tmp_path / "out", policy={"approvals": 2, "approvers": approvers})
    release = run(config)
    assert not release.public.exists()
    with pytest.raises(Exception, match=r"not among policy\.approvers"):
        publish.approve(release, eve)
    assert str(publish.approve(release, ada)) == "not published: 1 of 2 approvals, see `anonymizer approve`"
    run(config)  # asks the policy again, and keeps the approval
    assert publish.approve(release, ada).approved_by == ("ada",)
    assert not release.public.exists()
    assert publish.approve(release, bob).is_published
    assert release.is_published and statement.valid_approvers(publish.read_statement(release)) == ("ada", "bob")


def test_approvals_are_void_when_what_was_approved_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, bob = signing.generate_key_pair(), signing.generate_key_pair()
    approvers = {"ada": signing.format_public_key(ada.public_key), "bob": signing.format_public_key(bob.public_key)}
    source = people(tmp_path / "in", 3)
    release = run(settings(source, tmp_path / "out", policy={"approvals": 2, "approvers": approvers}))
    publish.approve(release, ada)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())
    run(settings(source, tmp_path / "out", policy={"approvals": 2, "approvers": approvers}))
    assert statement.valid_approvers(publish.read_statement(release)) == ()
    assert not release.public.exists()


def test_the_policy_is_asked_again_at_the_last_approval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ada = signing.generate_key_pair()
    waiver = {"rule": "min_released", "who": "Ada", "why": "pilot", "until": date.today().isoformat()}
    policy = {"approvals": 1, "approvers": {"ada": signing.format_public_key(ada.public_key)}, "min_released": 9}
    release = run(settings(people(tmp_path / "in", 3), tmp_path / "out", policy=policy | {"waivers": [waiver]}))

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Later:
            return cls.fromtimestamp(datetime.now(tz).timestamp() + 90 * 86400, tz)

    with monkeypatch.context() as patch, pytest.raises(GateError, match=r"its waiver ended on"):
        patch.setattr(publish, "datetime", Later)
        publish.approve(release, ada)
    assert not release.public.exists()
    assert publish.approve(release, ada).is_published


def test_a_candidate_that_was_changed_is_not_published(tmp_path: Path) -> None:
    ada = signing.generate_key_pair()
    policy = {"approvals": 1, "approvers": {"ada": signing.format_public_key(ada.public_key)}}
    release = run(settings(people(tmp_path / "in", 3), tmp_path / "out", policy=policy))
    path = Path(release.candidate.path) / "README.md"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="digests is not as signed"):
        publish.approve(release, ada)
    assert not release.public.exists()


AUDIT = "; attack it with `anonymizer audit`, then run the same command again"


@pytest.mark.parametrize(
    ("policy", "hint"),
    [
        ({"min_released": 9}, "; `anonymizer retry --failed` does failed records again"),
        ({"max_quarantined": 0.0, "scores": {"lpips": {"min": 0.9}}}, ""),
        (
            {"min_released": 9, "audits": ["linkage"]},
            AUDIT,
        ),
    ],
)
def test_a_refused_release_suggests_the_next_command(tmp_path: Path, policy: dict[str, Any], hint: str) -> None:
    with pytest.raises(GateError) as caught:
        run(settings(people(tmp_path / "in", 3), tmp_path / "out", policy=policy))
    assert str(caught.value).endswith(f": see `anonymizer status`{hint}")
    held = CliRunner().invoke(main, ["verify", str(tmp_path / "out")])
    assert held.exit_code == 1
    assert "its policy holds it back, and nothing is signed yet: see `anonymizer status`" in held.output


def test_without_a_policy_and_a_key_a_release_is_published_unsigned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANONYMIZER_SIGNING_KEY")
    release = run(settings(people(tmp_path / "in", 3), tmp_path / "out"))
    assert release.is_published and publish.read_statement(release).key_ids == set()
    assert len(released(release)) == 3 and KEY.check_value is not None
    assert "release.intoto.jsonl" in tree(release.public.path)


def test_publishers_cannot_approve_with_their_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    policy = {"approvals": 1, "approvers": {"ada": public_key(ADA), "me": public_key(PUBLISHER)}}
    waiting = run(settings(people(tmp_path / "in", 2), tmp_path / "out", policy=policy))
    assert not waiting.is_published
    with pytest.raises(SigningKeyError, match="the publisher's own"):
        publish.approve(waiting, PUBLISHER)
    assert publish.approve(waiting, ADA).approved_by == ("ada",) and waiting.is_published


def test_approvals_that_only_the_publisher_could_give_are_refused_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    approvers = {"ada": public_key(ADA), "me": public_key(PUBLISHER)}
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    publish.check_signing_key(settings("in", "out", policy={"approvals": 1, "approvers": approvers}))
    with pytest.raises(ConfigError, match=r"policy\.approvals: 2 asked for, and 1 approvers are other than"):
        publish.check_signing_key(settings("in", "out", policy={"approvals": 2, "approvers": approvers}))


def test_what_could_not_be_sealed_before_is_not_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    monkeypatch.delenv("ANONYMIZER_KEY", raising=False)
    with pytest.raises(CustodianKeyError, match="ANONYMIZER_KEY: not set, and what is signed must be sealed with it"):
        publish.check_signing_key(settings("in", "out"))
    monkeypatch.delenv(VARIABLE)
    publish.check_signing_key(settings("in", "out"))


def waits_for_ada(tmp_path: Path) -> tuple[Release, Any]:
    ada = signing.generate_key_pair()
    policy = {"approvals": 1, "approvers": {"ada": signing.format_public_key(ada.public_key)}}
    return run(settings(people(tmp_path / "in", 3), tmp_path / "out", policy=policy)), ada


def test_a_candidate_that_is_a_link_is_not_published(tmp_path: Path) -> None:
    """Then public/ would be one, to a place where somebody else may change what is handed out."""
    release, ada = waits_for_ada(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    Path(release.candidate.path).rename(elsewhere)
    Path(release.candidate.path).symlink_to(elsewhere)
    with pytest.raises(IntegrityError, match="restricted/candidate: is a link, and public/ would be one"):
        publish.approve(release, ada)
    assert not release.public.exists()


def test_an_event_of_a_publication_without_a_statement_is_no_publication(tmp_path: Path) -> None:
    release, ada = waits_for_ada(tmp_path)
    event_log.record(Release(release.root), "published")  # anybody can append it
    assert publish.approve(release, ada).is_published
    (own,) = (e["details"] for e in event_log.read(release) if e["event"] == "published" and e["details"])
    assert own["statement"] == publish.read_statement(release).digest
