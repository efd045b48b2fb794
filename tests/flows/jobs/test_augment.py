"""Augmentations: local samples for training, written to a folder with labels, balance and a filter."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from anonymizer.augment import sample_key
from anonymizer.backbones import load_backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import AugmentConfig, ModelConfig, known_keys
from anonymizer.data import usage_marker
from anonymizer.errors import ConfigError, ModelError, OutputError, SourceError, StepError
from anonymizer.noise import KeyedNoise
from anonymizer.policy.calibration import build_resolved
from anonymizer.records import Reason
from anonymizer.release import preflight
from anonymizer.storage import parquet
from anonymizer.storage.path import StoragePath
from flows.cli import main
from flows.jobs import augment as augment_job
from flows.jobs.redaction import redact_errors
from metrics.utility.label_consistency import Classifier
from tests.support import ROOT
from tests.support.class_conditional_model import class_conditional_model
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.prefect_database import cells
from tests.support.releases import GARBAGE, Broken, NotFinite, encoded, folder_of, listing, picture, plain, settings


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> IdealGaussian:
    """The model in closed form in place of the one that settings name."""
    return use_model(monkeypatch, IdealGaussian())


def use_model(monkeypatch: pytest.MonkeyPatch, backbone: IdealGaussian) -> IdealGaussian:
    monkeypatch.setattr(augment_job, "backbone_of", lambda config: backbone)
    return backbone


def boomerang() -> Boomerang:
    return Boomerang(IdealGaussian(), "ddim", 2)


def pets(root: Path, cats: int = 4, dogs: int = 2) -> Path:
    """Pictures in a folder for each class, of people's names."""
    files = {f"cat/Wanda_Zx{i}.png": picture(i) for i in range(cats)}
    return folder_of(root, files | {f"dog/Wanda_Zy{i}.png": picture(100 + i) for i in range(dogs)})


def run_redacted(config: AugmentConfig) -> None:
    folder, error = (
        StoragePath.from_uri(config.output.uri).as_private(),
        StepError("augment: begin again in a new folder"),
    )
    redact_errors(folder, "augment", error, lambda: augment_job.run(config))


def configure(source: Path | str, output: Path | str, /, *overrides: str, **more: Any) -> AugmentConfig:
    tree = {"source": {"uri": str(source), "label": "folder"}, "output": {"uri": str(output)}, "sampler": "ddim"}
    return build_resolved(AugmentConfig, tree | {"steps": 2, "batch_size": 3} | more, overrides)


def rows(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(output / "manifest.parquet").to_pylist()
    return found


def read_summary(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return found


def open_image(file: Path) -> Image.Image:
    return Image.open(io.BytesIO(file.read_bytes()))


def read_images(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*.png"))}


def test_a_folder_of_samples_holds_their_labels_and_nothing_of_the_sources_names(
    tmp_path: Path, model: IdealGaussian
) -> None:
    summary = augment_job.run(configure(pets(tmp_path / "in"), tmp_path / "out"))
    assert (summary.read, summary.usable, summary.drawn, summary.kept, summary.classes) == (6, 6, 12, 12, 2)
    out = tmp_path / "out"
    names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    files = {f"images/cat/{i:06d}-{n}.png" for i in range(4) for n in range(2)}
    files |= {f"images/dog/{i:06d}-{n}.png" for i in (4, 5) for n in range(2)}
    assert names == files | {"purpose.json", "manifest.parquet", "summary.json", "images/metadata.csv"}
    assert json.loads((out / "purpose.json").read_text()) == {"purpose": "augmentation, not anonymised"}
    table = pq.read_table(out / "manifest.parquet")
    assert table.schema.metadata[b"purpose"] == b"augmentation, not anonymised"
    assert table["file"].to_pylist() == sorted(files)
    for row in table.to_pylist():
        assert row["label"] == row["file"].split("/")[1] and row["record_id"].startswith(f"{row['label']}/Wanda")
        assert row["kept"] and row["reason"] is None and row["agrees"] is None
        assert 0.1 <= row["level"] <= 0.4 and row["t_boom"] == round(1000 * row["level"])
        assert (row["model"], row["sampler"], row["steps"], row["seed"]) == ("bundled:faces-64", "ddim", 2, 0)
        assert row["log_snr"] == pytest.approx(boomerang().log_snr(row["t_boom"]))
    assert len(set(table["level"].to_pylist())) > 3
    assert len(set(read_images(out).values())) == 12


def test_a_written_sample_is_boomerangs_own(tmp_path: Path, model: IdealGaussian) -> None:
    source = pets(tmp_path / "in")
    augment_job.run(configure(source, tmp_path / "out", seed=5))
    row = rows(tmp_path / "out")[3]
    data = (source / row["record_id"]).read_bytes()
    key = sample_key(5, row["sample"], row["record_id"].encode(), hashlib.sha256(data).digest())
    x0 = augment_job.image_codec.decode(data, 8).tensor
    x = boomerang().sample(x0[None], row["level"], KeyedNoise([key]))[0]
    pixels = np.asarray(open_image(tmp_path / "out" / row["file"])).transpose(2, 0, 1)
    np.testing.assert_allclose(pixels, (x.numpy() + 1) * 127.5, atol=0.51)


def test_only_the_owner_can_read_the_output(tmp_path: Path, model: IdealGaussian) -> None:
    augment_job.run(configure(pets(tmp_path / "in"), tmp_path / "out"))
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_batches_do_not_matter_and_seeds_do(tmp_path: Path, model: IdealGaussian) -> None:
    source = pets(tmp_path / "in")
    found = {}
    for name, more in {"a": {}, "b": {"batch_size": 1}, "c": {"batch_size": 64}, "d": {"seed": 1}}.items():
        augment_job.run(configure(source, tmp_path / name, **more))
        found[name] = read_images(tmp_path / name)
    assert found["a"] == found["b"] == found["c"]
    assert not set(found["a"].values()) & set(found["d"].values())


def test_a_record_keeps_its_samples_whatever_else_is_in_the_source(tmp_path: Path, model: IdealGaussian) -> None:
    augment_job.run(configure(pets(tmp_path / "in"), tmp_path / "a"))
    folder_of(tmp_path / "in", {"ape/first.png": picture(77)})
    augment_job.run(configure(tmp_path / "in", tmp_path / "b"))
    of = [{(r["record_id"], r["sample"]): (tmp_path / n / r["file"]).read_bytes() for r in rows(tmp_path / n)}
          for n in "ab"]  # fmt: skip
    assert of[0].items() <= of[1].items() and len(of[1]) == len(of[0]) + 2


def test_copies_of_one_picture_have_samples_of_their_own(tmp_path: Path, model: IdealGaussian) -> None:
    augment_job.run(
        configure(folder_of(tmp_path / "in", {"a/1.png": picture(0), "a/2.png": picture(0)}), tmp_path / "out")
    )
    assert len(set(read_images(tmp_path / "out").values())) == 4


def test_smaller_classes_get_more_samples_on_request(tmp_path: Path, model: IdealGaussian) -> None:
    source = folder_of(pets(tmp_path / "in", cats=5, dogs=2), {"dog/bad.png": GARBAGE})
    for samples, total in ((0, 5), (1, 10)):
        out = tmp_path / f"out{samples}"
        summary = augment_job.run(configure(source, out, samples=samples, balance=True))
        by_class = read_summary(out)["by_class"]
        assert {name: one["originals"] + one["kept"] for name, one in by_class.items()} == {"cat": total, "dog": total}
        per_record = Counter(row["record_id"] for row in rows(out) if row["kept"])
        dogs = [per_record[f"dog/Wanda_Zy{i}.png"] for i in range(2)]
        assert dogs == ([2, 1] if samples == 0 else [4, 4])
        assert (summary.most_of_one, summary.failed) == (max(dogs), 1)


def test_bad_records_are_counted_rows_and_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model(monkeypatch, NotFinite())
    bad = {"cat/empty.png": b"", "cat/text.png": GARBAGE, "cat/cut.png": picture(3)[:60], "top.png": picture(4)}
    source = folder_of(pets(tmp_path / "in"), bad | {"dog/white.png": plain(255)})
    summary = augment_job.run(configure(source, tmp_path / "out"))
    assert (summary.read, summary.usable, summary.failed) == (11, 7, 4)
    assert summary.reasons == {"bad_metadata": 1, "empty": 1, "not_an_image": 1, "truncated": 1}
    assert (summary.drawn, summary.kept, summary.dropped) == (14, 12, {"not_finite": 2})
    reasons = {row["record_id"]: (row["reason"], row["sample"]) for row in rows(tmp_path / "out") if not row["file"]}
    assert reasons["top.png"] == ("bad_metadata", None) and reasons["cat/empty.png"] == ("empty", None)
    assert reasons["dog/white.png"] == ("not_finite", 1)
    assert read_summary(tmp_path / "out")["read"] == 11


def test_without_labels_pictures_lie_together(tmp_path: Path, model: IdealGaussian) -> None:
    summary = augment_job.run(configure(pets(tmp_path / "in"), tmp_path / "out", "source.label=null", "samples=1"))
    assert summary.kept == 6 and summary.classes == 0
    assert sorted(read_images(tmp_path / "out")) == [f"images/{i:06d}-0.png" for i in range(6)]
    assert {row["label"] for row in rows(tmp_path / "out")} == {None}


def test_labels_of_a_table_are_kept_whatever_they_are(tmp_path: Path, model: IdealGaussian) -> None:
    labels = ["a/../b", "..", "é ?", 'say "x", y', "7"]
    files = folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(5)})
    source = listing(files, [{"image": f"{i}.png", "class": label, "who": "Ada"} for i, label in enumerate(labels)])
    tree = {"uri": str(source), "label": "class", "drop": ["*"]}
    augment_job.run(configure(source, tmp_path / "out", "output.image=jpeg", "samples=1", source=tree))
    found = rows(tmp_path / "out")
    assert [row["label"] for row in found] == labels
    assert [row["file"].split("/")[1] for row in found] == [
        "a%2F..%2Fb",
        "%2E%2E",
        "%C3%A9%20%3F",
        "say%20%22x%22%2C%20y",
        "7",
    ]
    assert all(open_image(tmp_path / "out" / row["file"]).format == "JPEG" for row in found)
    from torchvision.datasets import ImageFolder

    assert len(ImageFolder(tmp_path / "out/images").classes) == 5


@pytest.mark.filterwarnings("ignore:.*unclosed file .*metadata.csv:ResourceWarning")  # datasets leaves it open
@pytest.mark.filterwarnings("ignore:.*metadata.csv:pytest.PytestUnraisableExceptionWarning")
def test_the_output_loads_as_an_image_folder(
    tmp_path: Path, model: IdealGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment_job.run(configure(pets(tmp_path / "in"), tmp_path / "out"))
    from torchvision.datasets import ImageFolder

    found = ImageFolder(tmp_path / "out/images")
    assert found.classes == ["cat", "dog"] and found.targets == [0] * 8 + [1] * 4
    import datasets

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out/images"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert Counter(loaded["label"]) == {"cat": 8, "dog": 4}
    assert sorted(zip(loaded["record"], loaded["sample"], strict=True)) == [(i, n) for i in range(6) for n in range(2)]
    assert loaded[0]["image"].size == (8, 8)
    with warnings.catch_warnings():  # the library leaves a file open
        warnings.simplefilter("ignore", ResourceWarning)
        del loaded
        gc.collect()


def test_parquet_and_object_stores_work_as_sources_and_outputs(
    tmp_path: Path, model: IdealGaussian, store: Any
) -> None:
    table = pa.table({"image": [picture(i) for i in range(3)], "label": ["a", "b", "a"]})
    pq.write_table(table, tmp_path / "in.parquet")
    config = configure(tmp_path / "in.parquet", "memory://bucket/out", "source.label=label")
    assert augment_job.run(config).kept == 6
    manifest = parquet.read(StoragePath.from_uri("memory://bucket/out/manifest.parquet"))
    assert all(store.exists(f"/bucket/out/{file}") for file in manifest["file"].to_pylist())
    with pytest.raises(OutputError, match="is there already"):
        augment_job.check(config)


def test_pictures_of_any_sides_are_worked_on_in_tiles(tmp_path: Path, model: IdealGaussian) -> None:
    shapes = {"a/1.png": picture(0, (12, 9)), "a/2.png": picture(1, (9, 12)), "a/3.png": picture(2, (8, 8))}
    source = folder_of(tmp_path / "in", shapes)
    augment_job.run(configure(source, tmp_path / "out", "source.fit=tiles"))
    found = {row["record_id"]: open_image(tmp_path / "out" / row["file"]).size for row in rows(tmp_path / "out")}
    assert found == {"a/1.png": (12, 9), "a/2.png": (9, 12), "a/3.png": (8, 8)}


def test_unsafe_samples_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = use_model(monkeypatch, IdealGaussian(mean=0.0, spread=1.0))
    monkeypatch.setattr(backbone, "flag_unsafe", lambda x: [bool(row.mean() > 0) for row in x])
    source = folder_of(tmp_path / "in", {"a/dark.png": plain(20), "a/light.png": plain(235)})
    summary = augment_job.run(configure(source, tmp_path / "out", levels=[0.1, 0.1]))
    assert (summary.kept, summary.dropped) == (2, {"unsafe": 2})
    assert augment_job.run(configure(source, tmp_path / "b", "model.safety_checker=false", levels=[0.1, 0.1])).kept == 4


def brightness(images: torch.Tensor) -> torch.Tensor:
    mean = images.mean((1, 2, 3))
    return torch.stack([-mean, mean], 1)


def filtered_by(monkeypatch: pytest.MonkeyPatch, logits: Callable[[torch.Tensor], torch.Tensor]) -> None:
    known = Classifier(logits, ("dark", "light"), "brightness")
    monkeypatch.setattr(augment_job, "filter_of", lambda config, device: known)


def test_samples_that_do_not_show_their_label_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_model(monkeypatch, IdealGaussian(mean=0.0, spread=1.0))
    filtered_by(monkeypatch, brightness)
    right = {f"dark/{i}.png": plain(20 + i) for i in range(3)} | {f"light/{i}.png": plain(235 + i) for i in range(2)}
    source = folder_of(tmp_path / "in", right | {"light/wrong.png": plain(19)})
    config = configure(source, tmp_path / "out", filter={"kind": "clip"}, levels=[0.1, 0.2])
    summary = augment_job.run(config)
    assert (summary.drawn, summary.kept, summary.dropped) == (12, 10, {"disagrees": 2})
    found = read_summary(tmp_path / "out")
    assert found["filter"] == "brightness"
    counts = ("originals", "originals_looked_at", "originals_agreed", "drawn", "kept", "looked_at", "agreed")
    assert found["by_class"]["dark"] == dict(zip(counts, (3, 3, 3, 6, 6, 6, 6), strict=True))
    assert found["by_class"]["light"] == dict(zip(counts, (3, 3, 2, 6, 4, 6, 4), strict=True))
    assert sum(level["agreed"] for level in found["by_level"]) == 10 and len(found["by_level"]) == 16
    dropped = [row for row in rows(tmp_path / "out") if not row["kept"]]
    assert [(row["record_id"], row["predicted"], row["agrees"], row["file"]) for row in dropped] == [
        ("light/wrong.png", "dark", False, None)
    ] * 2
    assert len(read_images(tmp_path / "out")) == 10


def test_the_filter_does_not_read_samples_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model(monkeypatch, NotFinite())

    def finite(x: torch.Tensor) -> torch.Tensor:
        assert x.isfinite().all()
        return brightness(x)

    filtered_by(monkeypatch, finite)
    source = folder_of(tmp_path / "in", {"light/white.png": plain(255), "light/1.png": plain(230)})
    augment_job.run(configure(source, tmp_path / "out", filter={"kind": "clip"}))
    found = read_summary(tmp_path / "out")["by_class"]["light"]
    assert (found["drawn"], found["looked_at"]) == (4, 2)
    assert {row["agrees"] for row in rows(tmp_path / "out") if row["reason"] == "not_finite"} == {None}


def test_labels_that_the_filter_does_not_know_end_it_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = use_model(monkeypatch, IdealGaussian())
    filtered_by(monkeypatch, brightness)
    config = configure(pets(tmp_path / "in"), tmp_path / "out", filter={"kind": "clip"})
    with pytest.raises(ConfigError, match="2 of 2 labels of the source are no classes") as caught:
        run_redacted(config)
    assert "cat" not in str(caught.value) and backbone.calls == []
    named = {"kind": "clip", "names": {"cat": "dark", "dog": "light"}}
    assert augment_job.run(configure(tmp_path / "in", tmp_path / "out", filter=named)).drawn == 12


def test_a_record_that_changed_after_its_label_was_read_is_left_out(
    tmp_path: Path, model: IdealGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, read_labels = pets(tmp_path / "in"), augment_job.Augmentation.read_labels

    def read_then_change(job: Any) -> None:
        read_labels(job)
        folder_of(source, {"zebra/late.png": picture(9)})
        (source / "dog/Wanda_Zy0.png").rename(source / "dug.png")

    monkeypatch.setattr(augment_job.Augmentation, "read_labels", read_then_change)
    summary = augment_job.run(configure(source, tmp_path / "out", balance=True))
    assert summary.reasons[Reason.CHANGED] >= 1 and "zebra" not in read_summary(tmp_path / "out")["by_class"]


def test_the_output_must_be_a_new_folder_outside_of_source_and_releases(tmp_path: Path, model: IdealGaussian) -> None:
    source = pets(tmp_path / "in")
    folder_of(tmp_path / "release", {"restricted/plan.json": b"{}", "public/a": b""})
    folder_of(tmp_path / "taken", {"diary.txt": b"dear"})
    for output, message in {
        source / "out": "inside the source",
        source: "inside the source",
        tmp_path / "release/out": "inside a release",
        tmp_path / "taken": "is there already",
        tmp_path: "is there already",
        tmp_path / "taken/diary.txt": "is there already",
    }.items():
        with pytest.raises(OutputError, match=message):
            augment_job.run(configure(source, output))
    augment_job.run(configure(source, tmp_path / "out"))
    with pytest.raises(OutputError, match="is there already"):
        augment_job.run(configure(source, tmp_path / "out"))


def test_no_release_takes_samples_as_input_or_lies_among_them(tmp_path: Path, model: IdealGaussian) -> None:
    augment_job.run(configure(pets(tmp_path / "in"), tmp_path / "out"))
    for below in ("out", "out/images", "out/images/cat"):
        with pytest.raises(SourceError, match="not anonymised"):
            preflight.check(settings(tmp_path / below, tmp_path / "release"))
    with pytest.raises(OutputError, match="not anonymised"):
        preflight.check(settings(tmp_path / "in", tmp_path / "out/release"))


def test_the_marker_is_written_before_the_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_model(monkeypatch, Broken(after=0, message="Wanda_Zx0 is ill"))
    config = configure(pets(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(StepError, match=r"begin again in a new folder: see out/errors/augment\.txt") as caught:
        run_redacted(config)
    assert "Wanda" not in str(caught.value) and caught.value.__context__ is None
    assert "Wanda_Zx0 is ill" in (tmp_path / "out/errors/augment.txt").read_text()
    assert (tmp_path / "out/errors/augment.txt").stat().st_mode & 0o077 == 0
    with pytest.raises(SourceError, match="not anonymised"):
        usage_marker.refuse_marked_source("source.uri", str(tmp_path / "out"))
    assert not (tmp_path / "out/summary.json").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"levels": [0, 0.4]}, r"levels must be two numbers in \(0, 1\]"),
        ({"levels": [0.4, 0.1]}, "levels must be two numbers"),
        ({"levels": ".1"}, "levels must be LOWEST:HIGHEST"),
        ({"levels": "low:high"}, "levels must be LOWEST:HIGHEST"),
        ({"levels": [0.1, True]}, "must be a number, got true"),
        ({"samples": 0}, "samples: 0, and balance is off"),
        ({"samples": -1}, "samples: "),
        ({"source": {"uri": "in"}, "balance": True}, "balance: needs labels, and source.label is not set"),
        ({"source": {"uri": "in"}, "filter": {"kind": "clip"}}, "filter.kind: needs labels"),
        ({"source": {"uri": "in"}, "model": {"condition": "label"}}, "model.condition: label, and source.label is"),
        ({"model": {"prompt": "a {caption}"}}, r"model\.prompt: \{caption\} is not read from the source"),
        ({"filter": {"kind": "classifier"}}, "filter.classifier: missing"),
        ({"filter": {"classifier": "x"}}, "filter.classifier: given, and kind is none"),
        ({"filter": {"kind": "clip", "prompt": "a photo"}}, "filter.prompt must hold {label}"),
        ({"filter": {"knd": "clip"}}, "filter.knd: unknown key: did you mean 'kind'"),
        ({"level": 0.4}, "level: unknown key: did you mean 'levels'"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        configure("in", "out", **more)
    assert "\n" not in str(caught.value)


def test_a_range_may_be_written_in_two_ways() -> None:
    assert (
        configure("in", "out", levels=".1:.4").levels == configure("in", "out", levels=[0.1, 0.4]).levels == (0.1, 0.4)
    )
    config = configure("in", "out", levels=".2:.2", filter={"names": {"a": "b"}})
    assert AugmentConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_model_is_given_each_records_class(tmp_path: Path) -> None:
    folder = class_conditional_model(tmp_path / "model", 3)
    source = folder_of(pets(tmp_path / "in", 1, 1), {"emu/1.png": picture(5)})
    own = {"id": str(folder), "condition": "label", "guidance": 2.0}
    summary = augment_job.run(configure(source, tmp_path / "out", model=own, levels=[0.5, 0.5], samples=1))
    assert (summary.kept, summary.reasons) == (2, {"no_condition": 1})
    backbone = load_backbone(ModelConfig(**own))
    for row in rows(tmp_path / "out"):
        if row["kept"]:
            data = (source / row["record_id"]).read_bytes()
            key = sample_key(0, 0, row["record_id"].encode(), hashlib.sha256(data).digest())
            x0 = augment_job.image_codec.decode(data, 8).tensor[None]
            x = Boomerang(backbone, "ddim", 2).sample(x0, 0.5, KeyedNoise([key]), backbone.condition([row["label"]]))
            pixels = np.asarray(open_image(tmp_path / "out" / row["file"])).transpose(2, 0, 1)
            np.testing.assert_allclose(pixels, (x[0].numpy() + 1) * 127.5, atol=0.6)
            assert row["model"] == "a local model" and row["model_digest"] == backbone.digest


def test_a_model_that_needs_classes_is_refused_without_them_before_anything_is_made(tmp_path: Path) -> None:
    folder = class_conditional_model(tmp_path / "model", 2)
    with pytest.raises(ModelError, match="needs a class for each record"):
        augment_job.run(configure(pets(tmp_path / "in"), tmp_path / "out", model={"id": str(folder)}))
    assert not (tmp_path / "out").exists()
    with_none = {"id": str(class_conditional_model(tmp_path / "other", 3))}
    assert augment_job.run(configure(tmp_path / "in", tmp_path / "out", model=with_none)).kept == 12


def cli(*words: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.slow
def test_the_command_augments_through_prefect_which_sees_only_counts(
    tmp_path: Path, tiny_model: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    source = folder_of(pets(tmp_path / "in", 3, 1), {"dog/Wanda_Zz.png": GARBAGE})
    words = ["augment", "--source", source, "--label", "folder", "--model", tiny_model, "--set", "steps=2"]
    done = cli(*words, "--output", tmp_path / "a", "--levels", ".2:.3", "--samples", "1", "--balance")
    assert (done.exit_code, done.stderr) == (0, "")
    for part in ("Kept 8 of 8 samples at levels 0.2 to 0.3", "4 of 5 could be used", "not_an_image: 1", "5",
                 str(tmp_path / "a/manifest.parquet"), "Caution: these are for training, "):  # fmt: skip
        assert part in done.stdout, part
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"samples": 3, "source": {"uri": "nowhere"}}))
    as_json = cli("augment", tmp_path / "c.yaml", *words[1:], "--output", tmp_path / "b", "--filter", "clip", "--json")
    assert as_json.exit_code == 0, as_json.output
    counts = json.loads(as_json.stdout)
    assert (counts["read"], counts["drawn"], counts["failed"]) == (5, 12, 1)
    assert counts["drawn"] == counts["kept"] + sum(counts["dropped"].values())
    for table, column, value in cells(prefect_home):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        assert "Wanda_Z" not in text, f"{table}.{column}"


@pytest.mark.slow
def test_a_command_that_keeps_no_sample_exits_with_1(tmp_path: Path, tiny_model: Path, prefect_home: Path) -> None:
    source = folder_of(tmp_path / "in", {"a/1.png": GARBAGE})
    done = cli("augment", "--source", source, "--output", tmp_path / "out", "--model", tiny_model, "--json")
    assert done.exit_code == 1 and json.loads(done.stdout)["reasons"] == {"not_an_image": 1}
    assert done.stderr == "error: augment: no sample was kept: see the reasons in summary.json\n"


BAD: dict[str, tuple[list[str], str]] = {
    "nothing": ([], "source: missing"),
    "no output": (["--source", "IN"], "output: missing"),
    "missing config": (["none.yaml"], "config: no file 'none.yaml': name a YAML file"),
    "config is a folder": (["IN"], "config: 'IN' is a directory"),
    "missing source": (["--source", "none", "--output", "out"], "source.uri 'none': no such file"),
    "output inside source": (["--source", "IN", "--output", "IN/out"], "inside the source"),
    "levels": (["--source", "IN", "--output", "out", "--levels", ".4:.1"], "levels must be two numbers"),
    "balance without labels": (["--source", "IN", "--output", "out", "--balance"], "balance: needs labels"),
    "no classifier": (
        ["--source", "IN", "--output", "out", "--label", "folder", "--filter", "none/"],
        "filter.classifier 'none/': not a usable classifier",
    ),
    "unknown CLIP": (
        ["--source", "IN", "--output", "out", "--label", "folder", "--filter", "clip", "--set", "filter.clip=x"],
        "'x': write MODEL/PRETRAINED",
    ),
    "unknown key": (["--source", "IN", "--output", "out", "--set", "sample=1"], "did you mean 'samples'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    pets(tmp_path / "IN", 1, 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")  # nothing must get as far as needing a server
    words, text = BAD[case]
    done = cli("augment", *words)
    assert done.exit_code == 2 and done.stdout == ""
    assert text in done.stderr and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["IN"]


def test_an_interrupted_command_says_how_to_begin_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **rest: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.jobs.augment.check", interrupted)
    done = cli("augment", "--source", pets(tmp_path / "in"), "--output", tmp_path / "out")
    assert done.exit_code == 130
    assert done.stderr == "stopped: what was drawn stays; begin again in a new folder\n"


ROW = re.compile(r"^\| `([a-z_.]+)` \| (required|`.*?`) \| (.+) \|$", re.MULTILINE)


def test_the_documentation_has_every_setting_with_its_default_and_meaning() -> None:
    text = (ROOT / "docs/augmentation.md").read_text()
    found = {name: (default, meaning) for name, default, meaning in ROW.findall(text)}
    known = [name for name in known_keys(AugmentConfig) if not name.startswith(("source.", "model."))]
    assert list(found) == known
    for name, (default, meaning) in found.items():
        kind: Any = AugmentConfig
        *sections, key = name.split(".")
        for section in sections:
            kind = kind.model_fields[section].annotation
        field = kind.model_fields[key]
        assert meaning == field.description
        if field.is_required():
            assert default == "required"
        else:
            written = yaml.safe_load(default.strip("`"))
            assert (tuple(written) if isinstance(written, list) else written) == field.default, name


def test_the_documentation_has_every_column_of_the_manifest() -> None:
    text = (ROOT / "docs/augmentation.md").read_text().partition("## `manifest.parquet`")[2].partition("\n## ")[0]
    columns = [
        name for cells in re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE) for name in re.findall("`(.+?)`", cells)
    ]
    assert columns == [field.name for field in augment_job.augment_manifest.MANIFEST]


def test_the_python_in_the_documentation_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    folder_of(tmp_path / "photos", {f"{'ab'[i % 2]}/{i}.png": encoded(pixels[i]) for i in range(4)})
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/augmentation.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    small = {"bundled:faces-64": str(tiny_model), "Resize(64)": "Resize(8)", "CenterCrop(64)": "CenterCrop(8)"}
    for block in blocks:
        for text, instead in small.items():
            block = block.replace(text, instead)
        exec(block, {"__name__": "a_block", "train_one_epoch": lambda loader: [x for x, _ in loader]})
    assert (tmp_path / "augmented/summary.json").exists()
