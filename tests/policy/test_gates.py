"""The gates: what may leave, what is drawn again, and what a release must show before it is let out."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.attest import dsse
from anonymizer.backbones import Denoised
from anonymizer.config import PolicyConfig, build
from anonymizer.crypto import signing
from anonymizer.errors import ConfigError, GateError, IntegrityError, OutputError
from anonymizer.policy.gates import AuditResult, evaluate_release, gate
from anonymizer.records import Reason, Scores, Status, Summary
from anonymizer.release import assemble, plan, publish
from anonymizer.storage.layout import Release
from flows.cli import main
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    KEY,
    PlainScorer,
    folder_of,
    manifest,
    people,
    picture,
    plain,
    released,
    rows,
    run,
    settings,
    tree,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())


def of(policy: dict[str, Any], **sections: Any) -> Any:
    return settings("in", "out", policy=policy, metrics={"identity": "dlib"}, **sections)


# -- a record ---------------------------------------------------------------------------------------------------------

GOOD = Scores(clip_similarity=0.5, lpips=0.5, identity_distance=0.5, faces=1)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({}, None),
        ({"clip_similarity": {"max": 0.5}, "lpips": {"min": 0.5}}, None),  # ends belong to what may leave
        ({"clip_similarity": {"max": 0.49}}, Reason.TOO_CLOSE),
        ({"clip_similarity": {"min": 0.51}}, Reason.TOO_FAR),
        ({"lpips": {"min": 0.51}}, Reason.TOO_CLOSE),
        ({"lpips": {"max": 0.49}}, Reason.TOO_FAR),
        ({"identity_distance": {"min": 0.6}}, Reason.TOO_CLOSE),
        ({"identity_distance": {"max": 0.4}}, Reason.TOO_FAR),
        ({"faces": {"min": 2}}, Reason.TOO_FAR),
        ({"faces": {"min": 1, "max": 1}}, None),
        ({"lpips": {"max": 0.1}, "clip_similarity": {"max": 0.1}}, Reason.TOO_CLOSE),  # what is closer counts first
    ],
)
def test_a_bound_holds_back_what_is_too_close_or_too_far(bounds: Any, reason: Reason | None) -> None:
    decision = gate(GOOD, of({"scores": bounds}))
    assert (decision.status, decision.reason) == (Status.QUARANTINED if reason else Status.RELEASED, reason)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["clip_similarity", "lpips"])
def test_a_score_that_is_missing_is_never_released(name: str, missing: float | None) -> None:
    scores = Scores(**{"clip_similarity": 0.5, "lpips": 0.5, "identity_distance": 0.5, "faces": 1, name: missing})  # type: ignore[arg-type]
    for bounds in ({}, {name: {"min": -9}}):
        assert gate(scores, of({"scores": bounds})).reason is Reason.NOT_SCORED


def test_a_face_that_is_not_detected_is_held_back_where_the_policy_asks_about_faces() -> None:
    nobody = Scores(0.5, 0.5, identity_distance=float("nan"), faces=0)
    for bounds in ({"faces": {"max": 3}}, {"identity_distance": {"min": 0.1}}, {"identity_distance": {"max": 2}}):
        assert gate(nobody, of({"scores": bounds})).reason is Reason.NO_FACE
    assert gate(nobody, of({"scores": {"lpips": {"min": 0.1}}})).status is Status.RELEASED
    original_without = Scores(0.5, 0.5, identity_distance=float("nan"), faces=1)
    assert gate(original_without, of({"scores": {"identity_distance": {"min": 0.1}}})).reason is Reason.NO_FACE
    never_looked = Scores(0.5, 0.5)
    assert gate(never_looked, of({"scores": {"faces": {"min": 1}}})).reason is Reason.NOT_SCORED


@given(
    st.floats(-2, 2) | st.none() | st.just(float("nan")), st.floats(-2, 2), st.floats(-2, 2),
    st.sampled_from(["clip_similarity", "lpips"]),
)  # fmt: skip
def test_what_is_released_is_within_its_bounds(value: float | None, low: float, high: float, name: str) -> None:
    low, high = min(low, high), max(low, high)
    scores = Scores(**{"clip_similarity": 0.5, "lpips": 0.5, name: value})  # type: ignore[arg-type]
    decision = gate(scores, settings("in", "out", policy={"scores": {name: {"min": low, "max": high}}}))
    assert (decision.status is Status.RELEASED) == (value is not None and low <= value <= high)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_a_bound_that_bounds_nothing_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.scores\.lpips\.min: .*finite"):
        settings("in", "out", f"policy.scores={{lpips: {{min: {value}}}}}")


def test_a_policy_stays_what_it_was_when_the_run_began(tmp_path: Path) -> None:
    """Leaving a rule out would be a way to force a release; a waiver says who did."""
    source = people(tmp_path / "in", 3)
    with pytest.raises(GateError):
        run(settings(source, tmp_path / "out", policy={"min_released": 4}))
    with pytest.raises(OutputError, match=r"was begun with policy\.min_released 4, not 0"):
        run(settings(source, tmp_path / "out"))


def test_bounds_on_scores_that_nobody_makes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"policy\.scores\.faces: metrics\.identity is none"):
        settings("in", "out", policy={"scores": {"faces": {"min": 1}}})


# -- again, at a stronger level ----------------------------------------------------------------------------------------


class Counting(PlainScorer):
    """Says that an output is as far from its original as the level that it was drawn at, less what its original asks.

    The greyer an original, the more noise it needs: ``lpips`` is the level over the original's mean in [0, 1].
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def score_one(self, original: torch.Tensor, output: torch.Tensor) -> Scores:
        need = float(original.mean() + 1) / 2
        return Scores(clip_similarity=0.5, lpips=self.model.level / max(need, 1e-6))


class Levelled(IdealGaussian):
    """A model that knows at which level it was last asked to begin."""

    level = 0.0

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        self.level = max(t / self.T, self.level if self.calls and self.calls[-1] > t else 0)
        return super().predict(zt, t, condition)


def escalating(tmp_path: Path, **policy: Any) -> tuple[Release, Any]:
    """Greys that need levels 0.2, 0.45, 0.7 and 0.98, and one file that is no picture."""
    greys = {f"{need}.png": plain(round(need * 255)) for need in (0.2, 0.45, 0.7, 0.98)}
    folder_of(tmp_path / "in", greys | {"bad.png": b"x"})
    model = Levelled()
    told = {"scores": {"lpips": {"min": 0.99}}, "escalate": [0.5, 0.8]} | policy
    config = settings(tmp_path / "in", tmp_path / "out", policy=told, run={"shard_size": 3, "batch_size": 2})
    return run(config, model, Counting(model)), config


def test_an_output_that_is_too_close_is_drawn_again_at_a_stronger_level(tmp_path: Path) -> None:
    release, _ = escalating(tmp_path)
    found = {row["record_id"]: row for row in rows(release)}
    said = {name: (row["status"], row["reason"], row["attempts"], row["level"]) for name, row in found.items()}
    assert said == {
        "0.2.png": ("released", None, 1, 0.4),
        "0.45.png": ("released", None, 2, 0.5),
        "0.7.png": ("released", None, 3, 0.8),
        "0.98.png": ("quarantined", "too_close", 3, 0.8),
        "bad.png": ("failed", "not_an_image", 0, 0.4),
    }
    earlier = json.loads(found["0.7.png"]["earlier"])
    assert [(one["level"], one["reason"]) for one in earlier] == [(0.4, "too_close"), (0.5, "too_close")]
    assert earlier[0]["lpips"] == pytest.approx(0.4 / 0.7, abs=0.02)
    counts = assemble.summarize_release(release, plan.read(release))
    assert (counts.read, counts.released, counts.quarantined, counts.failed) == (5, 3, 1, 1)
    assert sorted(manifest(release)["level"].to_pylist()) == [0.4, 0.5, 0.8]
    assert [p.name for p in release.quarantine.children()] == [f"{found['0.98.png']['output_id']}.png"]


def test_an_escalated_output_is_what_a_run_at_that_level_gives(tmp_path: Path) -> None:
    """Its noise is its own as well: what two levels share could be cancelled."""
    release, _ = escalating(tmp_path)
    row = next(row for row in rows(release) if row["record_id"] == "0.7.png")
    alone = settings(tmp_path / "in", tmp_path / "alone", boomerang={"level": 0.8, "steps": 2})
    other = next(row for row in rows(run(alone, Levelled())) if row["record_id"] == "0.7.png")
    same = ("output_id", "sha256", "config_fingerprint", "t_boom", "log_snr")
    assert [row[name] for name in same] == [other[name] for name in same]


def test_batches_and_shards_do_not_matter_to_what_is_drawn_again(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(9)})
    first = rows(run(settings(tmp_path / "in", tmp_path / "first", boomerang={"level": 0.2})))
    middle = sorted(row["lpips"] for row in first)[4]
    outcomes = []
    for number, (shard, batch) in enumerate([(9, 9), (2, 1), (4, 3)]):
        config = settings(
            tmp_path / "in", tmp_path / f"out{number}", boomerang={"level": 0.2},
            policy={"scores": {"lpips": {"min": middle}}, "escalate": [0.4, 0.9]},
            run={"shard_size": shard, "batch_size": batch},
        )  # fmt: skip
        outcomes.append(sorted((r["record_id"], r["attempts"], r["status"]) for r in rows(run(config))))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    assert len({attempts for _, attempts, _ in outcomes[0]}) > 1, "the gate must bite for some, and not for all"


def test_what_is_too_far_is_not_drawn_again(tmp_path: Path) -> None:
    config = settings(
        people(tmp_path / "in", 2), tmp_path / "out", policy={"scores": {"lpips": {"max": 0}}, "escalate": [0.9]}
    )
    found = rows(run(config))
    assert {(row["reason"], row["attempts"]) for row in found} == {("too_far", 1)}


@pytest.mark.parametrize("levels", [[0.4], [0.3, 0.9], [0.9, 0.5], [0.5, 0.5], [1.1]])
def test_a_level_that_is_not_stronger_is_refused(levels: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"policy\.escalate"):
        settings("in", "out", policy={"escalate": levels})


def test_a_run_that_was_begun_cannot_be_finished_with_other_bounds(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 3)
    run(settings(source, tmp_path / "out", policy={"scores": {"lpips": {"min": 0.01}}}))
    with pytest.raises(Exception, match=r"was begun with policy\.scores"):
        run(settings(source, tmp_path / "out"))


# -- a release --------------------------------------------------------------------------------------------------------


def counts(read: int = 100, released: int = 90, quarantined: int = 6, failed: int = 4) -> Summary:
    return Summary(read, released, quarantined, failed, shards=1, seconds=1.0, reasons={})


def line(attack: str, measure: str, high: float, **rest: Any) -> dict[str, Any]:
    """A figure of an audit without a control, at a chance of nothing."""
    blank = {"value": high / 2, "low": 0.0, "chance": 0.0, "control": None, "risk": None, "risk_low": None}
    return blank | {"attack": attack, "measure": measure, "high": high, "risk_high": None, "subgroup": None} | rest


def audit(*figures: dict[str, Any], manifest: str = "m", days: float = 0) -> AuditResult:
    return AuditResult(NOW - timedelta(days=days), manifest, figures)


def broken(policy: dict[str, Any], found: AuditResult | None = None, of: Summary | None = None) -> list[str]:
    verdict = evaluate_release(PolicyConfig.model_validate(policy), of or counts(), "m", found, NOW)
    return [ruling.rule for ruling in verdict.failed_rules]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, []),
        ({"min_released": 90}, []),
        ({"min_released": 91}, ["min_released"]),
        ({"max_quarantined": 0.06}, []),
        ({"max_quarantined": 0.059}, ["max_quarantined"]),
        ({"max_failed": 0.04}, []),
        ({"max_failed": 0.03}, ["max_failed"]),
    ],
)
def test_counts_are_held_against_the_policy(policy: dict[str, Any], expected: list[str]) -> None:
    assert broken(policy) == expected


def test_a_release_of_nothing_breaks_every_bound_on_shares() -> None:
    none = counts(0, 0, 0, 0)
    assert broken({"max_failed": 0.5, "max_quarantined": 0.5}, of=none) == ["max_quarantined", "max_failed"]


LOW, HIGH = line("linkage", "rank-1", 0.04), line("linkage", "rank-1", 0.06)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (audit(LOW), []),
        (audit(LOW, HIGH), ["max_linkage_rank1"]),  # the best attacker counts
        (audit(line("membership", "AUC", 0.5)), ["audits.linkage", "max_linkage_rank1"]),  # not tried
        (audit(line("linkage", "rank-1", 0.0, value=None)), ["audits.linkage", "max_linkage_rank1"]),  # not measured
        (audit(line("linkage", "rank-5", 0.9), LOW), []),
        (audit(LOW, line("linkage", "rank-1", 0.0, value=None)), ["max_linkage_rank1"]),  # one is not measured
        (audit(LOW, line("linkage", "not run", 0.0, value=None)), ["max_linkage_rank1"]),  # one failed
        (audit(LOW, line("linkage", "rank-1", float("nan"))), ["max_linkage_rank1"]),
        (audit(LOW, line("linkage", "rank-1", 1.0, control=1)), ["max_linkage_rank1"]),  # tells nothing
        (audit(LOW, manifest="another"), ["audits.linkage", "max_linkage_rank1"]),
        (None, ["audits.linkage", "max_linkage_rank1"]),
    ],
)
def test_a_figure_of_the_audit_is_held_against_its_bound(found: AuditResult | None, expected: list[str]) -> None:
    assert broken({"risk": {"max_linkage_rank1": {"upper": 0.05}}}, found) == expected


def test_figures_of_attackers_who_lacked_something_hold_no_bound() -> None:
    policy = {"risk": {"max_linkage_rank1": {"upper": 0.05}}}
    assert broken(policy, audit(LOW)) == []
    lacking = replace(audit(LOW), attacker_limits="attackers drew without what the model was told")
    (ruling,) = [
        r for r in evaluate_release(PolicyConfig.model_validate(policy), counts(), "m", lacking, NOW).failed_rules
    ]
    assert "without what the model was told" in ruling.measured


def test_without_a_measure_the_bound_is_on_risk_above_chance() -> None:
    guessing = line("membership", "AUC", 0.6, chance=0.5)
    assert broken({"risk": {"max_membership": {"upper": 0.21}}}, audit(guessing)) == []
    assert broken({"risk": {"max_membership": {"upper": 0.19}}}, audit(guessing)) == ["max_membership"]


def test_audits_that_are_required_must_be_there_and_young_enough() -> None:
    policy = {"audits": ["linkage", "parrot"], "audit_days": 30}
    assert broken(policy) == ["audits.linkage", "audits.parrot", "audit_days"]
    both = [LOW, line("parrot", "rank-1", 0.5)]
    assert broken(policy, audit(LOW, days=30)) == ["audits.parrot"]
    assert broken(policy, audit(*both, days=30)) == []
    assert broken(policy, audit(*both, days=31)) == ["audit_days"]
    assert broken(policy, audit(*both, days=-2)) == ["audit_days"]  # a clock that is wrong, or a date made up


def test_a_waiver_sets_one_rule_aside_until_its_last_day() -> None:
    def policy(until: date, rule: str = "max_failed") -> dict[str, Any]:
        waiver = {"rule": rule, "who": "Ada", "why": "scanner fault", "until": until}
        return {"max_failed": 0.01, "max_quarantined": 0.01, "waivers": [waiver]}

    assert broken(policy(NOW.date())) == ["max_quarantined"]
    assert broken(policy(NOW.date() - timedelta(days=1))) == ["max_quarantined", "max_failed"]
    verdict = evaluate_release(PolicyConfig.model_validate(policy(NOW.date())), counts(), "m", None, NOW)
    ruling = next(r for r in verdict.rule_results if r.rule == "max_failed")
    assert ruling.result == "waived" and "Ada" in ruling.measured and "scanner fault" in ruling.measured


def test_a_waiver_of_no_rule_is_refused() -> None:
    waiver = {"rule": "max_lnkage", "who": "a", "why": "b", "until": "2026-12-01"}
    with pytest.raises(ConfigError, match=r"policy\.waivers.*max_lnkage.*max_failed"):
        build({"source": {"uri": "a"}, "output": {"uri": "b"}, "policy": {"max_failed": 0.1, "waivers": [waiver]}})


# -- what becomes of the release ---------------------------------------------------------------------------------------


def test_a_release_that_breaks_the_policy_is_not_published_and_the_decision_is_signed(tmp_path: Path) -> None:
    config = settings(people(tmp_path / "in", 3), tmp_path / "out", policy={"min_released": 4})
    release = Release.at(config.output.uri)
    with pytest.raises(GateError, match=r"min_released \(at least 4\): 3 released") as caught:
        run(config)
    assert "\n" not in str(caught.value)
    assert not release.public.exists() and not release.statement.exists()
    (decision,) = dsse.loads(release.decision_log.read(), publish.DECISION_PREDICATE)
    assert decision.predicate["result"] == "fail"
    signer = signing.signer_from_env("ANONYMIZER_SIGNING_KEY")
    assert signer is not None and decision.is_signed_by(signer.public_key)

    waiver = {"rule": "min_released", "who": "Ada", "why": "pilot", "until": "2999-01-01"}
    run(settings(tmp_path / "in", tmp_path / "out", policy={"min_released": 4, "waivers": [waiver]}))
    said = publish.read_statement(release).predicate["gate"]
    assert said["result"] == "pass"
    assert said["rules"] == [{"rule": "min_released", "bound": "at least 4", "result": "waived"}]
    assert said["waivers"] == [waiver]
    assert [d.predicate["result"] for d in dsse.loads(release.decision_log.read(), publish.DECISION_PREDICATE)] == [
        "fail",
        "pass",
    ]


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
    assert release.is_published and publish.approvals(publish.read_statement(release)) == ("ada", "bob")


def test_approvals_are_void_when_what_was_approved_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ada, bob = signing.generate_key_pair(), signing.generate_key_pair()
    approvers = {"ada": signing.format_public_key(ada.public_key), "bob": signing.format_public_key(bob.public_key)}
    source = people(tmp_path / "in", 3)
    release = run(settings(source, tmp_path / "out", policy={"approvals": 2, "approvers": approvers}))
    publish.approve(release, ada)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())
    run(settings(source, tmp_path / "out", policy={"approvals": 2, "approvers": approvers}))
    assert publish.approvals(publish.read_statement(release)) == ()
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
def test_what_is_held_back_says_what_may_help(tmp_path: Path, policy: dict[str, Any], hint: str) -> None:
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
