"""Choosing a level from measured risk: curves solved by hand, files of any kind, and the rule wherever it may stand."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.backbones import load_backbone
from anonymizer.config import CalibrationScope, ChosenLevel, ModelConfig, RunConfig, dump, read_tree
from anonymizer.config import parse as parse_yaml
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import ConfigError, LevelError, OutputError
from anonymizer.policy.calibration import (
    AttackRisk,
    CalibratedLevel,
    Calibration,
    CalibrationAttackers,
    LevelChoice,
    SampleHalf,
    Utility,
    build_resolved,
    choose_level,
    choose_level_by_ceilings,
    parse,
    read,
    resolve_level,
    to_json,
)
from anonymizer.records import CeilingRate, Ceilings, MembershipCeiling
from anonymizer.release import plan
from anonymizer.storage.layout import Release
from flows.cli import main
from flows.jobs import release as release_job
from tests.support import ROOT
from tests.support.calibrations import IDEAL, KIND, SETTINGS, Highs, build, calibration, level, risk, sealed
from tests.support.configs import PIXELS
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    HEX,
    KEY,
    PlainScorer,
    begin,
    people,
    public_images,
    run,
    settings,
    tree,
    write_restricted_report,
)

RULE = {"calibration": "c.json", "max_risk": 0.05}

CURVE = calibration(level(0.2, 1.0), level(0.4, 0.3), level(0.6, 0.05), level(0.8, 0.01))


def error_of(work: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def figures_of(work: Callable[[], Any]) -> str:
    """Return what a LevelError shows the custodian; its text, which a scheduler may store, holds no risk."""
    with pytest.raises(LevelError) as caught:
        work()
    assert "\n" not in str(caught.value) and not re.search(r"0\.\d{3} |not measured", str(caught.value))
    return caught.value.figures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``c.json``, the curve that gives 0.6 for a risk of 0.05."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    (tmp_path / "c.json").write_bytes(sealed(CURVE))
    return tmp_path


def config_with_rule(*overrides: str, **rule: Any) -> RunConfig:
    return build(SETTINGS | {"boomerang": {"level": RULE | rule, "steps": 2}}, overrides)


# -- choosing by ceilings -------------------------------------------------------------------------------------------


def with_ceilings(share: float, choosing: float, confirming: float | None = None) -> CalibratedLevel:
    """A level whose ceiling on linkage has these upper ends in the two halves."""
    halves = {"choosing_ceilings": choosing, "confirming_ceilings": choosing if confirming is None else confirming}
    return level(share, 0.0).model_copy(update={name: ceilings_of(high) for name, high in halves.items()})


def ceilings_of(high: float) -> Ceilings:
    rate = CeilingRate(value=high / 2, low=0.0, high=high, gallery=50)
    pairs = MembershipCeiling(0.1, 0.3, 0.9)
    return Ceilings(1, 1, rate, rate, rate, None, pairs, pairs)


CEILING_CURVE = calibration(with_ceilings(0.6, 0.5), with_ceilings(0.8, 0.04), with_ceilings(0.9, 0.01))
CEILING_RULE = {"calibration": "c.json", "promise": "ceiling", "ceilings": {"linkage_rank1": 0.05}}


@pytest.mark.parametrize(("bound", "chosen"), [(0.005, None), (0.01, 0.9), (0.05, 0.8), (0.5, 0.6)])
def test_the_smallest_level_whose_ceilings_hold_is_taken(bound: float, chosen: float | None) -> None:
    if chosen is None:
        with pytest.raises(LevelError, match="no level, taken from the strongest down, has ceilings within") as caught:
            choose_level_by_ceilings(CEILING_CURVE, {"linkage_rank1": bound})
        assert caught.value.figures == "at 0.9 they are linkage_rank1 0.01"
    else:
        assert choose_level_by_ceilings(CEILING_CURVE, {"linkage_rank1": bound}) == chosen


def test_ceilings_of_people_who_did_not_choose_must_confirm_the_level() -> None:
    unconfirmed = calibration(with_ceilings(0.8, 0.04, 0.06), with_ceilings(0.9, 0.01))
    with pytest.raises(LevelError, match="those of the people who were to confirm it are higher"):
        choose_level_by_ceilings(unconfirmed, {"linkage_rank1": 0.05})
    with pytest.raises(LevelError, match="has ceilings within"):
        choose_level_by_ceilings(CURVE, {"linkage_rank1": 1.0})  # made where no ceiling holds


def test_a_run_takes_its_level_by_the_promised_ceilings(folder: Path) -> None:
    (folder / "c.json").write_bytes(sealed(CEILING_CURVE))
    tree = SETTINGS | {"boomerang": {"level": CEILING_RULE, "steps": 2}}
    config = build(tree, ["output.public_scores=none"])
    assert config.boomerang.level == 0.8 and config.boomerang.chosen is not None
    assert (config.boomerang.chosen.ceilings, config.boomerang.chosen.max_risk) == ({"linkage_rank1": 0.05}, None)
    assert str(config.boomerang.chosen).startswith("chosen from a calibration for ceilings of linkage_rank1 0.05, SHA")
    assert "output.public_scores is binned" in error_of(lambda: build(tree))
    for wrong in ({"max_risk": 0.1}, {"ceilings": {}}, {"promise": "measured"}):
        line = error_of(
            lambda wrong=wrong: build(SETTINGS | {"boomerang": {"level": CEILING_RULE | wrong, "steps": 2}})
        )
        assert "promise" in line


# -- choosing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_risk", "chosen"), [(0.009, None), (0.01, 0.8), (0.049, 0.8), (0.05, 0.6), (0.3, 0.4), (0.999, 0.4)]
)
def test_the_smallest_level_whose_upper_bound_holds_is_taken(max_risk: float, chosen: float | None) -> None:
    if chosen is None:
        error_of(lambda: choose_level(CURVE, max_risk))
    else:
        assert choose_level(CURVE, max_risk).level == chosen


def test_a_lucky_low_level_is_not_taken() -> None:
    curve = calibration(level(0.2, 0.01), level(0.4, 0.2), level(0.6, 0.04), level(0.8, 0.05))
    assert choose_level(curve, 0.05).level == 0.6
    assert choose_level(curve, 0.2).level == 0.2


def test_levels_may_stand_in_any_order() -> None:
    curve = calibration(level(0.6, 0.05), level(0.2, 1.0), level(0.8, 0.01), level(0.4, 0.3))
    assert choose_level(curve, 0.05) == choose_level(CURVE, 0.05)


def test_the_upper_bound_counts_and_not_the_value() -> None:
    one = level(0.9, 0.3).model_copy(update={"choosing": (risk("linkage", 0.3, value=0.01),)})
    assert "0.9: 0.300 linkage" in figures_of(lambda: choose_level(calibration(one), 0.1))


def test_every_attack_must_hold() -> None:
    curve = calibration(level(0.4, {"linkage": 0.04, "leaks": 0.2}), level(0.8, {"linkage": 0.04, "leaks": 0.03}))
    assert choose_level(curve, 0.05).level == 0.8
    assert choose_level(curve, 0.05).attacks == ("leaks", "linkage")


def test_a_promise_may_be_about_some_attacks_only() -> None:
    curve = calibration(
        level(0.4, {"linkage": 0.9, "leaks": 0.02}, {"linkage": 0.9, "leaks": 0.01}),
        level(0.8, {"linkage": 0.9, "leaks": 0.01}, {"linkage": 0.9, "leaks": 0.01}),
    )
    assert choose_level(curve, 0.05, ["leaks"]) == LevelChoice(0.4, 0.05, ("leaks",), 0.02, 0.01, 0.02)
    assert "0.4: 0.900 linkage, 0.8: 0.900 linkage" in figures_of(lambda: choose_level(curve, 0.05))


@pytest.mark.parametrize("unmeasured", [{"linkage": 0.01, "leaks": None}, {"linkage": 0.01}])
def test_an_unmeasured_risk_counts_as_too_high(unmeasured: Highs) -> None:
    """Whether the attack is listed without a number, or not listed at all."""
    full = {"linkage": 0.01, "leaks": 0.01}
    assert choose_level(calibration(level(0.4, unmeasured), level(0.8, full)), 0.05).level == 0.8
    figures = figures_of(lambda: choose_level(calibration(level(0.4, full), level(0.8, unmeasured)), 0.05))
    assert figures == "upper bounds are 0.4: 0.010 linkage, 0.8: leaks not measured"


def test_other_people_must_confirm_the_choice() -> None:
    curve = calibration(level(0.4, 0.04, 0.08), level(0.8, 0.01, 0.01))
    line = error_of(lambda: choose_level(curve, 0.05))
    assert "boomerang.level: 0.4 was chosen for a risk of at most 0.05, and the people who were to confirm" in line
    assert line.endswith("to confirm it show more: raise max_risk, or calibrate with more people")
    assert figures_of(lambda: choose_level(curve, 0.05)) == "they show 0.080 linkage, upper bound 0.160 linkage"
    assert choose_level(curve, 0.03) == LevelChoice(0.8, 0.03, ("linkage",), 0.01, 0.01, 0.02)


def test_the_value_confirms_and_the_error_gives_its_bound() -> None:
    assert choose_level(calibration(level(0.4, 0.04, 0.05)), 0.05) == LevelChoice(
        0.4, 0.05, ("linkage",), 0.04, 0.05, 0.1
    )


def test_a_confirmation_without_a_number_is_none() -> None:
    figures = figures_of(lambda: choose_level(calibration(level(0.4, 0.04, None)), 0.05))
    assert figures.startswith("they show linkage not measured")


def test_where_no_level_holds_the_error_has_the_curve_and_says_what_to_do() -> None:
    line = error_of(lambda: choose_level(CURVE, 0.001))
    assert "no level, taken from the strongest down, keeps the risk at or below 0.001" in line
    curve = "upper bounds are 0.2: 1.000 linkage, 0.4: 0.300 linkage, 0.6: 0.050 linkage, 0.8: 0.010 linkage"
    assert figures_of(lambda: choose_level(CURVE, 0.001)) == curve
    assert "raise max_risk, calibrate with more people, or name the attacks that the promise is about" in line


@pytest.mark.parametrize("max_risk", [0, 1, -0.1, 1.5, float("nan"), float("inf")])
def test_a_max_risk_of_0_or_1_is_refused(max_risk: float) -> None:
    assert f"boomerang.level.max_risk must be in (0, 1), got {max_risk:g}" in error_of(
        lambda: choose_level(CURVE, max_risk)
    )


def test_a_promise_about_an_attack_that_was_not_tried_is_refused() -> None:
    assert "did not try 'parrot': name some of linkage" in error_of(
        lambda: choose_level(CURVE, 0.05, ["linkage", "parrot"])
    )
    assert "boomerang.level.attacks: names none" in error_of(lambda: choose_level(CURVE, 0.05, []))


def test_a_calibration_without_attacks_is_refused() -> None:
    assert "tried no attack" in error_of(lambda: choose_level(calibration(level(0.4, {}, {})), 0.05))


def test_a_calibration_without_a_kind_is_not_begun() -> None:
    line = error_of(lambda: build(SETTINGS, ["source.kind=null"]).calibration_scope(IDEAL))
    assert line.startswith("source.kind: missing: say in a few words what is on the pictures (--set source.kind=")


# -- the file ---------------------------------------------------------------------------------------------------------


def test_a_calibration_survives_its_file(folder: Path) -> None:
    assert read("c.json") == read(str(folder / "c.json")) == read((folder / "c.json").as_uri()) == CURVE
    assert json.loads(to_json(CURVE))["format"] == "anonymizer calibration 1"


numbers = st.none() | st.floats(-5, 5)


@given(st.dictionaries(st.from_regex(r"[a-z0-9_-]+", fullmatch=True), numbers, max_size=4), st.floats(0.001, 1))
def test_any_calibration_survives_its_file(highs: Highs, share: float) -> None:
    curve = calibration(level(share, highs, highs))
    assert parse(to_json(curve), "c.json") == curve


@given(st.data())
def test_a_file_that_was_cut_is_one_line(data: st.DataObject) -> None:
    whole = to_json(CURVE)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert error_of(lambda: parse(cut, "c.json")).startswith("calibration 'c.json': is damaged")


@given(st.data(), st.binary(min_size=1, max_size=8))
def test_a_garbled_file_is_one_line_or_a_calibration(data: st.DataObject, noise: bytes) -> None:
    whole = to_json(CURVE)
    at = data.draw(st.integers(0, len(whole)))
    garbled = whole[:at] + noise + whole[at + data.draw(st.integers(0, 8)) :]
    try:
        parse(garbled, "c.json")
    except ConfigError as error:
        assert str(error).startswith("calibration 'c.json': ")
        assert "\n" not in str(error)


@given(st.binary(max_size=60) | st.recursive(st.none(), lambda x: st.lists(x)).map(lambda x: json.dumps(x).encode()))
def test_any_bytes_are_one_line(data: bytes) -> None:
    assert "is damaged, or no calibration: restore it, or calibrate again" in error_of(lambda: parse(data, "c.json"))


def changed(path: str, value: Any) -> bytes:
    """Return the file with one value changed or removed."""
    whole = json.loads(to_json(CURVE))
    *parents, key = (int(part) if part.isdigit() else part for part in path.split("."))
    node = whole
    for part in parents:
        node = node[part]
    if value is ...:
        del node[key]
    else:
        node[key] = value
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("format", "anonymizer calibration 2", "has a format that is not 'anonymizer calibration 1': calibrate again"),
        ("format", ..., "is damaged, or no calibration"),
        ("levels", ..., "is damaged at levels: restore it"),
        ("levels", [], "is damaged at levels"),
        ("belongs_to.kind", ..., "is damaged at belongs_to.kind"),
        ("belongs_to.steps", ..., "is damaged at belongs_to.steps"),
        ("belongs_to.quality", "95", "is damaged at belongs_to.quality"),
        ("levels.0.utility", ..., "is damaged at levels.0.utility"),
        ("levels.0.level", 0, "is damaged at levels.0.level"),
        ("levels.0.level", 0.8, "is damaged at levels"),  # twice
        ("levels.0.level", True, "is damaged at levels.0.level"),
        ("levels.0.log_snr", float("nan"), "is damaged at levels.0.log_snr"),
        ("levels.0.choosing.0.attack", "two\nlines", "is damaged at levels.0.choosing.0.attack"),
        ("levels.0.choosing.0.high", ..., "is damaged at levels.0.choosing.0.high"),
        ("levels.0.choosing.0.high", "0.01", "is damaged at levels.0.choosing.0.high"),
        ("levels.0.choosing.0.high", None, "is damaged at levels.0.choosing.0"),  # a value without its bound
        ("levels.0.choosing", [risk("a", 1).model_dump()] * 2, "is damaged at levels.0.choosing"),
        ("levels.0.surprise\nhere", 1, "is damaged, or no calibration"),
    ],
)
def test_a_file_that_is_not_whole_is_one_line(path: str, value: Any, line: str) -> None:
    assert error_of(lambda: parse(changed(path, value), "c.json")).startswith(f"calibration 'c.json': {line}")


def test_an_unreadable_file_is_one_line_without_its_address(tmp_path: Path) -> None:
    secret = tmp_path / "secret project"
    secret.mkdir()
    for uri, line in (
        (f"{secret}/c.json", "calibration 'c.json': no such file: check boomerang.level.calibration"),
        (f"memory://{secret}/c.json", "calibration 'c.json': no such file"),
        (f"nosuch://{secret}/c.json?signed=1", "calibration 'c.json': its address cannot be opened"),
        (f"{secret}/", "calibration 'secret project': cannot be read (IsADirectoryError)"),
    ):
        assert (message := error_of(lambda uri=uri: read(uri))).startswith(line)
        assert str(tmp_path) not in message


def test_every_key_of_the_file_is_documented() -> None:
    text = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    section = text.partition("## `calibration.json`")[2].partition("\n## ")[0]
    for part in (
        Calibration,
        CalibrationAttackers,
        CalibrationScope,
        SampleHalf,
        CalibratedLevel,
        AttackRisk,
        Utility,
        ChosenLevel,
    ):
        for name in part.model_fields:
            assert (
                f"`{name}`" in section or f".{name}`" in section or f".{name}[]`" in section or f"`{name}[]`" in section
            )


# -- the rule ---------------------------------------------------------------------------------------------------------


def test_a_rule_in_a_file_becomes_a_number_and_a_record(folder: Path) -> None:
    (folder / "run.yaml").write_text(
        f"source: {{uri: in, kind: {KIND}}}\noutput: {{uri: out}}\n"
        "boomerang:\n  steps: 2\n  level: {calibration: c.json, max_risk: 0.05}\n"
    )
    config = build(read_tree(folder / "run.yaml"))
    assert config.boomerang.level == 0.6
    chosen = config.boomerang.chosen
    assert chosen is not None
    assert chosen.calibration == hashlib.sha256((folder / "c.json").read_bytes()).hexdigest()
    assert (chosen.level, chosen.max_risk, chosen.attacks) == (0.6, 0.05, ("linkage",))
    assert chosen.belongs_to == CURVE.belongs_to
    assert "c.json" not in dump(config)
    assert build(read_tree(folder / "run.yaml"), ["boomerang.level.max_risk=0.3"]).boomerang.level == 0.4


def test_a_rule_may_be_given_as_an_override(folder: Path) -> None:
    rule = f"boomerang.level={{calibration: {(folder / 'c.json').as_uri()}, max_risk: 0.02, attacks: [linkage]}}"
    assert build(SETTINGS, [rule]).boomerang.level == 0.8
    assert build(SETTINGS, [rule, "boomerang.level.max_risk=0.3"]).boomerang.level == 0.4


def test_a_number_is_left_alone() -> None:
    assert resolve_level(SETTINGS) == SETTINGS
    assert build(SETTINGS).boomerang.chosen is None


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"max_rsk": 0.05}, "boomerang.level.max_rsk: unknown key: did you mean 'max_risk'?"),
        ({"zzz": 1}, "boomerang.level.zzz: unknown key: known keys: attacks, calibration, ceilings, max_risk"),
        ({"max_risk": "much"}, "boomerang.level.max_risk: Input should be a valid number"),
        ({"max_risk": True}, "boomerang.level.max_risk must be a number, got true"),
        ({"max_risk": 0}, "boomerang.level.max_risk must be in (0, 1), got 0"),
        ({"attacks": "linkage"}, "boomerang.level.attacks: is a list, got 'linkage': put it in square brackets"),
        ({"attacks": []}, "boomerang.level.attacks: names none"),
        ({"attacks": ["parrot"]}, "boomerang.level.attacks: the calibration did not try 'parrot'"),
        ({"calibration": "s3://me:hunter2@host/c.json"}, "boomerang.level.calibration holds a password"),
        ({"calibration": " "}, "boomerang.level.calibration must name a folder, file or prefix"),
        ({"calibration": "none.json"}, "calibration 'none.json': no such file"),
        ({"max_risk": 0.001}, "boomerang.level: no level, taken from the strongest down, keeps the risk"),
    ],
)
def test_a_wrong_rule_is_one_line(folder: Path, rule: dict[str, Any], line: str) -> None:
    message = error_of(lambda: config_with_rule(**rule))
    assert line in message
    assert "hunter2" not in message


def test_a_missing_key_of_a_rule_is_named(folder: Path) -> None:
    assert "boomerang.level.calibration: missing" in error_of(lambda: build(SETTINGS, ["boomerang.level={}"]))


def test_other_errors_precede_those_of_the_calibration(folder: Path) -> None:
    message = error_of(lambda: config_with_rule("run.treads=1", calibration="none.json"))
    assert "run.treads: unknown key" in message
    assert "none.json" not in message


OTHERS = {
    "model.dtype": "bfloat16", "boomerang.sampler": "ddim", "boomerang.steps": None, "source.fit": "pad",
    "output.image": "jpeg", "output.quality": 50, "output.size": "original", "source.kind": "chest X-rays",
    "model.size": 128, "model.variant": "fp16", "model.prompt": "a face", "model.negative_prompt": "a cat",
    "model.guidance": 2.0,
    "model.vae_tiling": True, "model.tile_overlap": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("key", OTHERS)
def test_a_calibration_is_refused_with_other_settings(folder: Path, key: str) -> None:
    value = OTHERS[key]
    words = "null" if value is None else repr(value)
    line = rf"{key}: the calibration was made with "
    rule = {"boomerang.level": RULE | {"max_risk": 0.001}}  # no level holds it, but this error comes later
    message = error_of(lambda: build(SETTINGS, (), rule | {key: value}))
    assert message.startswith(line)
    assert f", not {words}: use that, or calibrate anew" in message
    stored = parse_yaml(dump(config_with_rule()), "config.yaml")
    assert error_of(lambda: build(stored, (), {key: value})).startswith(line)


def test_every_setting_that_changes_pixels_is_one_that_a_calibration_belongs_to() -> None:
    assert set(OTHERS) == set(PIXELS) - {"boomerang.level", "boomerang.k"} | {"source.kind"}


def test_a_rule_needs_to_know_the_kind_of_pictures(folder: Path) -> None:
    message = error_of(lambda: config_with_rule("source.kind=null"))
    assert message == f"source.kind: missing: the calibration is for '{KIND}': set it to that if it is true here"


@pytest.mark.parametrize("kind", ["''", "' '", '"a\\nb"', "3"])
def test_a_kind_is_a_few_words(kind: str) -> None:
    assert error_of(lambda: build(SETTINGS, [f"source.kind={kind}"])).startswith("source.kind")
    assert build(SETTINGS, [f"source.kind=' {KIND} '"]).source.kind == KIND


def test_kinds_that_differ_late_are_different(folder: Path) -> None:
    kind = "x" * 100
    (folder / "c.json").write_bytes(
        sealed(calibration(level(0.6, 0.01), config=build(SETTINGS, [f"source.kind={kind}"])))
    )
    assert config_with_rule(f"source.kind={kind}").boomerang.level == 0.6
    assert "source.kind" in error_of(lambda: config_with_rule(f"source.kind={kind}y"))


def test_a_calibration_that_the_key_did_not_seal_chooses_no_level(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to its folder would choose the level."""
    file = folder / "c.json"
    whole = file.read_bytes()
    document = json.loads(whole)
    lower = [dict(entry, choosing=[], confirming=[]) for entry in document["levels"]]
    easy = [dict(entry, choosing=document["levels"][3]["choosing"]) for entry in document["levels"]]
    forged = [json.dumps(document | change) for change in ({"levels": easy}, {"levels": lower}, {"made": ""})]
    forged += [json.dumps({name: value for name, value in document.items() if name != "hmac"})]
    forged += [
        json.dumps(document, indent=3),
        to_json(CURVE).decode(),
        to_json(CURVE, CustodianKey(bytes(32))).decode(),
    ]
    for text in forged:
        file.write_text(text)
        assert re.search(
            "(has no seal by|is not what was written with) the custodian's key", error_of(config_with_rule)
        )
    rng = random.Random(16)
    for _ in range(40):
        data, at = bytearray(whole), rng.randrange(len(whole))
        data[at] ^= 1 << rng.randrange(8)
        file.write_bytes(bytes(data))
        assert error_of(config_with_rule).startswith("calibration 'c.json': ")
    file.write_bytes(whole)
    monkeypatch.delenv("ANONYMIZER_KEY")
    assert "nobody vouches for it: set ANONYMIZER_KEY" in error_of(config_with_rule)


@pytest.mark.parametrize(
    ("attackers", "lacking"),
    [
        ({}, None),
        ({"features": ("dlib",)}, "features pixels, lpips, clip, imagenet, filter were not compared by"),
        ({"sample": 50}, "50 of 300 records were attacked"),
        ({"pairs": 20}, "pairs: 20"),
        (None, "it does not say who attacked"),
    ],
)
def test_a_promise_by_weaker_attackers_than_the_policy_names_is_refused(
    folder: Path, attackers: dict[str, Any] | None, lacking: str | None
) -> None:
    """Whoever calibrates may choose attackers who find nothing at any level."""
    tried = CURVE.attackers and attackers is not None and CURVE.attackers.model_copy(update=attackers)
    (folder / "c.json").write_bytes(sealed(CURVE.model_copy(update={"attackers": tried or None})))
    assert config_with_rule().boomerang.level == 0.6, "without a policy about risk it is the calibration's word"
    for policy in ("policy.risk={max_linkage: {upper: 0.5}}", "policy.attackers={averaged: 39}"):
        if lacking is None:
            assert config_with_rule(policy).boomerang.level == 0.6
        else:
            message = error_of(lambda policy=policy: config_with_rule(policy))
            assert "calibration 'c.json': by weaker attackers than policy.attackers names" in message
            assert lacking in message


def test_a_calibration_may_be_pinned_in_place_of_a_seal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANONYMIZER_KEY")
    (folder / "c.json").write_bytes(to_json(CURVE))
    digest = hashlib.sha256((folder / "c.json").read_bytes()).hexdigest()
    assert config_with_rule(sha256=digest).boomerang.level == 0.6
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    assert config_with_rule(sha256=digest).boomerang.level == 0.6
    (folder / "c.json").write_bytes(sealed(calibration(level(0.2, 0.01))))
    assert "is not the file of boomerang.level.sha256" in error_of(lambda: config_with_rule(sha256=digest))
    assert "boomerang.level.sha256" in error_of(lambda: config_with_rule(sha256="0"))


# -- what follows from it ---------------------------------------------------------------------------------------------


def test_a_stored_config_builds_again_without_the_file(folder: Path) -> None:
    config = config_with_rule()
    (folder / "c.json").unlink()
    assert build(parse_yaml(dump(config), "config.yaml")) == config
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_config_of_an_earlier_version_loses_its_risk_figures(folder: Path) -> None:
    stored = parse_yaml(dump(config_with_rule()), "config.yaml")
    stored["boomerang"]["chosen"] |= {"choosing_high": 0.05, "confirming_value": 0.0, "confirming_high": 0.0}
    assert build(stored) == config_with_rule()
    numbers = {name for name, field in ChosenLevel.model_fields.items() if "float" in str(field.annotation)}
    assert numbers == {"level", "max_risk", "ceilings"}, "settings reach a scheduler, which gets no measured risk"


def test_a_level_by_hand_does_not_keep_the_record_of_a_choice(folder: Path) -> None:
    stored = parse_yaml(dump(config_with_rule()), "config.yaml")
    message = error_of(lambda: build(stored, ["boomerang.level=0.3"]))
    assert message == (
        "boomerang.level: is 0.3, and boomerang.chosen says that a calibration gave 0.6: set boomerang.chosen=null to "
        "choose a level by hand"
    )
    by_hand = build(stored, ["boomerang.level=0.3", "boomerang.chosen=null"])
    assert (by_hand.boomerang.level, by_hand.boomerang.chosen) == (0.3, None)
    again = build(stored, ["boomerang.level={calibration: c.json, max_risk: 0.3}"])
    assert (again.boomerang.level, again.boomerang.chosen and again.boomerang.chosen.max_risk) == (0.4, 0.3)


def test_neither_the_choice_nor_the_kind_changes_the_fingerprint(folder: Path) -> None:
    plain = build(SETTINGS, ["source.kind=null"])
    assert config_with_rule().fingerprint("m") == plain.fingerprint("m") == build(SETTINGS).fingerprint("m")


def test_a_record_is_not_offered_as_a_setting() -> None:
    known = "known keys: accept_deterministic, k, level, sampler, samples, steps"
    assert known in error_of(lambda: build(SETTINGS, ["boomerang.zzz=1"]))
    assert "chosen" not in error_of(lambda: build(SETTINGS, ["boomerang=1"]))


def test_another_model_than_the_calibrations_is_refused_when_planning(folder: Path) -> None:
    (folder / "c.json").write_bytes(sealed(calibration(level(0.6, 0.01), digest="a" * 64)))
    people(folder / "in")
    message = error_of(lambda: begin(config_with_rule()))
    assert message.startswith(
        "model.id: the calibration was made with 'bundled:faces-64' (SHA-256 'aaaaaaaaaaaa'), not "
    )
    assert not (folder / "out").exists()


def run_config_with_rule(folder: Path, **rule: Any) -> RunConfig:
    return settings("in", "out", source={"kind": KIND}, boomerang={"level": RULE | rule})


def test_a_release_with_a_rule_equals_the_one_with_its_level_and_only_the_custodian_sees_the_rule(folder: Path) -> None:
    people(folder / "in")
    config = run_config_with_rule(folder)
    release = run(config)
    plain = run(settings("in", "plain", boomerang={"level": 0.6}))
    assert public_images(release)[0] == public_images(plain)[0]
    assert public_images(release)[1].equals(public_images(plain)[1])
    public = b"".join(tree(release.public.path).values())
    for word in ("calibration", KIND, "c.json"):
        assert word.encode() not in public
    assert "max_risk: 0.05" in Path(release.config.path).read_text()
    assert "c.json" not in Path(release.config.path).read_text()
    write_restricted_report(release, config)
    assert "chosen from a calibration for a risk of at most 0.05 (linkage)" in Path(release.report.path).read_text()


def test_a_started_release_is_finished_with_the_same_rule_or_its_stored_level(folder: Path) -> None:
    people(folder / "in")
    release = begin(run_config_with_rule(folder))
    begin(run_config_with_rule(folder))
    (folder / "c.json").rename(folder / "gone")
    begin(build(read_tree(release.config.path)))
    for other in (
        settings("in", "out", source={"kind": KIND}, boomerang={"level": 0.6}),
        run_config_with_rule(folder, max_risk=0.06, calibration="gone"),
    ):
        with pytest.raises(OutputError, match=r"was begun with boomerang\.level chosen in another way: use the settin"):
            begin(other)
    with pytest.raises(OutputError, match=r"was begun with boomerang\.level 0\.6, not 0\.4"):
        begin(run_config_with_rule(folder, max_risk=0.3, calibration="gone"))


@pytest.mark.slow
def test_the_flow_resolves_a_rule_once_and_its_tasks_see_the_level(
    folder: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deployment passes the nested mappings of a YAML file to the flow."""
    from flows import release as flows_release

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setattr(release_job, "backbone_of", lambda model: IdealGaussian())
    monkeypatch.setattr(release_job, "scorer_of", lambda metrics, device: PlainScorer())
    original, seen = release_job.run_shard, list[RunConfig]()

    def run_shard(config: RunConfig, *rest: Any) -> Any:
        (folder / "c.json").unlink(missing_ok=True)  # nobody needs it by now
        seen.append(config)
        return original(config, *rest)

    monkeypatch.setattr(release_job, "run_shard", run_shard)
    people(folder / "in")
    given = SETTINGS | {"boomerang": {"level": RULE, "steps": 2}, "run": {"shard_size": 2}}
    assert flows_release.release(given)["released"] == 5
    assert [config.boomerang.level for config in seen] == [0.6] * 3
    assert Release.at("out").is_complete
    (folder / "c.json").write_bytes(b"{}")
    assert "is damaged, or no calibration" in error_of(lambda: flows_release.release(given))


def test_the_command_line_plans_and_refuses_by_a_rule(
    folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("COLUMNS", "200")
    people(folder / "in")
    config = build(SETTINGS, [f"model.id={tiny_model}"])
    digest = load_backbone(ModelConfig(id=str(tiny_model))).digest
    (folder / "tiny.json").write_bytes(sealed(calibration(*CURVE.levels, config=config, digest=digest)))

    def plan_with(rule: str) -> Any:
        sets = [f"boomerang.level={rule}", f"source.kind={KIND}", "boomerang.steps=2"]
        sets += ["metrics.clip=none", "metrics.lpips=none"]
        words = [word for one in sets for word in ("--set", one)]
        options = ["--source", "in", "--output", "out", "--model", str(tiny_model)]
        return CliRunner().invoke(main, ["plan", *options, *words])

    done = plan_with("{calibration: tiny.json, max_risk: 0.05}")
    assert done.exit_code == 0, done.stderr
    assert "t_boom 600 of 1000" in done.stdout
    assert "chosen from a calibration for a risk of at most 0.05 (linkage)" in done.stdout
    for rule, *lines in (
        ("{calibration: tiny.json, max_risk: 0.001}", "error: boomerang.level: no level", "measured: upper bounds are"),
        ("{calibration: c.json, max_risk: 0.05}", "error: model.id: the calibration was made with 'bundled:faces-64'"),
    ):
        done = plan_with(rule)
        assert (done.exit_code, done.stdout) == (2, "")
        for line, start in zip(done.stderr.splitlines(), lines, strict=True):
            assert line.startswith(start)
    assert not (folder / "out").exists()


def test_an_audits_settings_have_no_rule() -> None:
    from anonymizer.config import AuditConfig

    with pytest.raises(ConfigError, match="boomerang: unknown key"):
        build_resolved(AuditConfig, {"release": "x", "boomerang": {"level": RULE}})


def test_a_plan_is_made_from_a_rule(folder: Path) -> None:
    assert plan.build_plan(config_with_rule(), IdealGaussian(), KEY, 5).t_boom == 600
