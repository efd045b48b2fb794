"""The benchmarks of the paper's claims, at toy sizes: what they compute, that they go on, and what they write."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from anonymizer.boomerang import Boomerang
from tests.support import ROOT
from tests.support.ideal_gaussian import IdealGaussian

sys.path.insert(0, str(ROOT / "benchmarks" / "paper"))

import augmentation
import classifier
import common
import enhancement
import faster
import proximity
import resnet
from common import LocalSampler, Mean, Pictures, Workspace
from resnet import Recipe

COLOURS = {"blue": (30, 40, 200), "red": (200, 40, 30)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 noisy pictures of 32 x 32 in two colours, which are their classes."""
    rng, rows = np.random.default_rng(0), []
    for number in range(48):
        label = list(COLOURS)[number % 2]
        pixels = (np.array(COLOURS[label]) + rng.normal(0, 25, (32, 32, 3))).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": label, "split": "test" if number >= 32 else "train"})
    path = tmp_path_factory.mktemp("data") / "colours.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network for 32 x 32 that knows the two classes, with 20 steps in all."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "two"
    unet = UNet2DModel(
        sample_size=16, in_channels=12, out_channels=12, block_out_channels=(8, 8), norm_num_groups=4,
        layers_per_block=1, down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=3,
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(20, beta_schedule="squaredcos_cap_v2").save_pretrained(folder / "scheduler")
    index = {"_class_name": "DDPMPipeline", "id2label": dict(enumerate(COLOURS))}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def written(out: Path, name: str) -> dict[str, Any]:
    assert (out / f"{name}.svg").stat().st_size and (out / f"{name}.png").stat().st_size
    found = json.loads((out / f"{name}.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert isinstance(found, dict)
    assert found["date"] and found["machine"]["cores"] and found["machine"]["torch"] and found["seconds"]
    return found


def colours(count: int, size: int = 32) -> Pictures:
    labels = torch.arange(count) % 2
    gen = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 50, (count, 3, size, size), generator=gen)
    pixels = (torch.tensor(list(COLOURS.values()))[labels][:, :, None, None] + noise).byte()
    return Pictures(pixels, labels, tuple(COLOURS))


# Pictures


def test_every_prefix_of_what_is_read_has_all_classes_alike(data: Path) -> None:
    found = common.read_pictures(data, "train", 32, 20)
    assert found.names == ("blue", "red")
    assert all(abs(2 * int(found.labels[:n].sum()) - n) <= 1 for n in range(1, 21))
    assert (found.pixels[:, 2].float().mean((1, 2)) > 100).tolist() == [name == "blue" for name in found.label_names]


def test_a_split_without_pictures_is_one_line(data: Path) -> None:
    with pytest.raises(SystemExit, match=r"^colours.parquet: holds no picture of the split 'validation': check"):
        common.read_pictures(data, "validation", 32, 20)


def test_bytes_survive_the_way_to_floats_and_back() -> None:
    pixels = torch.arange(256).byte().reshape(1, 1, 16, 16)
    assert torch.equal(common.to_bytes(common.to_floats(pixels)), pixels)


# Intervals


def test_the_interval_over_three_seeds_is_students() -> None:
    found = common.mean_over_seeds([1.0, 2.0, 3.0])
    assert found.value == 2 and found.low is not None and found.high is not None
    assert found.high - 2 == pytest.approx(
        4.302653 / math.sqrt(3), rel=1e-5
    )  # t of two degrees of freedom, deviation 1
    assert found.low + found.high == pytest.approx(4)


def test_one_seed_has_no_interval() -> None:
    assert common.mean_over_seeds([0.5]) == Mean(0.5, None, None)


def test_pictures_without_a_face_are_left_out() -> None:
    assert common.mean_over_pictures([1.0, float("nan"), 3.0, 2.0]) == common.mean_over_pictures([1.0, 3.0, 2.0])
    assert math.isnan(common.mean_over_pictures([float("nan")]).value)


def test_a_mean_is_formatted_with_its_bounds() -> None:
    assert Mean(0.5, 0.25, 0.75).format_percent() == "50.0 (25.0 to 75.0)"
    assert Mean(0.5, None, None).format(2, sign=True) == "+0.50"


# Work that goes on


def test_what_was_finished_is_not_done_again_though_the_last_line_is_torn(tmp_path: Path) -> None:
    first = Workspace(tmp_path).cached_result("training", {"seed": 1}, lambda: {"accuracy": 0.5})
    with (tmp_path / "training.jsonl").open("a") as lines:
        lines.write('{"name": "half of a li')
    second = Workspace(tmp_path).cached_result("training", {"seed": 2}, lambda: {"accuracy": 0.75})
    again = Workspace(tmp_path)
    assert again.cached_result("training", {"seed": 1}, dict) == first
    assert again.cached_result("training", {"seed": 2}, dict) == second


def test_arrays_are_made_once_and_their_time_is_remembered(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> common.Arrays:
        made.append(1)
        return {"x": np.arange(3)}

    one, other = Workspace(tmp_path), Workspace(tmp_path)
    assert one.cached_arrays("samples", {"level": 0.4}, make)["x"].tolist() == [0, 1, 2]
    assert other.cached_arrays("samples", {"level": 0.4}, make)["x"].tolist() == [0, 1, 2]
    assert made == [1] and one.seconds == other.seconds


def test_neither_batch_nor_block_matter_to_a_sample(tmp_path: Path) -> None:
    boomerang = Boomerang(IdealGaussian(size=8), "ddpm", 3)
    originals = colours(6, size=8)
    one = LocalSampler(boomerang, Workspace(tmp_path / "one"), False, "float32", block=6, batch=4).sample(
        originals, 0.4
    )
    other = LocalSampler(boomerang, Workspace(tmp_path / "other"), False, "float32", block=2, batch=2).sample(
        originals, 0.4
    )
    assert torch.equal(one, other)


def test_the_command_that_is_written_down_names_no_folder() -> None:
    given = ["--cifar", "/home/someone/cifar10.parquet", "--out=/data/my results/", "--levels", "0.2"]
    command = common.command_line("classifier", given)
    assert command == "python benchmarks/paper/classifier.py --cifar cifar10.parquet '--out=my results' --levels 0.2"


# The network


def test_each_picture_is_seen_once_before_any_is_seen_again() -> None:
    seen = resnet.draw_rows(10, 4, 10, torch.Generator().manual_seed(0)).flatten()
    assert all(sorted(turn.tolist()) == list(range(10)) for turn in seen.split(10))


def test_a_crop_without_padding_is_the_picture_or_its_mirror_image() -> None:
    x = common.to_floats(colours(16).pixels)
    found = resnet.augment(x, 0, torch.Generator().manual_seed(0))
    same = [torch.equal(a, b) for a, b in zip(found, x, strict=True)]
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(found, x, strict=True)]
    assert any(same) and any(mirrored)
    assert all(a != b for a, b in zip(same, mirrored, strict=True))


def test_mixed_batches_are_half_samples_and_take_as_many_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    taken: list[tuple[int, int, int]] = []
    drawn = resnet.draw_rows

    def spied(count: int, share: int, steps: int, gen: torch.Generator) -> torch.Tensor:
        taken.append((count, share, steps))
        return drawn(count, share, steps, gen)

    monkeypatch.setattr(resnet, "draw_rows", spied)
    real, recipe = colours(16, size=8), Recipe(widths=(4, 4), base=50, batch=8, dtype="float32")
    for sets in ([real], [real, real]):
        resnet.train_and_test(Workspace(tmp_path), sets, real, recipe, 0, CPU)
    steps = recipe.steps(16)
    assert taken == [(16, 8, steps), (16, 4, steps), (16, 4, steps)]


def test_the_network_learns_colours_and_a_seed_gives_it_again() -> None:
    real, recipe = colours(32, size=8), Recipe(widths=(8, 8), batch=16, rate=0.05, dtype="float32")
    one, other = (resnet.train([real], recipe, 20, 1, CPU) for _ in range(2))
    assert resnet.accuracy(one, colours(40, size=8), recipe, CPU) == 1
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_seeds_train_on_other_pictures_as_long_as_there_are() -> None:
    assert [augmentation.seed_rows(500, seed, 1000) for seed in range(3)] == [
        slice(0, 500),
        slice(500, 1000),
        slice(0, 500),
    ]
    assert augmentation.seed_rows(1000, 2, 1000) == slice(0, 1000)


# What is found


def test_means_in_the_wrong_order_are_reported_and_whether_it_is_certain() -> None:
    def row(level: float, lpips: Mean, clip: Mean) -> dict[str, Any]:
        return {"task": "faces", "level": level, "step": {"lpips": lpips, "clip": clip, "pixels": Mean(1, 0.5, 2)}}

    rise, fall, luck = Mean(0.1, 0.05, 0.2), Mean(-0.1, -0.2, -0.05), Mean(0.1, -0.1, 0.3)
    found = proximity.find_violations([row(0.1, rise, fall), row(0.2, rise, luck), row(0.3, fall, fall)])
    assert [(one["measure"], one["from"], one["to"], one["certain"]) for one in found] == [
        ("clip", 0.1, 0.2, False),
        ("lpips", 0.2, 0.3, True),
    ]


def test_repeats_are_counted_and_the_nearest_pair_is_measured() -> None:
    black, grey = torch.zeros(3, 4, 4).byte(), torch.full((3, 4, 4), 10).byte()
    assert proximity.count_repeats(torch.stack([black, grey, black])) == 1
    assert proximity.nearest_distance(torch.stack([black, grey, grey + 25])) == pytest.approx(10)


def test_calls_count_only_if_more_calls_do_no_worse() -> None:
    within = {2: True, 4: False, 8: True, 16: True}
    rows = [
        {"level": 0.4, "sampler": "ddim", "calls": n, "within": {"lpips": ok, "clip": False}}
        for n, ok in within.items()
    ]
    assert faster.least_calls(rows) == [{"level": 0.4, "sampler": "ddim", "least": {"lpips": 8, "clip": None}}]


def test_a_difference_is_small_only_if_its_whole_interval_is() -> None:
    assert faster.is_within(Mean(0.02, -0.01, 0.04), 0.05)
    assert not faster.is_within(Mean(0.02, -0.06, 0.1), 0.05)  # it may be more: few pictures show nothing
    assert not faster.is_within(Mean(0.02, None, None), 0.05)


def test_a_run_is_within_the_floor_of_its_like_and_a_shifted_one_is_not() -> None:
    rng = np.random.default_rng(0)
    originals = rng.normal(size=(60, 8))
    one, other, third = ((originals + rng.normal(size=(60, 8))).astype(np.float32) for _ in range(3))
    floor = faster.vanilla_floors(one, other, 0)
    for name, far in faster.DISTANCES.items():
        assert far(third, one) <= floor[name]["ceiling"] < far(third + 1, one)


# The scripts


def test_a_classifier_benchmark_that_was_killed_goes_on(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def given(out: str) -> list[str]:
        options = ["--cifar", str(data), "--model", str(model), "--out", str(tmp_path / out), "--device", "cpu"]
        small = ["--pictures", "16", "--seeds", "2", "--levels", "0.2", "--steps", "2", "--base-steps", "50"]
        return [*options, "--work", str(tmp_path / "work"), *small]

    train, done = resnet.train, []

    def dies(*arguments: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return train(*arguments)

    monkeypatch.setattr(resnet, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        classifier.main(given("killed"))
    monkeypatch.setattr(resnet, "train", lambda *a: done.append(1) or train(*a))
    classifier.main(given("out"))
    assert len(done) == 6  # two seeds of real, level 0.2 and synthetic; none of them twice
    found = written(tmp_path / "out", "classifier")
    assert [row["data"] for row in found["results"]] == ["real", "level 0.2", "synthetic"]
    assert [len(row["per_seed"]) for row in found["results"]] == [2, 2, 2]
    assert set(found["findings"]) == {"level 0.2"}
    assert str(tmp_path) not in json.dumps(found) and found["settings"]["model"] == "a local model"
    assert "| synthetic |" in capsys.readouterr().out


@pytest.mark.slow
def test_the_augmentation_benchmark_compares_seed_by_seed(data: Path, model: Path, tmp_path: Path) -> None:
    options = ["--cifar", str(data), "--model", str(model), "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    small = ["--sizes", "8", "16", "--seeds", "2", "--levels", "0.2", "0.4", "--steps", "2", "--base-steps", "50"]
    augmentation.main([*options, "--device", "cpu", *small])
    found = written(tmp_path, "augmentation")
    assert [(row["pictures"], row["usual_augmentations"]) for row in found["results"]] == [
        (8, "crops and flips"), (8, "none"), (16, "crops and flips"), (16, "none"),
    ]  # fmt: skip
    for row in found["results"]:
        for mixed in row["with_samples"]:
            gains = np.subtract(mixed["per_seed"], row["real"]["per_seed"])
            assert mixed["gain"]["value"] == pytest.approx(gains.mean())
    assert found["findings"]["comparisons"] == 8


@pytest.mark.slow
def test_the_enhancement_benchmark_measures_interpolations_passes_and_cascades(
    data: Path, model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("dlib")
    options = ["--cifar", str(data), "--faces", str(data), "--cifar-model", str(model), "--faces-model", str(model)]
    small = ["--pictures", "6", "--levels", "0.2", "--cascades", "0.4,0.2", "--steps", "2", "--device", "cpu"]
    enhancement.main([*options, "--out", str(tmp_path), "--work", str(tmp_path / "work"), *small])
    found = written(tmp_path, "enhancement")
    methods = [(row["method"], row["calls"]) for row in found["results"] if row["task"] == "CIFAR-10, 16 to 32"]
    assert methods == [("bilinear", 0), ("bicubic", 0), ("lanczos", 0), ("level 0.2", 2), ("cascade 0.4, 0.2", 4)]
    faces = [row for row in found["results"] if row["task"] == "faces, 8 to 32"]
    assert all(row["faces_seen"] == 0 and row["identity"]["value"] is None for row in faces)
    assert all(
        row["difference"]["lpips"]["value"] == 0 for row in found["results"] if row["method"] == row["compared_with"]
    )


@pytest.mark.slow
def test_the_proximity_benchmark_has_levels_repeats_and_samplers(data: Path, model: Path, tmp_path: Path) -> None:
    options = [
        "--cifar",
        str(data),
        "--cifar-model",
        str(model),
        "--out",
        str(tmp_path),
        "--work",
        str(tmp_path / "work"),
    ]
    small = ["--pictures", "12", "--levels", "0.2", "1", "--originals", "3", "--samples", "3", "--repeat-levels", "0.2"]
    samplers = [
        "--samplers-pictures",
        "12",
        "--samplers-levels",
        "0.4",
        "--samplers",
        "ddim",
        "ddpm",
        "--calls",
        "2",
        "8",
    ]
    proximity.main([*options, "--device", "cpu", *small, *samplers])
    found = written(tmp_path, "proximity")
    parts = [row["part"] for row in found["results"]]
    assert parts == ["levels", "levels", "repeats", *["samplers"] * 4]
    assert found["findings"]["exact_repeats"] == 0
    every_step = next(r for r in found["results"] if r.get("sampler") == "ddpm" and r["calls"] == 8)
    assert every_step["ratios"]["lpips"] == pytest.approx(1)  # level 0.4 of 20 steps is all eight, with the same noise
    assert all(every_step["within"].values())


def test_a_model_without_classes_cannot_draw_labelled_pictures(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = ["--cifar", str(data), "--model", str(tiny_model), "--out", str(tmp_path), "--work", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^model: a local model knows no classes: "):
        classifier.main([*options, "--device", "cpu"])
