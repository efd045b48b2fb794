"""The release before this one is believed only as far as its signature and the custodian's key reach."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from anonymizer.attest.verify import check_public
from anonymizer.config import RunConfig
from anonymizer.errors import ConfigError, IntegrityError, UsageError
from anonymizer.policy.calibration import build_resolved
from anonymizer.release import history, publish
from tests.support.releases import begin, folder_of, follow, one_shard, outputs, people, picture, rows, run, settings
from tests.support.signing_keys import ADA, BOB, EVE, PUBLISHER, VARIABLE, pem, public_key


@pytest.fixture(autouse=True)
def publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return people(tmp_path / "in", 5)


# -- whose signature ---------------------------------------------------------------------------------------------------


def refusal(config: RunConfig) -> str:
    """The one line that a run is refused with, before anything of it is written."""
    with pytest.raises(UsageError) as caught:
        run(config)
    assert "\n" not in str(caught.value) and not Path(config.output.uri).exists()
    return str(caught.value)


def elsewhere(config: RunConfig, output: Path) -> RunConfig:
    return config.model_copy(update={"output": config.output.model_copy(update={"uri": str(output)})})


@pytest.mark.parametrize("how", ["not signed", "by another key"])
def test_a_release_that_this_publisher_did_not_sign_is_not_followed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv(VARIABLE, "" if how == "not signed" else pem(EVE))
    january = run(settings(source, tmp_path / "january"))
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    line = refusal(follow(january, source, tmp_path / "february"))
    assert "is not signed by this run's own key or one in trust" in line


@pytest.mark.parametrize("spelling", ["key", "file"])
def test_a_release_of_another_publisher_is_followed_if_the_key_is_pinned(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    january = run(settings(source, tmp_path / "january"))
    monkeypatch.setenv(VARIABLE, pem(ADA))
    file = tmp_path / "publisher.pub"
    file.write_text(public_key(PUBLISHER) + "\n")
    pinned = {"trust": [public_key(PUBLISHER) if spelling == "key" else str(file)]}
    config = build_resolved(RunConfig, follow(january, source, tmp_path / "february").model_dump() | pinned)
    february = run(config)
    assert outputs(february) == outputs(january)
    assert publish.read_statement(february).predicate["publisher"] == public_key(ADA)
    wrong = build_resolved(RunConfig, config.model_dump() | {"trust": [public_key(BOB)]})
    assert "is not signed by" in refusal(elsewhere(wrong, tmp_path / "march"))


def test_without_any_key_to_compare_with_nothing_is_followed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    january = run(settings(source, tmp_path / "january"))
    monkeypatch.delenv(VARIABLE)
    line = refusal(follow(january, source, tmp_path / "february"))
    assert line.startswith("ANONYMIZER_SIGNING_KEY: not set, and trust names no key")


def test_a_pinned_key_that_is_none_is_one_line_without_it(tmp_path: Path, source: Path) -> None:
    january = run(settings(source, tmp_path / "january"))
    config = follow(january, source, tmp_path / "february", f"trust=['{'ab' * 16}']")
    assert refusal(config) == "trust: no public key, and no file of one: see `anonymizer keys`"


# -- which release, at which address ----------------------------------------------------------------------------------


def test_an_older_release_at_the_address_of_a_newer_one_is_not_followed(tmp_path: Path, source: Path) -> None:
    """Every signature and seal of it holds."""
    january = run(settings(source, tmp_path / "january"))
    folder_of(source, {"new.png": picture(9)})
    february = run(follow(january, source, tmp_path / "february"))
    shutil.rmtree(february.root.path)
    shutil.copytree(january.root.path, february.root.path)
    line = refusal(follow(february, source, tmp_path / "march"))
    assert "was made for another address" in line and str(january.root) in line


def test_a_release_that_was_moved_is_followed_if_its_statement_is_pinned(tmp_path: Path, source: Path) -> None:
    january = run(settings(source, tmp_path / "january"))
    digest = publish.read_statement(january).digest
    moved = str(shutil.move(january.root.path, tmp_path / "archive"))
    assert digest in refusal(follow(moved, source, tmp_path / "february"))
    wrong = refusal(follow(moved, source, tmp_path / "february", f"previous_statement='{'a' * 64}'"))
    assert wrong.startswith("previous_statement: previous ") and digest in wrong
    february = run(follow(moved, source, tmp_path / "february", f"previous_statement='{digest}'"))
    assert all(row["kept"] for row in rows(february))
    march = run(follow(february, source, tmp_path / "march"))  # which knows where january lies
    assert [str(one.root) for one in history.predecessors(march)] == [str(february.root), moved]


def test_a_pinned_statement_needs_a_previous_release(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="previous_statement: there is no previous release"):
        settings(source, tmp_path / "january", f"previous_statement='{'a' * 64}'")


@pytest.mark.parametrize("which", ["previous", "the one before"])
@pytest.mark.parametrize("how", ["gone", "without its pictures", "another one"])
def test_a_release_that_was_there_at_planning_must_be_there_for_every_shard(
    tmp_path: Path, source: Path, which: str, how: str
) -> None:
    """Else its people would get a second output in silence."""
    january = run(settings(source, tmp_path / "january"))
    february = run(follow(january, source, tmp_path / "february"))
    other = run(settings(people(tmp_path / "others", 3), tmp_path / "other"))
    config = follow(february, source, tmp_path / "march")
    begin(config)
    victim = Path((february if which == "previous" else january).root.path)
    shutil.rmtree(victim if how != "without its pictures" else victim / "public")
    if how == "another one":
        shutil.copytree(other.root.path, victim)
    with pytest.raises(IntegrityError, match=r"restore it") as caught:
        one_shard(config, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["erased.parquet", "before.json", "revocations.intoto.jsonl"])
def test_what_lies_in_the_output_before_planning_is_not_taken_for_inherited(
    tmp_path: Path, source: Path, name: str
) -> None:
    january = run(settings(source, tmp_path / "january"))
    planted = tmp_path / "february/restricted" / name
    planted.parent.mkdir(parents=True, mode=0o700)
    planted.write_bytes(b"whatever")
    february = run(follow(january, source, tmp_path / "february"))
    assert outputs(february) == outputs(january)
    assert not planted.exists() or b"whatever" not in planted.read_bytes()


# -- a policy that is weaker than the one before ----------------------------------------------------------------------

STRONG: dict[str, Any] = {"scores": {"lpips": {"min": 0.01}}, "max_failed": 0.1, "min_released": 2}
LINES = ["max_failed: 0.1 before, 0.2 now", "scores.lpips.min: 0.01 before, none now"]
WEAK: dict[str, Any] = {"max_failed": 0.2, "min_released": 3}
REASON = "the camera was replaced, and LPIPS means something else now"


def test_a_weaker_policy_needs_a_reason_which_is_signed_and_shown(tmp_path: Path, source: Path) -> None:
    january = run(settings(source, tmp_path / "january", policy=STRONG))
    with pytest.raises(
        ConfigError, match=r"^policy: is weaker than that of previous .*none now\): keep its rules"
    ) as e:
        run(follow(january, source, tmp_path / "february", policy=WEAK))
    assert all(line in str(e.value) for line in LINES) and "\n" not in str(e.value)
    assert not Path(tmp_path / "february").exists()

    february = run(follow(january, source, tmp_path / "february", policy=WEAK | {"weaker_than_previous": REASON}))
    predicate = publish.read_statement(february).predicate
    assert predicate["gate"]["weaker"] == LINES
    assert predicate["policy"]["weaker_than_previous"] == REASON
    (note,) = (finding for finding in check_public(february.public) if finding.check == "policy")
    assert note.result == "note" and all(text in note.message for text in (*LINES, REASON))
    for page in ("report.html", "README.md"):
        text = (february.public / page).read().decode()
        assert all(part in text for part in (*LINES, REASON)), page


@pytest.mark.parametrize("policy", [STRONG, STRONG | {"min_released": 3, "max_quarantined": 0.5}])
def test_the_same_policy_or_a_stronger_one_needs_none(tmp_path: Path, source: Path, policy: dict[str, Any]) -> None:
    january = run(settings(source, tmp_path / "january", policy=STRONG))
    february = run(follow(january, source, tmp_path / "february", policy=policy))
    assert publish.read_statement(february).predicate["gate"]["weaker"] == []
    with pytest.raises(ConfigError, match=r"^policy\.weaker_than_previous: nothing is weaker than in previous"):
        run(follow(january, source, tmp_path / "march", policy=policy | {"weaker_than_previous": REASON}))


def test_a_sampler_without_noise_after_one_with_noise_is_weaker(tmp_path: Path, source: Path) -> None:
    """And its own reason is signed, verified and shown, with a previous release or without."""
    january = run(settings(source, tmp_path / "january"))
    quick: dict[str, Any] = {"boomerang": {"sampler": "ddim", "steps": 2, "accept_deterministic": "drawn in two steps"}}
    with pytest.raises(ConfigError, match=r"boomerang\.sampler: sde-dpm\+\+ before, ddim now"):
        run(follow(january, source, tmp_path / "february", **quick))
    february = run(follow(january, source, tmp_path / "february", policy={"weaker_than_previous": REASON}, **quick))
    predicate = publish.read_statement(february).predicate
    assert predicate["gate"]["weaker"] == ["boomerang.sampler: sde-dpm++ before, ddim now, without noise"]
    assert predicate["settings"]["accept_deterministic"] == "drawn in two steps"
    (note,) = (finding for finding in check_public(february.public) if finding.check == "settings")
    assert note.result == "note" and "drawn in two steps" in note.message
    for page in ("report.html", "README.md"):
        assert "drawn in two steps" in (february.public / page).read().decode(), page
    march = run(follow(february, source, tmp_path / "march", **quick))
    assert publish.read_statement(march).predicate["gate"]["weaker"] == []


def test_a_reason_needs_a_previous_release(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no previous release: leave it out"):
        settings(source, tmp_path / "january", policy={"weaker_than_previous": REASON})


def test_the_lines_about_weaker_rules_are_what_is_approved(tmp_path: Path, source: Path) -> None:
    january = run(settings(source, tmp_path / "january", policy=STRONG))
    policy = WEAK | {"weaker_than_previous": REASON, "approvals": 1, "approvers": {"ada": public_key(ADA)}}
    february = run(follow(january, source, tmp_path / "february", policy=policy))
    assert not february.is_published
    assert publish.approve(february, ADA).is_published
    assert publish.read_statement(february).predicate["gate"]["weaker"] == LINES
