"""A calibration from source to file, and a release whose level it chooses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from anonymizer.config import CalibrationConfig, RunConfig
from anonymizer.errors import ConfigError, LevelError, OutputError
from anonymizer.policy import calibration
from anonymizer.policy.calibration import build_resolved
from anonymizer.release import preflight
from anonymizer.storage import parquet
from flows.cli import main
from flows.jobs import calibrate as calibrate_job
from metrics.audit.audit import ALL_ATTACKERS
from metrics.stats.risk import Figure
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.prefect_database import cells
from tests.support.releases import HEX, encoded, folder_of, listing, settings

PEOPLE, PHOTOS = 24, 4


def use_ideal_model(patch: pytest.MonkeyPatch) -> IdealGaussian:
    model = IdealGaussian(size=32)
    patch.setenv("ANONYMIZER_KEY", HEX)
    patch.setattr(calibrate_job, "backbone_of", lambda config: model)
    return model


@pytest.fixture
def ideal(monkeypatch: pytest.MonkeyPatch) -> IdealGaussian:
    return use_ideal_model(monkeypatch)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> CalibrationConfig:
    """Settings of a calibration that was made, for tests that change nothing of it."""
    asking = asked(tmp_path_factory.mktemp("calibrated"))
    with pytest.MonkeyPatch.context() as patch:
        use_ideal_model(patch)
        calibrate_job.run(asking)
    return asking


def source(root: Path, people: int = PEOPLE) -> Path:
    """``PHOTOS`` photos of each of ``people``, alike but for some noise."""
    rng = np.random.default_rng(0)
    faces = rng.uniform(60, 190, (people, 32, 32, 3))
    items, files = [], {}
    for person, face in enumerate(faces):
        for photo in range(PHOTOS):
            name = f"Wanda_Zx{person:02d}_{photo}.png"
            pixels = (face + rng.normal(0, 6, face.shape)).clip(0, 255).astype(np.uint8)
            files[name] = encoded(pixels)
            items.append({"image": name, "id": name, "who": f"p{person}", "side": person % 2})
    folder_of(root, files)
    return listing(root, items)


def asked(tmp_path: Path, people: int = PEOPLE, **more: Any) -> CalibrationConfig:
    run = settings(
        source(tmp_path / "in", people), tmp_path / "out", source={"kind": "squares", "id": "id"},
        metrics={"clip": "none"}, boomerang={"sampler": "ddim", "steps": 4},
    )  # fmt: skip
    quick = {"features": ["pixels"], "identity": "who", "attacks": ["linkage", "reidentification"], "pairs": 24}
    where = {"levels": ".3,1", "folder": str(tmp_path / "cal")}
    return build_resolved(CalibrationConfig, {"run": run.model_dump()} | quick | where | more)


def test_a_calibration_holds_the_curve_and_what_it_belongs_to(tmp_path: Path, ideal: IdealGaussian) -> None:
    summary = calibrate_job.run(asked(tmp_path, attributes=["side"]))
    assert (summary.pictures, summary.people, summary.levels) == (96, 24, 2)
    result = calibration.read(str(tmp_path / "cal/calibration.json"))
    assert result.belongs_to.model_digest == ideal.digest and result.belongs_to.kind == "squares"
    assert (result.choosing.people, result.confirming.people) == (12, 12)
    low, high = result.levels
    assert (low.t_boom, high.t_boom) == (300, 1000) and low.log_snr > high.log_snr
    for half in ("choosing", "confirming"):
        before, after = ({r.attack: r.value for r in getattr(level, half)} for level in (low, high))
        assert before["linkage"] and before["linkage"] > 0.4  # photos of one person are taken for one another
        assert after["linkage"] is not None and after["linkage"] < 0.2
        ceilings = [getattr(level, f"{half}_ceilings") for level in (low, high)]
        assert all(c is not None and c.linkage_rank1.gallery == 48 for c in ceilings)
        assert ceilings[0].linkage_rank1.high >= before["linkage"]
        assert ceilings[1].linkage_rank1.low < 1 / 12 < ceilings[1].linkage_rank1.high  # one person of twelve
        assert ceilings[1].linkage_rank1.value < 0.15
    lpips = [level.utility["LPIPS"].value for level in (low, high)]
    assert lpips[0] is not None and lpips[1] is not None and lpips[0] < lpips[1]
    assert low.utility["accuracy of side, taught by originals"].value is not None


def test_tables_and_plots_lie_beside_it_for_the_owner_alone(calibrated: CalibrationConfig) -> None:
    folder = Path(calibrated.folder)
    names = {"calibration.json", "risk.parquet", "utility.parquet"}
    assert {p.name for p in folder.iterdir()} == names | {
        f"{n}.{k}" for n in ("risk", "utility") for k in ("svg", "png")
    }
    assert folder.stat().st_mode & 0o077 == 0
    table = parquet.read(calibration.StoragePath.from_uri(str(folder / "risk.parquet")))
    assert set(table["half"].to_pylist()) == {"choosing", "confirming"} and set(table["level"].to_pylist()) == {
        0.3,
        1.0,
    }
    for file in folder.iterdir():
        assert b"Wanda" not in file.read_bytes()


def test_a_run_takes_the_level_that_the_calibration_chooses(
    calibrated: CalibrationConfig, ideal: IdealGaussian
) -> None:
    tree = calibrated.run.model_dump(exclude={"boomerang": {"chosen"}})
    tree["boomerang"]["level"] = {"calibration": f"{calibrated.folder}/calibration.json", "max_risk": 0.4}
    settled = calibration.build_resolved(RunConfig, tree)
    assert settled.boomerang.level == 1.0 and settled.boomerang.chosen is not None
    tree["boomerang"]["level"]["max_risk"] = 0.01
    with pytest.raises(LevelError, match="no level") as caught:
        calibration.build_resolved(RunConfig, tree)
    assert "0.3: " in caught.value.figures and " 1: " in caught.value.figures


def test_repeating_a_calibration_gives_the_same_curve(
    tmp_path: Path, calibrated: CalibrationConfig, ideal: IdealGaussian
) -> None:
    again = calibrated.model_copy(update={"folder": str(tmp_path / "again")})
    calibrate_job.run(again)
    a, b = (calibration.read(f"{asking.folder}/calibration.json") for asking in (calibrated, again))
    assert a.levels == b.levels


def test_an_attack_that_cannot_be_tried_is_there_without_a_number(tmp_path: Path, ideal: IdealGaussian) -> None:
    calibrate_job.run(asked(tmp_path, identity=None, levels="1"))
    (level,) = calibration.read(str(tmp_path / "cal/calibration.json")).levels
    (risk,) = [r for r in level.choosing if r.attack == "reidentification"]
    assert risk.value is None and risk.note is not None and "audit.identity" in risk.note


def test_too_few_people_for_two_halves_are_one_line(tmp_path: Path, ideal: IdealGaussian) -> None:
    with pytest.raises(ConfigError, match="19 people in the sample: a calibration needs 20 of 10 people"):
        calibrate_job.run(asked(tmp_path, people=19))
    assert not (tmp_path / "cal/calibration.json").exists()


def test_a_calibration_is_not_written_over(calibrated: CalibrationConfig, ideal: IdealGaussian) -> None:
    with pytest.raises(OutputError, match="holds a calibration already"):
        calibrate_job.check(calibrated)


def test_a_calibration_does_not_go_where_something_lies(tmp_path: Path, ideal: IdealGaussian) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="is there already"):
        calibrate_job.check(asked(tmp_path, folder=str(tmp_path / "taken")))
    with pytest.raises(OutputError, match="inside the source"):
        preflight.check_private_folder("folder", str(tmp_path / "in/cal"), str(tmp_path / "in"))


def test_a_calibration_does_not_go_into_a_release(tmp_path: Path, ideal: IdealGaussian) -> None:
    folder_of(tmp_path / "release", {"restricted/plan.json": b"{}", "public/a": b""})
    with pytest.raises(OutputError, match="inside a release"):
        calibrate_job.check(asked(tmp_path, folder=str(tmp_path / "release/public/cal")))


def test_what_failed_leaves_a_private_folder_and_can_be_tried_again(tmp_path: Path, ideal: IdealGaussian) -> None:
    asking = asked(tmp_path, people=19)
    with pytest.raises(ConfigError, match="19 people"):
        calibrate_job.run(asking)
    assert (tmp_path / "cal").stat().st_mode & 0o077 == 0
    calibrate_job.check(asking)


def test_the_confirming_half_shows_the_highest_measured_risk_of_any_attacker() -> None:
    """One attacker reached more, another has the higher bound since he had fewer trials: both numbers count."""
    sure = Figure("linkage", "aware", "rank-1", "clip", 200, 200, 0.06, 0.03, 0.102, chance=0.0)
    vague = Figure("linkage", "unaware", "rank-1", "dlib", 20, 20, 0.05, 0.01, 0.236, chance=0.0)
    risk = calibrate_job._risk_of("linkage", [sure, vague])
    assert (risk.value, risk.high, risk.feature) == (0.06, 0.236, "dlib")


def test_an_attack_that_failed_is_not_measured_however_far_it_came() -> None:
    result = Figure("linkage", "aware", "rank-1", "clip", 200, 200, 0.06, 0.03, 0.102, chance=0.0)
    failed = Figure("linkage", ALL_ATTACKERS, "not run", "", 0, 0, note="failed")
    assert calibrate_job._risk_of("linkage", [result, failed]).value is None
    assert calibrate_job._risk_of("linkage", []).note == "not tried"


def test_a_calibration_needs_a_name_for_what_is_on_the_pictures(tmp_path: Path, ideal: IdealGaussian) -> None:
    asking = asked(tmp_path)
    run = asking.run.model_copy(update={"source": asking.run.source.model_copy(update={"kind": None})})
    with pytest.raises(ConfigError, match=r"source\.kind"):
        calibrate_job.check(asking.model_copy(update={"run": run}))


@pytest.mark.parametrize(
    ("given", "levels"),
    [(".1:.4:.1", (0.1, 0.2, 0.3, 0.4)), (".6,.2", (0.2, 0.6)), ("0.5", (0.5,)), ([0.7], (0.7,))],
)
def test_levels_are_a_range_or_a_list(tmp_path: Path, given: Any, levels: tuple[float, ...]) -> None:
    assert asked(tmp_path, levels=given).levels == levels


@pytest.mark.parametrize("given", ["0:.9:.1", ".1:.9", ".1:.9:0", "", "high", ".5,.5", "1.2", ".1:9e9:1e-9", "nan"])
def test_levels_that_cannot_be_are_refused_in_one_line(tmp_path: Path, given: str) -> None:
    with pytest.raises(ConfigError, match="levels"):
        asked(tmp_path, levels=given)


def test_leaks_are_not_looked_for_without_a_release(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="anonymizer audit"):
        asked(tmp_path, attacks=["leaks"])


def test_the_record_of_a_choice_holds_no_path(calibrated: CalibrationConfig) -> None:
    folder = Path(calibrated.folder)
    data = json.loads((folder / "calibration.json").read_text())
    assert str(folder.parent) not in json.dumps(data)


@pytest.mark.slow
def test_the_command_calibrates_through_prefect_which_learns_counts_alone(
    tmp_path: Path, tiny_model: Path, prefect_home: Path
) -> None:
    place = source(tmp_path / "in")
    folder = tmp_path / "cal"
    asking = [
        "calibrate", "--source", str(place), "--kind", "squares", "--model", str(tiny_model), "--levels", ".5,1",
        "--identity", "who", "--features", "pixels", "--attacks", "linkage", "--folder", str(folder),
        "--set", "metrics.clip=none", "--set", "metrics.lpips=none", "--set", "source.id=id",
    ]  # fmt: skip
    done = CliRunner().invoke(main, [*asking, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.strip().splitlines()[-1])
    assert (document["pictures"], document["people"], document["levels"]) == (96, 24, 2)
    assert document["calibration"]["identified"] is True
    for table, column, value in cells(prefect_home):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        assert "Wanda_Zx" not in text, f"{table}.{column}"
    again = CliRunner().invoke(main, asking)
    assert again.exit_code != 0 and "holds a calibration already" in again.output
