"""The release before this one is believed only as far as its signature and the custodian's key reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anonymizer.attest.verify import check_public
from anonymizer.errors import ConfigError
from anonymizer.release import publish
from tests.support.releases import follow, people, run, settings
from tests.support.signing_keys import ADA, PUBLISHER, VARIABLE, pem, public_key


@pytest.fixture(autouse=True)
def publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return people(tmp_path / "in", 5)


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
