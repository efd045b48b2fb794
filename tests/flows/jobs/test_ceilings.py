"""Ceilings from the settings of a run to its signed statement."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anonymizer.attest import statement
from anonymizer.attest.predicate import ReleasePredicate, parse
from anonymizer.boomerang import Boomerang
from anonymizer.config import RunConfig
from anonymizer.errors import ConfigError
from anonymizer.records import Plan
from anonymizer.release import plan as planning
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage.layout import Release
from flows.jobs import ceilings
from metrics.stats.ceilings import compute_ceilings
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import KEY, folder_of, people, picture, run, settings

NO_SCORES = {"public_scores": "none"}


def config_of(tmp_path: Path, **sections: Any) -> RunConfig:
    source = tmp_path / "in"
    if not source.exists():
        people(source, 12)
    return settings(source, tmp_path / "out", **({"output": NO_SCORES} | sections))


def planned(config: RunConfig) -> Plan:
    backbone = IdealGaussian()
    return ceilings.add_ceilings(config, backbone, KEY, planning.build_plan(config, backbone, KEY, 0))


def test_a_plan_has_the_ceilings_of_its_own_originals(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    plan, backbone = planned(config), IdealGaussian()
    assert plan.ceilings is not None and plan.no_ceiling == () and plan.ceilings.linkage_rank1.gallery == 12
    images, is_sample = ceilings.draw_originals(config, backbone, np.random.default_rng(1))
    assert not is_sample
    candidates = ceilings.place_images(images, backbone, is_sample=False)
    again = compute_ceilings(candidates, float(Boomerang(backbone).abar[plan.t_boom]), np.random.default_rng(2))
    assert plan.ceilings.membership_tpr_at_1.median == pytest.approx(again.membership_tpr_at_1.median, abs=1e-4)
    assert plan.ceilings.linkage_rank1.value == pytest.approx(again.linkage_rank1.value, abs=0.05)
    assert planned(config).ceilings == plan.ceilings  # the key alone decides what is drawn


def test_of_more_originals_a_sample_is_taken(tmp_path: Path) -> None:
    plan = planned(config_of(tmp_path, metrics={"gallery": 5}))
    assert plan.ceilings is not None and plan.ceilings.linkage_rank1.gallery == 5
    assert plan.ceilings.linkage_rank1.high - plan.ceilings.linkage_rank1.low > 0.3  # five people are five trials


def test_a_sample_with_a_picture_that_cannot_be_read_is_still_a_sample(tmp_path: Path) -> None:
    """Of twelve pictures and two that are none, all are looked at, or thirteen of them."""
    config = config_of(tmp_path)
    for name in ("broken", "empty"):
        (tmp_path / "in" / f"{name}.png").write_bytes(b"no picture" * (name == "broken"))
    whole, sample = planned(config), planned(config_of(tmp_path, metrics={"gallery": 13}))
    assert whole.ceilings is not None and sample.ceilings is not None
    assert whole.ceilings.linkage_rank1.gallery == 12 and sample.ceilings.linkage_rank1.gallery in (11, 12)
    widths = [one.ceilings.linkage_rank1.high - one.ceilings.linkage_rank1.low for one in (whole, sample)]  # type: ignore[union-attr]
    assert widths[1] > 3 * widths[0]  # people are trials, not the draws of their noise


@pytest.mark.parametrize(("outputs", "seen"), [("one", 1), ("each", 3)])
def test_of_groups_no_member_is_named_above_one_in_k(tmp_path: Path, outputs: str, seen: int) -> None:
    sections = {"source": {"label": "folder"}, "boomerang": {"k": 3}, "groups": {"outputs": outputs}}
    plan = planned(config_of(tmp_path, **sections))
    assert plan.ceilings is not None and (plan.ceilings.k, plan.ceilings.outputs) == (3, seen)
    assert plan.ceilings.linkage_rank1.high <= 1 / 3 + 1e-4
    assert plan.ceilings.knows_others is not None and plan.ceilings.knows_others.gallery == 4  # of its label
    assert planned(config_of(tmp_path, **(sections | {"boomerang": {"k": 7}}))).no_ceiling == (ceilings.NOT_ENOUGH,)


def test_where_an_assumption_fails_there_is_a_reason_and_no_figure(tmp_path: Path) -> None:
    plan = planned(config_of(tmp_path, policy={"escalate": [0.9]}))
    assert plan.ceilings is None
    assert plan.no_ceiling == ("policy.escalate: the level at which an output was drawn depends on its original",)


def test_published_scores_are_a_caveat_beside_the_figures(tmp_path: Path) -> None:
    plan = planned(config_of(tmp_path, output={"public_scores": "binned"}))
    assert plan.ceilings is not None
    assert [caveat.partition(":")[0] for caveat in plan.ceilings.caveats] == ["output.public_scores binned"]


def test_a_published_label_leaves_fewer_candidates(tmp_path: Path) -> None:
    """Each of twelve pictures in a folder of its own: the label names its original."""
    folder_of(tmp_path / "in", {f"{i:02d}/{j}.png": picture(2 * i + j) for i in range(6) for j in range(2)})
    config = config_of(tmp_path, boomerang={"level": 1.0})
    alone, labelled = (
        planned(config),
        planned(config_of(tmp_path, boomerang={"level": 1.0}, source={"label": "folder"})),
    )
    assert alone.ceilings is not None and labelled.ceilings is not None
    assert alone.ceilings.linkage_rank1.low < 1 / 12 < alone.ceilings.linkage_rank1.high
    assert labelled.ceilings.linkage_rank1.low < 1 / 2 < labelled.ceilings.linkage_rank1.high
    assert labelled.ceilings.linkage_rank1.low > 0.4


def test_photos_that_were_not_looked_at_are_a_caveat(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {f"{i:02d}/{j}.png": picture(6 * i + j) for i in range(3) for j in range(6)})
    plan = planned(config_of(tmp_path, source={"subject": "folder"}, metrics={"gallery": 9}))
    assert plan.ceilings is not None and plan.ceilings.caveats == (ceilings.OTHER_PHOTOS,)
    assert planned(config_of(tmp_path, source={"subject": "folder"})).ceilings.caveats == ()  # type: ignore[union-attr]


def test_copies_of_one_picture_have_no_ceiling(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {f"{i}.png": picture(1) for i in range(3)})
    assert planned(config_of(tmp_path)).no_ceiling == (ceilings.NOT_ENOUGH,)


def test_a_bound_that_is_not_kept_is_refused_before_any_work(tmp_path: Path) -> None:
    policy = {"ceilings": {"linkage_rank1": 0.01}}
    with pytest.raises(ConfigError, match=r"policy.ceilings.linkage_rank1: at most 0.01 asked for, and at level 0.4 "):
        planned(config_of(tmp_path, policy=policy))
    with pytest.raises(ConfigError, match=r"and no ceiling holds \(policy.escalate"):
        planned(config_of(tmp_path, policy=policy | {"escalate": [0.9]}))
    waiver = {"rule": "ceilings.linkage_rank1", "who": "ada", "why": "a trial", "until": "2999-01-01"}
    assert planned(config_of(tmp_path, policy=policy | {"waivers": [waiver]})).ceilings is not None


def test_the_statement_has_the_ceilings_of_the_plan(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    add_ceilings = partial(ceilings.add_ceilings, config, IdealGaussian(), KEY)
    planning.write_or_resume(
        config, IdealGaussian(), KEY, Release.at(config.output.uri, KEY), add_ceilings=add_ceilings
    )
    release = run(config)
    plan = planning.read(release)
    assert plan.ceilings is not None
    predicate = statement.read(release.public).predicate
    assert predicate["ceilings"] == json.loads(json.dumps(asdict(plan.ceilings)))
    for name in ("README.md", "report.html"):
        assert "links at most: " in (release.public / name).read().decode()
    for wrong in ({"note": 1}, {"linkage_rank1": {"value": 0.1, "low": 0.0, "high": 0.2}}, {"k": "3"}):
        with pytest.raises(ValueError, match="ceilings"):
            parse(ReleasePredicate, predicate | {"ceilings": predicate["ceilings"] | wrong})
    assert not [f for f in check_restricted(release, config, KEY) if f.result == "fail"]
