"""Conditions of records, verdicts of the safety checker, and pictures of any sides."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from anonymizer.backbones import Denoised
from anonymizer.backbones.class_labels import ClassLabels
from anonymizer.config import build
from anonymizer.errors import ConfigError
from anonymizer.storage.layout import Release
from flows.jobs import replay as replay_job
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    HEX,
    PlainScorer,
    folder_of,
    listing,
    manifest,
    people,
    picture,
    plain,
    rows,
    run,
    settings,
)
from tests.support.signing_keys import PUBLISHER, VARIABLE, pem

GREY = {"dark": -0.5, "light": 0.5}


class ClassConditional(IdealGaussian):
    """A model that returns one grey for each class, for any input."""

    def __init__(self) -> None:
        super().__init__(size=8)
        self.condition_kind = "class"
        self.classes = ClassLabels.from_config(2, {"0": "dark", "1": "light"})

    def condition(self, texts: Sequence[str]) -> torch.Tensor:
        return self.classes.indices_of(texts)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        assert isinstance(condition, torch.Tensor)
        grey = torch.tensor(list(GREY.values()))[condition][:, None, None, None].expand_as(zt)
        abar = float(self.alphas_cumprod[t - 1])
        return Denoised(grey, (zt - abar**0.5 * grey) / (1 - abar) ** 0.5)


class Prompted(IdealGaussian):
    """A model with prompts that records them."""

    def __init__(self) -> None:
        super().__init__()
        self.condition_kind, self.texts = "prompt", []

    def condition(self, texts: Sequence[str]) -> object:
        self.texts += texts
        return None


class Prudish(IdealGaussian):
    """Its safety checker objects to whatever is light."""

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        return [bool(image.mean() > 0.3) for image in images]


def pixels(release: Release, row: dict[str, Any]) -> Image.Image:
    found = next(r for r in manifest(release).to_pylist() if r["output_id"] == row["output_id"])
    return Image.open(io.BytesIO((Path(release.public.path) / found["file"]).read_bytes()))


def test_each_record_has_its_own_label_in_any_batch(tmp_path: Path) -> None:
    names = ["dark", "light", "LIGHT", "0", "1", "dark", "light"]
    source = listing(folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(7)}),
                     [{"image": f"{i}.png", "label": name} for i, name in enumerate(names)])  # fmt: skip
    for batch in (1, 3, 7):
        config = settings(source, tmp_path / f"out{batch}", source={"label": "label"}, model={"condition": "label"},
                          run={"batch_size": batch, "shard_size": 7}, boomerang={"sampler": "ddpm"})  # fmt: skip
        release = run(config, ClassConditional())
        for row in rows(release):
            expected = -0.5 if row["label"] in ("dark", "0") else 0.5
            assert abs(pixels(release, row).getpixel((3, 3))[0] / 127.5 - 1 - expected) < 0.02


def test_a_missing_or_unknown_label_fails_only_its_record(tmp_path: Path) -> None:
    labels = ["dark", None, "purple", "7", "", "light"]
    source = listing(folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(6)}),
                     [{"image": f"{i}.png", "label": label} for i, label in enumerate(labels)])  # fmt: skip
    config = settings(source, tmp_path / "out", source={"label": "label"}, model={"condition": "label"})
    found = {row["label"]: (row["status"], row["reason"]) for row in rows(run(config, ClassConditional()))}
    assert found.pop("dark") == found.pop("light") == ("released", None)
    assert set(found.values()) == {("failed", "no_condition")}


def test_a_prompt_takes_columns_that_are_published_or_restricted(tmp_path: Path) -> None:
    source = listing(folder_of(tmp_path / "in", {"a.png": picture(1), "b.png": picture(2)}),
                     [{"image": "a.png", "label": "cat", "who": " a  tabby\n", "caption": "on a {mat}"},
                      {"image": "b.png", "label": "dog", "who": None, "caption": "in a basket"}])  # fmt: skip
    model = Prompted()
    config = settings(source, tmp_path / "out", source={"label": "label", "caption": "caption", "restricted": ["who"]},
                      model={"prompt": "a photo of a {label}, {who}, {caption}"})  # fmt: skip
    found = {row["label"]: (row["status"], row["reason"]) for row in rows(run(config, model))}
    assert set(model.texts) == {"a photo of a cat, a tabby, on a {mat}"}
    assert found == {"cat": ("released", None), "dog": ("failed", "no_condition")}
    assert "who" not in manifest(Release.at(config.output.uri)).column_names


@pytest.mark.parametrize(
    ("model", "source", "line"),
    [
        ({"prompt": "a {caption}"}, {}, r"model\.prompt: \{caption\} is not read from the source: set source\.caption"),
        ({"prompt": "a {age}"}, {}, "name the column in source.carry or source.restricted"),
        ({"prompt": "a {"}, {}, "braces around names of columns only"),
        ({"condition": "label"}, {}, r"source\.label is not set"),
    ],
)
def test_fields_of_a_condition_must_be_read(model: Any, source: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        build({"source": {"uri": "a"} | source, "output": {"uri": "b"}, "model": model})


def test_what_the_safety_checker_objects_to_is_quarantined_and_no_black_picture(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"light.png": plain(240), "dark.png": plain(20)})
    low = {"level": 0.05, "steps": 2}
    release = run(settings(source, tmp_path / "out", boomerang=low), Prudish(mean=0, spread=1))
    found = {row["record_id"]: (row["status"], row["reason"]) for row in rows(release)}
    assert found == {"light.png": ("quarantined", "unsafe"), "dark.png": ("released", None)}
    held = [*Path(release.restricted.path).rglob("quarantine/**/*.png")]
    assert len(held) == 1
    assert Image.open(held[0]).getpixel((0, 0))[0] > 150
    off = settings(source, tmp_path / "off", boomerang=low, model={"safety_checker": False})
    assert {row["status"] for row in rows(run(off, Prudish(mean=0, spread=1)))} == {"released"}


SIDES = [(10, 8), (31, 17), (8, 40), (3, 5), (31, 17), (64, 64)]


@pytest.mark.parametrize(("size", "expected"), [("original", SIDES), ("model", None)])
def test_in_tiles_pictures_keep_their_own_sides(tmp_path: Path, size: str, expected: Any) -> None:
    source = folder_of(tmp_path / "in", {f"{i}.png": picture(i, sides) for i, sides in enumerate(SIDES)})
    config = settings(source, tmp_path / "out", source={"fit": "tiles"}, output={"size": size},
                      run={"batch_size": 4, "shard_size": 6})  # fmt: skip
    release = run(config)
    found = [pixels(release, row).size for row in sorted(rows(release), key=lambda row: row["record_id"])]
    assert found == (expected or [(10, 8), (31, 17), (8, 40), (8, 13), (31, 17), (64, 64)])


def test_a_picture_in_tiles_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {f"{i}.png": picture(i, sides) for i, sides in enumerate(SIDES)})
    found = []
    for batch in (1, 6):
        config = settings(source, tmp_path / f"out{batch}", source={"fit": "tiles"},
                          run={"batch_size": batch, "shard_size": 6})  # fmt: skip
        found.append({row["record_id"]: row["sha256"] for row in rows(run(config))})
    assert found[0] == found[1]


def test_labels_do_not_condition_an_unconditional_model(tmp_path: Path) -> None:
    source = people(tmp_path / "in")
    release = run(settings(source, tmp_path / "out", source={"label": "folder"}))
    assert {row["status"] for row in rows(release)} == {"released"}


def test_guidance_without_a_class_condition_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.guidance: leads towards a class, and none is told"):
        run(settings(people(tmp_path / "in"), tmp_path / "out", model={"guidance": 2.0}), ClassConditional())


def test_a_narrow_picture_is_not_enlarged_beyond_the_limits(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {"line.png": picture(1, (1, 900)), "good.png": picture(2)})
    config = settings(source, tmp_path / "out", source={"fit": "tiles", "limits": {"max_pixels": 1000}})
    found = {row["record_id"]: (row["status"], row["reason"]) for row in rows(run(config))}
    assert found == {"line.png": ("failed", "too_many_pixels"), "good.png": ("released", None)}


def test_a_carried_picture_would_show_its_earlier_condition(tmp_path: Path) -> None:
    source = listing(folder_of(tmp_path / "in", {"a.png": picture(1)}), [{"image": "a.png", "label": "dark"}])
    first = settings(source, tmp_path / "first", source={"label": "label"}, model={"condition": "label"})
    run(first, ClassConditional())
    again = settings(source, tmp_path / "second", source={"label": "label"}, model={"condition": "label"})
    again = again.model_copy(update={"previous": str(tmp_path / "first")})
    with pytest.raises(ConfigError, match="would go on to show what the model was told"):
        run(again, ClassConditional())


def test_pictures_without_a_safety_check_are_checked_in_a_later_run_that_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    source = folder_of(tmp_path / "in", {"light.png": plain(240), "dark.png": plain(20)})
    low, model = {"level": 0.05, "steps": 2}, Prudish(mean=0, spread=1)
    run(settings(source, tmp_path / "first", boomerang=low, model={"safety_checker": False}), model)
    again = run(settings(source, tmp_path / "second", f"previous={tmp_path / 'first'}", boomerang=low), model)
    found = {row["record_id"]: (row["status"], row["reason"], row["kept"]) for row in rows(again)}
    assert found == {"light.png": ("quarantined", "unsafe", True), "dark.png": ("released", None, True)}


@pytest.mark.parametrize("words", ["model.prompt={label} on a mat", "model.prompt='{label} on a mat'"])
def test_a_prompt_on_the_command_line_may_begin_with_a_column(words: str) -> None:
    tree = {"source": {"uri": "a", "label": "x"}, "output": {"uri": "b"}}
    assert build(tree, [words]).model.prompt == "{label} on a mat"


def test_a_negative_prompt_with_columns_is_refused() -> None:
    with pytest.raises(ConfigError, match="must hold no braces"):
        build({"source": {"uri": "a"}, "output": {"uri": "b"}, "model": {"negative_prompt": "no {label}"}})


def test_a_conditioned_picture_is_replayed_with_its_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    labels = ["dark", "light", "dark", "light"]
    source = listing(folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(4)}),
                     [{"image": f"{i}.png", "label": label} for i, label in enumerate(labels)])  # fmt: skip
    release = run(
        settings(source, tmp_path / "out", source={"label": "label"}, model={"condition": "label"}), ClassConditional()
    )
    monkeypatch.setattr(replay_job, "backbone_of", lambda model: ClassConditional())
    monkeypatch.setattr(replay_job, "scorer_of", lambda metrics, device: PlainScorer())
    (found,) = [f for f in replay_job.verify_release(release, None, 4) if f.check == "replay"]
    assert (found.result, found.message) == ("pass", "4 drawn again to the byte")


def test_in_tiles_nothing_is_drawn_again_and_asking_for_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    release = run(settings(people(tmp_path / "in"), tmp_path / "out", source={"fit": "tiles"}))
    found = {f.check: f.result for f in replay_job.verify_release(release, None, 2) if f.check in ("scores", "replay")}
    assert found == {"scores": "note", "replay": "fail"}
