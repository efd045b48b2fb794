"""Local samples for training: drawn lazily or written to a folder, with labels, balance and a filter."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Subset, TensorDataset

from anonymizer.augment import Levels as Range
from anonymizer.augment import LocalSamples, SampleRequest, batch_by_level, sample_batch, sample_key, samples_per_record
from anonymizer.backbones import load_backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import AugmentConfig, ModelConfig, build_as, known_keys
from anonymizer.data import usage_marker
from anonymizer.errors import ConfigError, ModelError, OutputError, SourceError, StepError
from anonymizer.noise import KeyedNoise
from anonymizer.records import Reason
from anonymizer.release import preflight
from anonymizer.storage import parquet
from anonymizer.storage.path import StoragePath
from flows.cli import main
from flows.jobs import augment as augment_job
from metrics.utility.label_consistency import Classifier
from tests.support import ROOT
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.prefect_database import cells
from tests.support.releases import GARBAGE, Broken, NotFinite, encoded, folder_of, listing, picture, plain, settings


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> IdealGaussian:
    """The model in closed form in place of the one that settings name."""
    return use(monkeypatch, IdealGaussian())


def use(monkeypatch: pytest.MonkeyPatch, backbone: IdealGaussian) -> IdealGaussian:
    monkeypatch.setattr(augment_job, "backbone_of", lambda config: backbone)
    return backbone


def boomerang(backbone: Any = None) -> Boomerang:
    return Boomerang(backbone or IdealGaussian(), "ddim", 2)


def pets(root: Path, cats: int = 4, dogs: int = 2) -> Path:
    """Pictures in a folder for each class, of people's names."""
    files = {f"cat/Wanda_Zx{i}.png": picture(i) for i in range(cats)}
    return folder_of(root, files | {f"dog/Wanda_Zy{i}.png": picture(100 + i) for i in range(dogs)})


def asked(source: Path | str, output: Path | str, /, *overrides: str, **more: Any) -> AugmentConfig:
    tree = {"source": {"uri": str(source), "label": "folder"}, "output": {"uri": str(output)}, "sampler": "ddim"}
    return build_as(AugmentConfig, tree | {"steps": 2, "batch_size": 3} | more, overrides)


def rows(output: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(output / "manifest.parquet").to_pylist()
    return found


def told(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return found


def opened(file: Path) -> Image.Image:
    return Image.open(io.BytesIO(file.read_bytes()))


def pictures_of(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*.png"))}


# -- what a sample is -------------------------------------------------------------------------------------------------


def test_levels_are_spread_evenly_over_the_range_and_drawn_all_alike() -> None:
    levels = Range(0.1, 0.4)
    assert (levels.values[0], levels.values[-1], len(levels.values)) == (0.1, 0.4, 16)
    np.testing.assert_allclose(np.diff(levels.values), 0.02, atol=1e-9)
    counts = Counter(levels.draw(sample_key(0, i, b"x")) for i in range(16_000))
    assert counts.keys() == set(levels.values)
    assert all(abs(count - 1000) < 5 * 1000**0.5 for count in counts.values())
    assert Range(0.3, 0.3).values == (0.3,)


@pytest.mark.parametrize("wrong", [(0, 0.4), (0.4, 0.3), (0.5, 1.1), (float("nan"), 0.5), (0.1, 0.4, 1)])
def test_levels_that_cannot_be_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="levels"):
        Range(*wrong)  # type: ignore[arg-type]


def test_seed_number_and_each_part_of_a_record_make_another_key() -> None:
    parts = [(0, 0, b"a", b"b"), (1, 0, b"a", b"b"), (0, 1, b"a", b"b"), (0, 0, b"ab", b""), (0, 0, b"a", b"c")]
    assert len({sample_key(*part) for part in parts}) == 5  # type: ignore[arg-type]
    assert sample_key(0, 0, b"a") == sample_key(0, 0, b"a") and len(sample_key(2**80, 0)) == 16


def wanted(count: int, levels: Sequence[float] = (0.2, 0.4), side: int = 8) -> list[SampleRequest]:
    gen = torch.Generator().manual_seed(0)
    shape = (3, side, side)
    return [
        SampleRequest(
            torch.rand(shape, generator=gen) * 2 - 1, sample_key(0, i), levels[i % len(levels)], None, origin=i
        )
        for i in range(count)
    ]


def test_a_sample_is_boomerangs_own_whatever_it_is_drawn_beside() -> None:
    items = wanted(7)
    alone = {one.origin: boomerang().sample(one.image[None], one.level, KeyedNoise([one.key]))[0] for one in items}
    for size in (1, 2, 7):
        drawn = {}
        for batch in batch_by_level(items, size):
            assert len({one.level for one in batch}) == 1 and len(batch) <= size
            drawn |= {one.origin: x for one, x in zip(batch, sample_batch(boomerang(), batch), strict=True)}
        assert drawn.keys() == alone.keys()
        for at, x in alone.items():
            torch.testing.assert_close(drawn[at], x, atol=1e-6, rtol=0)


def test_batches_are_full_but_for_the_last_of_each_level() -> None:
    found = list(batch_by_level(wanted(90, [0.1, 0.2, 0.3]), 8))
    assert sorted(one.origin for batch in found for one in batch) == list(range(90))
    assert sorted(len(batch) for batch in found) == [6] * 3 + [8] * 9


def test_pictures_that_wait_take_bounded_memory() -> None:
    items, taken, most = wanted(300, [round(0.1 + i / 100, 2) for i in range(30)]), 0, 20
    each = items[0].image.nbytes

    def watched() -> Any:
        nonlocal taken
        for one in items:
            taken += 1
            yield one

    out = 0
    for batch in batch_by_level(watched(), 16, max_bytes=most * each):
        assert taken - out <= most + 1
        out += len(batch)
        assert len({one.level for one in batch}) == 1
    assert out == 300


def test_pictures_of_other_shapes_are_in_other_batches() -> None:
    found = list(batch_by_level([*wanted(4, [0.2]), *wanted(4, [0.2], side=6)], 8))
    assert [batch[0].image.shape[-1] for batch in found] == [8, 6]


# -- balance ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["a", "b", "c", None])), st.integers(0, 3))
def test_originals_and_samples_are_as_many_in_each_class(labels: list[str | None], samples: int) -> None:
    found = samples_per_record(labels, samples)
    assert len(found) == len(labels)
    totals: Counter[str] = Counter()
    of: dict[str, list[int]] = {}
    for label, count in zip(labels, found, strict=True):
        assert count >= 0
        if label is None:
            assert count == 0
        else:
            totals[label] += 1 + count
            of.setdefault(label, []).append(count)
    assert len(set(totals.values())) <= 1
    assert all(max(counts) - min(counts) <= 1 for counts in of.values())
    if of:
        assert set(max(of.values(), key=len)) == {samples}


# -- a dataset that draws them ----------------------------------------------------------------------------------------


def toys(count: int = 6) -> TensorDataset:
    gen = torch.Generator().manual_seed(1)
    return TensorDataset(torch.rand(count, 3, 8, 8, generator=gen) * 2 - 1, torch.arange(count) % 3)


def everything(dataset: LocalSamples) -> torch.Tensor:
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def test_originals_come_first_and_each_sample_has_its_originals_label() -> None:
    data = toys()
    found = LocalSamples(data, boomerang(), samples=2)
    assert len(found) == 18
    for i in range(6):
        assert torch.equal(found[i][0], data[i][0])
        for n in range(3):
            assert found[i + 6 * n][1] == data[i][1]
    x = everything(found)
    assert x.shape == (18, 3, 8, 8) and x.dtype == torch.float32 and x.abs().max() <= 1
    assert len({row.numpy().tobytes() for row in x}) == 18
    assert torch.equal(found[-1][0], x[17])
    with pytest.raises(IndexError, match="index 18 of 18"):
        found[18]


def test_without_originals_the_samples_are_the_same() -> None:
    both, samples = LocalSamples(toys(), boomerang()), LocalSamples(toys(), boomerang(), include_originals=False)
    assert len(samples) == 12 and torch.equal(everything(samples), everything(both)[6:])


def test_a_sample_is_a_local_sample_of_its_original_at_a_level_of_the_range() -> None:
    data, found = toys(), LocalSamples(toys(), boomerang(), levels=(0.2, 0.5), samples=1, seed=7)
    levels = Range(0.2, 0.5, count=4)
    for i in range(6):
        key = sample_key(7, 0, b"0", b"%d" % i)
        x = boomerang().sample(data[i][0][None], levels.draw(key), KeyedNoise([key]))[0]
        torch.testing.assert_close(found[6 + i][0], x, atol=1e-6, rtol=0)


def test_seed_and_epoch_give_other_samples_and_the_same_ones_again() -> None:
    first, other = LocalSamples(toys(), boomerang()), LocalSamples(toys(), boomerang(), seed=1)
    x = everything(first)
    assert not (everything(other)[6:] == x[6:]).flatten(1).all(1).any()
    first.set_epoch(1)
    later = everything(first)
    assert torch.equal(later[:6], x[:6]) and not (later[6:] == x[6:]).flatten(1).all(1).any()
    first.set_epoch(0)
    assert torch.equal(everything(first), x)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_gets_the_same_as_one_who_asks_one_by_one(workers: int) -> None:
    found = LocalSamples(toys(), boomerang())
    start = "forkserver" if workers else None  # a fork of a process in which Prefect has run may fail at its end
    loader = DataLoader(found, batch_size=5, num_workers=workers, multiprocessing_context=start)
    loaded = [x for batch, _ in loader for x in batch]
    torch.testing.assert_close(torch.stack(loaded), everything(found), atol=1e-6, rtol=0)


def test_the_model_sees_batches() -> None:
    backbone = IdealGaussian()
    found = LocalSamples(toys(32), boomerang(backbone), levels=(0.3, 0.3), samples=1, include_originals=False)
    for _ in DataLoader(found, batch_size=32):
        pass
    assert len(backbone.calls) == 2  # two steps for all of them
    backbone.calls.clear()
    found.batch_size = 8
    for _ in DataLoader(Subset(found, range(16)), batch_size=16):
        pass
    assert len(backbone.calls) == 4


def test_a_network_can_be_trained_on_what_comes_out() -> None:
    network = torch.nn.Conv2d(3, 3, 8)
    for x, label in DataLoader(LocalSamples(toys(), boomerang()), batch_size=6, shuffle=True):
        torch.nn.functional.cross_entropy(network(x).flatten(1), label).backward()
    x, _ = LocalSamples(toys(), boomerang())[7]
    network(x[None]).sum().backward()
    assert network.weight.grad is not None


def test_pictures_of_pil_are_taken_as_they_are_and_come_back_through_the_transform() -> None:
    grey, colour = Image.new("L", (8, 8), 255), Image.new("RGB", (8, 8), (0, 255, 51))
    found = LocalSamples([(grey, "a"), (colour, "b")], boomerang(), transform=lambda x: (x + 1) / 2)
    assert torch.equal(found[0][0], torch.ones(3, 8, 8)) and found[5][1] == "b"
    torch.testing.assert_close(found[1][0][:, 0, 0], torch.tensor([0.0, 1.0, 0.2]))
    assert found[2][0].min() >= 0


class Told(IdealGaussian):
    """Keeps what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.asks, self.heard = "class", []

    def condition(self, told: Sequence[str]) -> object:
        self.heard += told
        return None


def test_a_model_with_classes_is_told_each_label() -> None:
    backbone = Told()
    everything(LocalSamples(toys(), boomerang(backbone), samples=1, condition=lambda label: f"c{int(label)}"))
    assert backbone.heard == [f"c{i % 3}" for i in range(6)]
    with pytest.raises(ValueError, match="condition: the model 'ideal' can be told nothing"):
        LocalSamples(toys(), boomerang(), condition=str)


@pytest.mark.parametrize(
    ("item", "error", "says"),
    [
        ((torch.zeros(3, 8, 8, dtype=torch.uint8), 0), TypeError, "item 0: a picture of torch.uint8"),
        ((torch.zeros(3, 9, 8), 0), ValueError, r"item 0: a picture of \(3, 9, 8\): the model works on \(3, 8, 8\)"),
        ((torch.zeros(8, 8), 0), ValueError, "resize it before"),
        ((torch.full((3, 8, 8), 255.0), 0), ValueError, "outside of"),
        ((torch.full((3, 8, 8), torch.nan), 0), ValueError, "outside of"),
        (("a path", 0), TypeError, "a picture is a str: it must be a PIL image or a tensor"),
        (({"image": 1},), TypeError, "item 0 is a tuple: it must be"),
        ({"image": 1, "label": 2}, TypeError, "item 0 is a dict: it must be"),
    ],
)
def test_what_is_no_picture_with_a_label_is_said(item: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        LocalSamples([item], boomerang())[1]


def test_what_cannot_be_wrapped_is_said() -> None:
    with pytest.raises(TypeError, match="a set has no length and index"):
        LocalSamples({1}, boomerang())
    for wrong in ({"samples": 0}, {"batch_size": 0}, {"levels": (0, 0.4)}, {"grid": 1}):
        with pytest.raises(ValueError, match=r"samples|batch_size|levels"):
            LocalSamples(toys(), boomerang(), **wrong)


def test_a_sample_that_is_not_finite_is_no_training_picture() -> None:
    white = [(torch.ones(3, 8, 8), 0)]
    with pytest.raises(ValueError, match="'ideal' returned NaN or infinity"):
        LocalSamples(white, boomerang(NotFinite()))[1]


# -- on disk ----------------------------------------------------------------------------------------------------------


def test_a_folder_of_samples_holds_their_labels_and_nothing_of_the_sources_names(
    tmp_path: Path, model: IdealGaussian
) -> None:
    summary = augment_job.run(asked(pets(tmp_path / "in"), tmp_path / "out"))
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
    assert len(set(pictures_of(out).values())) == 12


def test_a_written_sample_is_boomerangs_own(tmp_path: Path, model: IdealGaussian) -> None:
    source = pets(tmp_path / "in")
    augment_job.run(asked(source, tmp_path / "out", seed=5))
    row = rows(tmp_path / "out")[3]
    data = (source / row["record_id"]).read_bytes()
    key = sample_key(5, row["sample"], row["record_id"].encode(), hashlib.sha256(data).digest())
    x0 = augment_job.image_codec.decode(data, 8).tensor
    x = boomerang().sample(x0[None], row["level"], KeyedNoise([key]))[0]
    pixels = np.asarray(opened(tmp_path / "out" / row["file"])).transpose(2, 0, 1)
    np.testing.assert_allclose(pixels, (x.numpy() + 1) * 127.5, atol=0.51)


def test_what_is_written_is_for_its_owner_alone(tmp_path: Path, model: IdealGaussian) -> None:
    augment_job.run(asked(pets(tmp_path / "in"), tmp_path / "out"))
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_batches_do_not_matter_and_seeds_do(tmp_path: Path, model: IdealGaussian) -> None:
    source = pets(tmp_path / "in")
    found = {}
    for name, more in {"a": {}, "b": {"batch_size": 1}, "c": {"batch_size": 64}, "d": {"seed": 1}}.items():
        augment_job.run(asked(source, tmp_path / name, **more))
        found[name] = pictures_of(tmp_path / name)
    assert found["a"] == found["b"] == found["c"]
    assert not set(found["a"].values()) & set(found["d"].values())


def test_a_record_keeps_its_samples_whatever_else_is_in_the_source(tmp_path: Path, model: IdealGaussian) -> None:
    augment_job.run(asked(pets(tmp_path / "in"), tmp_path / "a"))
    folder_of(tmp_path / "in", {"ape/first.png": picture(77)})
    augment_job.run(asked(tmp_path / "in", tmp_path / "b"))
    of = [{(r["record_id"], r["sample"]): (tmp_path / n / r["file"]).read_bytes() for r in rows(tmp_path / n)}
          for n in "ab"]  # fmt: skip
    assert of[0].items() <= of[1].items() and len(of[1]) == len(of[0]) + 2


def test_copies_of_one_picture_have_samples_of_their_own(tmp_path: Path, model: IdealGaussian) -> None:
    augment_job.run(asked(folder_of(tmp_path / "in", {"a/1.png": picture(0), "a/2.png": picture(0)}), tmp_path / "out"))
    assert len(set(pictures_of(tmp_path / "out").values())) == 4


def test_smaller_classes_get_more_samples_on_request(tmp_path: Path, model: IdealGaussian) -> None:
    source = folder_of(pets(tmp_path / "in", cats=5, dogs=2), {"dog/bad.png": GARBAGE})
    for samples, total in ((0, 5), (1, 10)):
        out = tmp_path / f"out{samples}"
        summary = augment_job.run(asked(source, out, samples=samples, balance=True))
        by_class = told(out)["by_class"]
        assert {name: one["originals"] + one["kept"] for name, one in by_class.items()} == {"cat": total, "dog": total}
        per_record = Counter(row["record_id"] for row in rows(out) if row["kept"])
        dogs = [per_record[f"dog/Wanda_Zy{i}.png"] for i in range(2)]
        assert dogs == ([2, 1] if samples == 0 else [4, 4])
        assert (summary.most_of_one, summary.failed) == (max(dogs), 1)


def test_bad_records_are_counted_rows_and_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, NotFinite())
    bad = {"cat/empty.png": b"", "cat/text.png": GARBAGE, "cat/cut.png": picture(3)[:60], "top.png": picture(4)}
    source = folder_of(pets(tmp_path / "in"), bad | {"dog/white.png": plain(255)})
    summary = augment_job.run(asked(source, tmp_path / "out"))
    assert (summary.read, summary.usable, summary.failed) == (11, 7, 4)
    assert summary.reasons == {"bad_metadata": 1, "empty": 1, "not_an_image": 1, "truncated": 1}
    assert (summary.drawn, summary.kept, summary.dropped) == (14, 12, {"not_finite": 2})
    reasons = {row["record_id"]: (row["reason"], row["sample"]) for row in rows(tmp_path / "out") if not row["file"]}
    assert reasons["top.png"] == ("bad_metadata", None) and reasons["cat/empty.png"] == ("empty", None)
    assert reasons["dog/white.png"] == ("not_finite", 1)
    assert told(tmp_path / "out")["read"] == 11


def test_without_labels_pictures_lie_together(tmp_path: Path, model: IdealGaussian) -> None:
    summary = augment_job.run(asked(pets(tmp_path / "in"), tmp_path / "out", "source.label=null", "samples=1"))
    assert summary.kept == 6 and summary.classes == 0
    assert sorted(pictures_of(tmp_path / "out")) == [f"images/{i:06d}-0.png" for i in range(6)]
    assert {row["label"] for row in rows(tmp_path / "out")} == {None}


def test_labels_of_a_table_are_kept_whatever_they_are(tmp_path: Path, model: IdealGaussian) -> None:
    labels = ["a/../b", "..", "é ?", 'say "x", y', "7"]
    files = folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(5)})
    source = listing(files, [{"image": f"{i}.png", "class": label, "who": "Ada"} for i, label in enumerate(labels)])
    tree = {"uri": str(source), "label": "class", "drop": ["*"]}
    augment_job.run(asked(source, tmp_path / "out", "output.image=jpeg", "samples=1", source=tree))
    found = rows(tmp_path / "out")
    assert [row["label"] for row in found] == labels
    assert [row["file"].split("/")[1] for row in found] == [
        "a%2F..%2Fb",
        "%2E%2E",
        "%C3%A9%20%3F",
        "say%20%22x%22%2C%20y",
        "7",
    ]
    assert all(opened(tmp_path / "out" / row["file"]).format == "JPEG" for row in found)
    from torchvision.datasets import ImageFolder

    assert len(ImageFolder(tmp_path / "out/images").classes) == 5


@pytest.mark.filterwarnings("ignore:.*unclosed file .*metadata.csv:ResourceWarning")  # datasets leaves it open
@pytest.mark.filterwarnings("ignore:.*metadata.csv:pytest.PytestUnraisableExceptionWarning")
def test_what_is_written_loads_as_image_folders_do(
    tmp_path: Path, model: IdealGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment_job.run(asked(pets(tmp_path / "in"), tmp_path / "out"))
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
    config = asked(tmp_path / "in.parquet", "memory://bucket/out", "source.label=label")
    assert augment_job.run(config).kept == 6
    manifest = parquet.read(StoragePath.from_uri("memory://bucket/out/manifest.parquet"))
    assert all(store.exists(f"/bucket/out/{file}") for file in manifest["file"].to_pylist())
    with pytest.raises(OutputError, match="is there already"):
        augment_job.check(config)


def test_pictures_of_any_sides_are_worked_on_in_tiles(tmp_path: Path, model: IdealGaussian) -> None:
    shapes = {"a/1.png": picture(0, (12, 9)), "a/2.png": picture(1, (9, 12)), "a/3.png": picture(2, (8, 8))}
    source = folder_of(tmp_path / "in", shapes)
    augment_job.run(asked(source, tmp_path / "out", "source.fit=tiles"))
    found = {row["record_id"]: opened(tmp_path / "out" / row["file"]).size for row in rows(tmp_path / "out")}
    assert found == {"a/1.png": (12, 9), "a/2.png": (9, 12), "a/3.png": (8, 8)}


def test_what_the_models_safety_checker_objects_to_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = use(monkeypatch, IdealGaussian(mean=0.0, spread=1.0))
    monkeypatch.setattr(backbone, "flag_unsafe", lambda x: [bool(row.mean() > 0) for row in x])
    source = folder_of(tmp_path / "in", {"a/dark.png": plain(20), "a/light.png": plain(235)})
    summary = augment_job.run(asked(source, tmp_path / "out", levels=[0.1, 0.1]))
    assert (summary.kept, summary.dropped) == (2, {"unsafe": 2})
    assert augment_job.run(asked(source, tmp_path / "b", "model.safety_checker=false", levels=[0.1, 0.1])).kept == 4


# -- the filter -------------------------------------------------------------------------------------------------------


def brightness(images: torch.Tensor) -> torch.Tensor:
    mean = images.mean((1, 2, 3))
    return torch.stack([-mean, mean], 1)


def filtered_by(monkeypatch: pytest.MonkeyPatch, logits: Callable[[torch.Tensor], torch.Tensor]) -> None:
    known = Classifier(logits, ("dark", "light"), "brightness")
    monkeypatch.setattr(augment_job, "filter_of", lambda config, device: known)


def test_samples_that_do_not_show_their_label_are_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, IdealGaussian(mean=0.0, spread=1.0))
    filtered_by(monkeypatch, brightness)
    right = {f"dark/{i}.png": plain(20 + i) for i in range(3)} | {f"light/{i}.png": plain(235 + i) for i in range(2)}
    source = folder_of(tmp_path / "in", right | {"light/wrong.png": plain(19)})
    config = asked(source, tmp_path / "out", filter={"kind": "clip"}, levels=[0.1, 0.2])
    summary = augment_job.run(config)
    assert (summary.drawn, summary.kept, summary.dropped) == (12, 10, {"disagrees": 2})
    found = told(tmp_path / "out")
    assert found["filter"] == "brightness"
    counts = ("originals", "originals_looked_at", "originals_agreed", "drawn", "kept", "looked_at", "agreed")
    assert found["by_class"]["dark"] == dict(zip(counts, (3, 3, 3, 6, 6, 6, 6), strict=True))
    assert found["by_class"]["light"] == dict(zip(counts, (3, 3, 2, 6, 4, 6, 4), strict=True))
    assert sum(level["agreed"] for level in found["by_level"]) == 10 and len(found["by_level"]) == 16
    dropped = [row for row in rows(tmp_path / "out") if not row["kept"]]
    assert [(row["record_id"], row["predicted"], row["agrees"], row["file"]) for row in dropped] == [
        ("light/wrong.png", "dark", False, None)
    ] * 2
    assert len(pictures_of(tmp_path / "out")) == 10


def test_the_filter_is_not_asked_about_what_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, NotFinite())

    def finite(x: torch.Tensor) -> torch.Tensor:
        assert x.isfinite().all()
        return brightness(x)

    filtered_by(monkeypatch, finite)
    source = folder_of(tmp_path / "in", {"light/white.png": plain(255), "light/1.png": plain(230)})
    augment_job.run(asked(source, tmp_path / "out", filter={"kind": "clip"}))
    found = told(tmp_path / "out")["by_class"]["light"]
    assert (found["drawn"], found["looked_at"]) == (4, 2)
    assert {row["agrees"] for row in rows(tmp_path / "out") if row["reason"] == "not_finite"} == {None}


def test_labels_that_the_filter_does_not_know_end_it_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = use(monkeypatch, IdealGaussian())
    filtered_by(monkeypatch, brightness)
    config = asked(pets(tmp_path / "in"), tmp_path / "out", filter={"kind": "clip"})
    with pytest.raises(ConfigError, match="2 of 2 labels of the source are no classes") as caught:
        augment_job.run_for_scheduler(config, augment_job.NO_PROGRESS)
    assert "cat" not in str(caught.value) and backbone.calls == []
    named = {"kind": "clip", "names": {"cat": "dark", "dog": "light"}}
    assert augment_job.run(asked(tmp_path / "in", tmp_path / "out", filter=named)).drawn == 12


def test_a_record_that_changed_after_its_label_was_read_is_left_out(
    tmp_path: Path, model: IdealGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, survey = pets(tmp_path / "in"), augment_job._Augmentation.survey

    def surveyed(work: Any, pool: Any) -> Any:
        found = survey(work, pool)
        folder_of(source, {"zebra/late.png": picture(9)})
        (source / "dog/Wanda_Zy0.png").rename(source / "dug.png")
        return found

    monkeypatch.setattr(augment_job._Augmentation, "survey", surveyed)
    summary = augment_job.run(asked(source, tmp_path / "out", balance=True))
    assert summary.reasons[Reason.CHANGED] >= 1 and "zebra" not in told(tmp_path / "out")["by_class"]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_the_output_must_be_a_new_folder_outside_of_source_and_releases(tmp_path: Path, model: IdealGaussian) -> None:
    source = pets(tmp_path / "in")
    folder_of(tmp_path / "release", {"restricted/plan.json": b"{}", "public/a": b""})
    folder_of(tmp_path / "taken", {"diary.txt": b"dear"})
    for output, says in {
        source / "out": "inside the source",
        source: "inside the source",
        tmp_path / "release/out": "inside a release",
        tmp_path / "taken": "is there already",
        tmp_path: "is there already",
        tmp_path / "taken/diary.txt": "is there already",
    }.items():
        with pytest.raises(OutputError, match=says):
            augment_job.run(asked(source, output))
    augment_job.run(asked(source, tmp_path / "out"))
    with pytest.raises(OutputError, match="is there already"):
        augment_job.run(asked(source, tmp_path / "out"))


def test_no_release_takes_samples_as_input_or_goes_beside_them(tmp_path: Path, model: IdealGaussian) -> None:
    augment_job.run(asked(pets(tmp_path / "in"), tmp_path / "out"))
    for below in ("out", "out/images", "out/images/cat"):
        with pytest.raises(SourceError, match="not anonymised"):
            preflight.check(settings(tmp_path / below, tmp_path / "release"))
    with pytest.raises(OutputError, match="not anonymised"):
        preflight.check(settings(tmp_path / "in", tmp_path / "out/release"))


def test_the_mark_is_there_before_the_first_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Broken(after=0, message="Wanda_Zx0 is ill"))
    config = asked(pets(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(StepError, match=r"begin again in a new folder: see out/errors/augment\.txt") as caught:
        augment_job.run_for_scheduler(config, augment_job.NO_PROGRESS)
    assert "Wanda" not in str(caught.value) and caught.value.__context__ is None
    assert "Wanda_Zx0 is ill" in (tmp_path / "out/errors/augment.txt").read_text()
    assert (tmp_path / "out/errors/augment.txt").stat().st_mode & 0o077 == 0
    with pytest.raises(SourceError, match="not anonymised"):
        usage_marker.refuse_marked_source("source.uri", str(tmp_path / "out"))
    assert not (tmp_path / "out/summary.json").exists()


@pytest.mark.parametrize(
    ("more", "says"),
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
def test_settings_that_cannot_be_are_one_line(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        asked("in", "out", **more)
    assert "\n" not in str(caught.value)


def test_a_range_may_be_written_in_two_ways() -> None:
    assert asked("in", "out", levels=".1:.4").levels == asked("in", "out", levels=[0.1, 0.4]).levels == (0.1, 0.4)
    config = asked("in", "out", levels=".2:.2", filter={"names": {"a": "b"}})
    assert AugmentConfig.model_validate(config.model_dump(mode="json")) == config


# -- models that know classes -----------------------------------------------------------------------------------------


def classes(folder: Path, embeddings: int, names: Sequence[str] = ("cat", "dog")) -> Path:
    """An untrained network that is told classes; with one embedding more than names, of none too."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, num_class_embeds=embeddings,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(1000, clip_sample=True).save_pretrained(folder / "scheduler")
    index = {"_class_name": "DDPMPipeline", "id2label": dict(enumerate(names))}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def test_each_record_is_told_its_class(tmp_path: Path) -> None:
    folder = classes(tmp_path / "model", 3)
    source = folder_of(pets(tmp_path / "in", 1, 1), {"emu/1.png": picture(5)})
    own = {"id": str(folder), "condition": "label", "guidance": 2.0}
    summary = augment_job.run(asked(source, tmp_path / "out", model=own, levels=[0.5, 0.5], samples=1))
    assert (summary.kept, summary.reasons) == (2, {"no_condition": 1})
    backbone = load_backbone(ModelConfig(**own))
    for row in rows(tmp_path / "out"):
        if row["kept"]:
            data = (source / row["record_id"]).read_bytes()
            key = sample_key(0, 0, row["record_id"].encode(), hashlib.sha256(data).digest())
            x0 = augment_job.image_codec.decode(data, 8).tensor[None]
            x = Boomerang(backbone, "ddim", 2).sample(x0, 0.5, KeyedNoise([key]), backbone.condition([row["label"]]))
            pixels = np.asarray(opened(tmp_path / "out" / row["file"])).transpose(2, 0, 1)
            np.testing.assert_allclose(pixels, (x[0].numpy() + 1) * 127.5, atol=0.6)
            assert row["model"] == "a local model" and row["model_digest"] == backbone.digest


def test_a_model_that_needs_classes_is_refused_without_them_before_anything_is_made(tmp_path: Path) -> None:
    folder = classes(tmp_path / "model", 2)
    with pytest.raises(ModelError, match="needs a class for each record"):
        augment_job.run(asked(pets(tmp_path / "in"), tmp_path / "out", model={"id": str(folder)}))
    assert not (tmp_path / "out").exists()
    with_none = {"id": str(classes(tmp_path / "other", 3))}
    assert augment_job.run(asked(tmp_path / "in", tmp_path / "out", model=with_none)).kept == 12


def test_a_dataset_tells_a_model_its_classes_by_number_or_name(tmp_path: Path) -> None:
    backbone = load_backbone(ModelConfig(id=str(classes(tmp_path / "model", 2))))
    data = TensorDataset(toys(2).tensors[0], torch.arange(2))
    by_number = LocalSamples(data, boomerang(backbone), samples=1, condition=lambda label: str(int(label)))
    by_name = LocalSamples(data, boomerang(backbone), samples=1, condition=lambda label: ["cat", "dog"][label])
    assert torch.equal(everything(by_number), everything(by_name))
    with pytest.raises(ValueError, match=r"among 'emu' is a class that the model .* does not know"):
        LocalSamples(data, boomerang(backbone), condition=lambda label: "emu")[2]
    with pytest.raises(ModelError, match="needs a class"):
        LocalSamples(data, boomerang(backbone))[2]


# -- the command ------------------------------------------------------------------------------------------------------


def cli(*words: object) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.slow
def test_the_command_augments_through_prefect_which_learns_counts_alone(
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
def test_a_command_that_keeps_nothing_says_no(tmp_path: Path, tiny_model: Path, prefect_home: Path) -> None:
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


def test_what_was_stopped_is_begun_again_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **rest: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.jobs.augment.check", interrupted)
    done = cli("augment", "--source", pets(tmp_path / "in"), "--output", tmp_path / "out")
    assert done.exit_code == 130
    assert done.stderr == "stopped: what was drawn stays; begin again in a new folder\n"


# -- documentation ----------------------------------------------------------------------------------------------------

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
