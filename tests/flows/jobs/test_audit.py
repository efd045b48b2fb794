"""The audit of a release: what it writes, and what of it may be public."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anonymizer.config import AuditConfig
from anonymizer.errors import ConfigError, IntegrityError, ModelError, OutputError, SourceError
from anonymizer.policy.calibration import build_resolved
from anonymizer.release import audit_files, plan
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from flows.jobs import audit as audit_job
from tests.support import ROOT
from tests.support.audit_evidence import ALL
from tests.support.groups import group_settings, photos, run_grouped
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    HEX,
    KEY,
    PlainScorer,
    assemble_candidate,
    begin,
    folder_of,
    listing,
    one_shard,
    picture,
    rows,
    run,
    settings,
)


def use(model: IdealGaussian, patch: pytest.MonkeyPatch) -> IdealGaussian:
    patch.setenv("ANONYMIZER_KEY", HEX)
    patch.setattr(audit_job, "backbone_of", lambda config: model)
    patch.setattr(audit_job, "scorer_of", lambda metrics, device: PlainScorer())
    return model


@pytest.fixture
def ideal(monkeypatch: pytest.MonkeyPatch) -> IdealGaussian:
    return use(IdealGaussian(), monkeypatch)


def release_of_people(folder: Path, model: IdealGaussian) -> Release:
    """Thirty records of ten people, with a trait beside them that is not carried."""
    folder_of(folder / "in", {f"Wanda_Zx{i:02d}.png": picture(i) for i in range(30)})
    items = [
        {"image": f"Wanda_Zx{i:02d}.png", "id": f"Wanda_Zx{i:02d}", "who": f"p{i % 10}", "side": i % 2}
        for i in range(30)
    ]
    classified = {"id": "id", "subject": "who", "restricted": ["side"]}
    return run(settings(listing(folder / "in", items), folder / "out", source=classified), model)


@pytest.fixture
def release(tmp_path: Path, ideal: IdealGaussian) -> Release:
    return release_of_people(tmp_path, ideal)


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Release, audit_job.AuditSummary]:
    """A release that every attack was tried on, and the summary of that; for tests that change nothing of it."""
    with pytest.MonkeyPatch.context() as patch:
        release = release_of_people(tmp_path_factory.mktemp("audited"), use(IdealGaussian(), patch))
        return release, audit_job.run(every_attack(release))


def settings_of(release: Release, **more: Any) -> AuditConfig:
    quick = {"features": ["pixels"], "pairs": 24, "outputs": 2, "averaged": 20}
    return build_resolved(AuditConfig, {"release": str(release.root)} | quick | more)


def every_attack(release: Release) -> AuditConfig:
    return settings_of(release, identity="who", attributes=["side"])


def test_an_audit_writes_every_figure_a_page_and_a_public_summary(
    audited: tuple[Release, audit_job.AuditSummary],
) -> None:
    release, summary = audited
    assert (summary.audited, summary.released) == (30, 30)
    table = parquet.read(release.audit / "figures.parquet")
    assert len(table) == summary.figures
    assert set(table["attack"].to_pylist()) == {*ALL, "leaks"}
    page = release.audit_page.read().decode()
    of_ceilings = ("No attacker on these pictures can pass", "links at most", "tells a member")
    for part in ("Singling out", "Linkability", "Inference", *of_ceilings, "Wanda_Zx"):
        assert part in page
    document = json.loads(release.audit_summary.read())
    assert set(document["answers"]) == {"Singling out", "Linkability", "Inference"}
    assert plan.read(release).records == 30


@pytest.mark.parametrize("outputs", ["one", "each"])
def test_a_release_of_groups_is_attacked_in_whole_groups(tmp_path: Path, ideal: IdealGaussian, outputs: str) -> None:
    config = group_settings(photos(tmp_path / "in", 20), tmp_path / "out", groups={"outputs": outputs})
    release = run_grouped(config)
    evidence = audit_job.collect_evidence(settings_of(release, sample=10)).bench.evidence
    assert evidence.groups is not None
    assert sorted(np.unique(evidence.groups, return_counts=True)[1].tolist()) == [3, 3, 3]
    assert evidence.subset(evidence.groups == evidence.groups[0]).groups is not None
    summary = audit_job.run(settings_of(release, attacks=["linkage", "leaks"]))
    assert (summary.audited, summary.released) == (18, 18)


def test_the_public_summary_names_nobody_and_helps_no_attacker(
    audited: tuple[Release, audit_job.AuditSummary],
) -> None:
    release, _ = audited
    document = release.audit_summary.read().decode()
    for row in rows(release):
        for name in ("record_id", "output_id", "source_hmac"):
            assert str(row[name]) not in document
    for word in ("Wanda", "side", "who", "p3", "threshold", "anonymous", "epsilon"):
        assert word not in document.replace("outsiders", "").replace("whole", "")
    for answer in json.loads(document)["answers"].values():
        bound = answer.get("risk_above_chance_at_most")
        assert bound is None or round(bound * 20, 6) % 1 == 0


def test_the_attackers_are_published_with_the_figures(release: Release) -> None:
    """They are signed with the statement: a figure says nothing without whose it is."""
    audit_job.run(settings_of(release, identity="who", attacks=["linkage"], sample=25))
    assert json.loads(release.audit_summary.read())["attackers"] == {
        "attacks": ["linkage"], "features": ["pixels"], "sample": 25, "released": 30,
        "pairs": 24, "outputs": 2, "averaged": 20, "held": ["identity"],
    }  # fmt: skip
    audit = audit_files.read(release)
    assert audit is not None and audit.attackers.identity == "who" and audit.attackers.sample == 25
    page = release.audit_page.read().decode()
    assert "25 of 30 records, compared by pixels; 24 training pairs" in page


class Listens(IdealGaussian):
    """A model that takes prompts, and minds none."""

    def __init__(self) -> None:
        super().__init__()
        self.condition_kind = "prompt"

    def condition(self, texts: Sequence[str]) -> object:
        return None


@pytest.mark.parametrize(
    ("given", "why", "lacking"),
    [
        (
            {"model": {"prompt": "one of {who}"}},
            "own class or prompt is drawn into its output",
            "what the model was told",
        ),
        ({"source": {"fit": "tiles"}}, "noised at their own sides", "compared as squares"),
    ],
)
def test_no_guarantee_is_claimed_where_the_noise_is_not_all_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, why: str, lacking: str
) -> None:
    model = use(Listens(), monkeypatch)
    folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(8)})
    items = [{"image": f"{i}.png", "who": f"p{i}"} for i in range(8)]
    source = {"restricted": ["who"]} | given.get("source", {})
    # At level 1 next to nothing is left, and the bound alone would be a guarantee.
    release = run(settings(listing(tmp_path / "in", items), tmp_path / "out", boomerang={"level": 1.0},
                           **given | {"source": source}), model)  # fmt: skip
    audit_job.run(settings_of(release, attacks=["linkage"]))
    document = json.loads(release.audit_summary.read())
    assert document["formal_guarantee"] == "No formal guarantee"
    page = release.audit_page.read().decode()
    assert why in page and lacking in page


def test_no_page_of_an_audit_calls_anything_anonymous(audited: tuple[Release, audit_job.AuditSummary]) -> None:
    release, _ = audited
    page = release.audit_page.read().decode().lower()
    assert "anonymous" not in page and "epsilon" not in page


@pytest.mark.slow
def test_an_audit_is_the_same_when_repeated(
    audited: tuple[Release, audit_job.AuditSummary], ideal: IdealGaussian
) -> None:
    release, _ = audited
    first = (release.audit / "figures.parquet").read()
    audit_job.run(every_attack(release))
    assert (release.audit / "figures.parquet").read() == first


def test_outsiders_who_are_insiders_are_left_out_and_said(release: Release, tmp_path: Path) -> None:
    outside = {f"stranger {i}.png": picture(100 + i) for i in range(20)}
    mixed = folder_of(tmp_path / "mixed", outside | {"in the release.png": picture(3)})
    audit_job.run(settings_of(release, attacks=["membership"], outsiders={"uri": str(mixed)}))
    document = json.loads((release.audit / "audit.json").read())
    assert document["note"].startswith("outsiders: 1 left out") and "1 left out" in release.audit_page.read().decode()
    with pytest.raises(ConfigError, match="nobody is left"):
        audit_job.run(settings_of(release, attacks=["membership"], outsiders={"uri": str(tmp_path / "in")}))


def test_what_attackers_bring_need_not_be_classified(release: Release, tmp_path: Path) -> None:
    """Nothing of it is released; nor is what they ask of the originals, whatever the release does with it."""
    folder_of(tmp_path / "theirs", {f"{i}.png": picture(200 + i) for i in range(20)})
    items = [{"image": f"{i}.png", "who": f"stranger {i}", "city": "x"} for i in range(20)]
    theirs = {"uri": str(listing(tmp_path / "theirs", items)), "label": "who", "restricted": ["who"]}
    config = settings_of(
        release, identity="who", attributes=["side"], attacks=["membership"],
        outsiders=theirs, others=theirs, training=theirs,
    )  # fmt: skip
    audit_job.check(config)
    assert audit_job.run(config).figures


def test_baselines_stand_beside_the_release_and_out_of_its_answers(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mean_difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # these pictures are too small for LPIPS
        return (a - b).abs().mean((1, 2, 3))

    monkeypatch.setattr(audit_job.PerceptualDistance, "load", lambda *_: mean_difference)
    audit_job.run(settings_of(release, attacks=["linkage"], baselines=["round-trip", "global", "unrelated"]))
    table = parquet.read(release.audit / "figures.parquet").to_pylist()
    by = {line["baseline"] for line in table}
    assert by == {None, "round trip", "level 1", "unrelated"}
    document = {x["baseline"]: x for x in table if x["measure"] == "rank-1" and x["attacker"] == "unaware"}
    assert document["round trip"]["value"] == 1 and document["level 1"]["value"] < 0.3
    (missing,) = [x for x in table if x["baseline"] == "unrelated"]
    assert missing["measure"] == "not run" and "audit.outsiders" in missing["note"]
    page = release.audit_page.read().decode()
    assert "Beside other methods" in page and "this release" in page
    audit_job.run(settings_of(release, attacks=["linkage"]))
    single = json.loads(release.audit_summary.read())
    audit_job.run(settings_of(release, attacks=["linkage"], baselines=["round-trip"]))
    assert json.loads(release.audit_summary.read()) == single


def test_attacks_are_left_out_by_name(release: Release) -> None:
    audit_job.run(settings_of(release, skip=["inversion", "parrot", "leaks", "membership"]))
    table = parquet.read(release.audit / "figures.parquet")
    assert set(table["attack"].to_pylist()) == {"linkage", "reidentification", "averaging"}


def test_an_audit_needs_the_restricted_half_the_originals_and_the_public_half(
    tmp_path: Path, release: Release, ideal: IdealGaussian
) -> None:
    with pytest.raises(OutputError, match="it is not a release"):
        audit_job.check(settings_of(Release.at(str(tmp_path / "nowhere"))))
    for file in (tmp_path / "in").glob("*.png"):
        file.unlink()
    with pytest.raises(SourceError, match="none of the released originals"):
        audit_job.run(settings_of(release))
    unfinished = settings(folder_of(tmp_path / "more", {"a.png": picture(1)}), tmp_path / "unfinished")
    begin(unfinished, ideal, KEY)
    one_shard(unfinished, 0, ideal)
    with pytest.raises(IntegrityError, match="finish the run before the audit"):
        audit_job.run(settings_of(Release.at(unfinished.output.uri)))
    assemble_candidate(Release.at(unfinished.output.uri), unfinished)


@pytest.mark.parametrize(("count", "identity"), [(1, None), (3, None), (6, "who")])
def test_a_release_that_is_too_small_to_attack_is_one_line(
    tmp_path: Path, ideal: IdealGaussian, count: int, identity: str | None
) -> None:
    folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(count)})
    source = listing(tmp_path / "in", [{"image": f"{i}.png", "who": "one person"} for i in range(count)])
    small = run(settings(source, tmp_path / "out", source={"drop": ["who"]}), ideal)
    with pytest.raises(OutputError, match="an audit needs 4 of two people or more"):
        audit_job.run(settings_of(small, identity=identity))
    assert not small.audit.exists() and not small.audit_summary.exists()


@pytest.mark.parametrize("attack", ["linkage", "leaks"])
def test_an_attack_alone_can_be_tried(release: Release, attack: str) -> None:
    audit_job.run(settings_of(release, attacks=[attack]))
    assert set(parquet.read(release.audit / "figures.parquet")["attack"].to_pylist()) == {attack}


def scored(audited: Release) -> list[dict[str, Any]]:
    """Figures of the attack by published scores."""
    audit_job.run(settings_of(audited, attacks=["leaks"]))
    return [f for f in parquet.read(audited.audit / "figures.parquet").to_pylist() if "published" in f["feature"]]


@pytest.mark.parametrize("how", ["exact", "binned"])
def test_published_scores_are_tried_as_an_attacker_tries_them(tmp_path: Path, ideal: IdealGaussian, how: str) -> None:
    source = folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(40)})
    result = scored(run(settings(source, tmp_path / "out", output={"public_scores": how}), ideal))
    end = "_bin" if how == "binned" else ""
    single, whole = "rank-1, by what is published alone", "with what is published, rank-1"
    assert [f["feature"] for f in result if f["measure"] == whole] == [
        f"published clip_similarity{end}", f"published lpips{end}", "all published scores"
    ]  # fmt: skip
    assert all(f["gallery"] == 40 for f in result) and {f["chance"] for f in result} == {None, 1 / 40}
    together = {f["measure"]: f for f in result if f["feature"] == "all published scores"}
    assert set(together) == {single, whole} and "without it" in together[single]["note"]
    if how == "exact":
        assert together[whole]["risk_low"] > 0.5
    assert together[single]["value"] <= together[whole]["value"]


def test_scores_that_are_not_published_or_cannot_be_computed_again_are_said_to_be_so(
    tmp_path: Path, ideal: IdealGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder_of(tmp_path / "few", {f"{i}.png": picture(i) for i in range(4)})
    (none,) = scored(run(settings(source, tmp_path / "none", output={"public_scores": "none"}), ideal))
    assert (none["measure"], none["note"]) == ("not run", "no score is published")

    class Newer(PlainScorer):
        names: Mapping[str, str] = {"clip_similarity": "other", "lpips": "plain-distance"}

    monkeypatch.setattr(audit_job, "scorer_of", lambda metrics, device: Newer())
    binned = run(settings(source, tmp_path / "binned", output={"public_scores": "binned"}), ideal)
    (other,) = scored(binned)
    assert other["note"] == "clip_similarity was scored by plain-similarity, and other is at hand: bring it back"

    def gone(metrics: object, device: str) -> PlainScorer:
        raise ModelError("metrics.clip: no such model")

    monkeypatch.setattr(audit_job, "scorer_of", gone)
    (lost,) = scored(binned)
    assert lost["note"] == "scores cannot be computed again: metrics.clip: no such model"


def test_the_documentation_names_every_setting_and_attack() -> None:
    text = (ROOT / "docs" / "audit.md").read_text(encoding="utf-8")
    for name in {*AuditConfig.model_fields} - {"release"}:
        assert f"`{name}`" in text or f"`{name}.…`" in text, name
    for name in (*ALL, "leaks"):
        assert f"| `{name}` |" in text, name


def test_the_filter_is_a_feature_that_needs_no_network_and_is_signed(release: Release, ideal: IdealGaussian) -> None:
    least: dict[str, Any] = {
        "release": str(release.root),
        "attacks": ["linkage"],
        "pairs": 20,
        "outputs": 2,
        "averaged": 20,
    }
    audit_job.run(build_resolved(AuditConfig, least | {"features": ["pixels", "filter"]}))
    document = json.loads((release.audit / "audit.json").read())
    assert document["attackers"]["features"] == ["pixels", "filter"]
    assert document["features"] == ["pixels", "matched filter"]
    figures = parquet.read(release.audit / "figures.parquet").to_pylist()
    assert {row["measure"] for row in figures if row["attacker"] == "filtering"} == {"rank-1", "rank-5", "assigned"}
    with pytest.raises(ConfigError, match=r"features.* must name a feature besides the filter, .*got filter"):
        build_resolved(AuditConfig, least | {"features": ["filter"]})


def test_an_audit_of_groups_has_the_ceilings_of_its_own_groups(tmp_path: Path, ideal: IdealGaussian) -> None:
    """Of twelve originals in groups of three, a member is named by at most one guess in three."""
    release = run_grouped(group_settings(photos(tmp_path / "in", 12), tmp_path / "out"), backbone=ideal)
    audit_job.run(settings_of(release, attacks=["linkage"]))
    audit = json.loads((release.audit / "audit.json").read())
    assert audit["no_ceiling"] == [] and audit["ceilings"]["k"] == 3 and audit["ceilings"]["outputs"] == 1
    assert audit["ceilings"]["linkage_rank1"]["high"] <= 0.3334
    assert audit["ceilings"]["knows_others"]["gallery"] == 10
    assert audit["ceilings"]["caveats"][0].startswith("output.public_scores binned")
    page = release.audit_page.read().decode()
    assert "knows all others" in page and "are equally likely before" in page


@pytest.mark.parametrize("outputs", ["one", "each"])
def test_a_release_of_groups_is_attacked_as_groups(tmp_path: Path, ideal: IdealGaussian, outputs: str) -> None:
    source = listing(photos(tmp_path / "in", 36), [{"image": f"p{i}.png", "label": "a"} for i in range(36)])
    config = group_settings(source, tmp_path / "out", groups={"outputs": outputs}, source={"label": "label"})
    release = run_grouped(config)
    quick = {"features": ["pixels", "filter"], "pairs": 20, "averaged": 20, "attacks": ["groups", "linkage"]}
    audit_job.run(build_resolved(AuditConfig, {"release": str(release.root)} | quick))
    rows = parquet.read(release.audit / "figures.parquet").to_pylist()
    attackers = {row["attacker"] for row in rows if row["attack"] == "groups"}
    expected = {"knows the groups", "knows some", "knows all others"}
    assert attackers == expected | ({"clusters outputs"} if outputs == "each" else set())
    assert not [row["note"] for row in rows if row["measure"] == "not run"]
    assert any(row["feature"] == "matched filter, of equal label" for row in rows)
    for row in rows:
        if row["attacker"] == "knows the groups":
            assert row["low"] <= 1 / 3 <= row["high"] and row["chance"] == pytest.approx(1 / 3)
