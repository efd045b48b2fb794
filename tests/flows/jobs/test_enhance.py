"""Enhancements: from settings and a source to images, a manifest and a page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from torch.nn import functional as F

from anonymizer.backbones import Denoised
from anonymizer.config import EnhanceConfig, known_keys
from anonymizer.data import image_codec
from anonymizer.enhance import Enhancer, lanczos, noise_key
from anonymizer.errors import AnonymizerError, ConfigError, OutputError, RecordError, SourceError, StepError
from anonymizer.noise import KeyedNoise
from anonymizer.pipeline.batch_sampling import BatchSampler
from anonymizer.pipeline.batching import batch_items
from anonymizer.pipeline.device_overlap import Sequential
from anonymizer.policy.calibration import build_resolved
from anonymizer.records import Reason
from anonymizer.release import preflight
from anonymizer.release.profiling import Stopwatch
from anonymizer.storage import parquet
from anonymizer.storage.path import StoragePath
from flows.cli import main
from flows.jobs import enhance as enhance_job
from flows.jobs.enhance_manifest import EnhanceSummary
from flows.jobs.redaction import redact_errors
from tests.support import ROOT
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.prefect_database import cells
from tests.support.releases import GARBAGE, NotFinite, encoded, folder_of, listing, plain, settings, tree

# -- settings ---------------------------------------------------------------------------------------------------------

LEAST: dict[str, Any] = {"source": {"uri": "in"}, "output": {"uri": "out"}}


@pytest.mark.parametrize(
    ("given", "levels"), [(".5,.3", (0.5, 0.3)), ("0.4", (0.4,)), (0.4, (0.4,)), ([0.3, 0.5, 0.3], (0.3, 0.5, 0.3))]
)
def test_levels_are_a_list_in_the_order_of_the_passes(given: Any, levels: tuple[float, ...]) -> None:
    assert build_resolved(EnhanceConfig, LEAST | {"levels": given}).levels == levels


@pytest.mark.parametrize("given", ["", "0", "1.2", "nan", "high", [], True])
def test_invalid_levels_are_refused_in_one_line(given: Any) -> None:
    with pytest.raises(ConfigError, match="levels"):
        build_resolved(EnhanceConfig, LEAST | {"levels": given})


def test_references_are_an_address_or_a_section() -> None:
    short = build_resolved(EnhanceConfig, LEAST | {"references": "full"})
    assert short == build_resolved(EnhanceConfig, LEAST | {"references": {"uri": "full"}})
    assert short.references is not None and short.references.uri == "full"
    assert build_resolved(EnhanceConfig, short.model_dump(mode="json")) == short


def test_columns_of_a_prompt_must_be_read_from_the_source() -> None:
    with pytest.raises(ConfigError, match=r"model\.condition: label"):
        build_resolved(EnhanceConfig, LEAST | {"model": {"condition": "label"}})
    with pytest.raises(ConfigError, match=r"model\.prompt: \{hair\} is not read"):
        build_resolved(EnhanceConfig, LEAST | {"model": {"prompt": "a {hair} person"}})


ROW = re.compile(r"^\| `([a-z_.]+)` \| (required|`.*?`) \| (.+) \|$", re.MULTILINE)


def test_the_documentation_has_every_setting_of_its_own_with_default_and_meaning() -> None:
    text = (ROOT / "docs/enhancement.md").read_text()
    rows = {name: (default, meaning) for name, default, meaning in ROW.findall(text)}
    shared = ("source.", "references.", "model.")  # a run's, which docs/commands.md has
    own = ["references", *(name for name in known_keys(EnhanceConfig) if not name.startswith(shared))]
    assert sorted(rows) == sorted(own)
    for name, (default, meaning) in rows.items():
        kind: Any = EnhanceConfig
        *sections, key = name.split(".")
        for section in sections:
            kind = kind.model_fields[section].annotation
        one = kind.model_fields[key]
        assert meaning == one.description
        if default == "required":
            assert one.is_required()
        else:
            written = yaml.safe_load(default.strip("`"))
            assert (tuple(written) if isinstance(written, list) else written) == one.default, name


# -- a job ------------------------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>.png"


def photo(seed: int, width: int = 16, height: int = 16) -> bytes:
    draws = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return encoded(np.asarray(Image.fromarray(draws).resize((width, height), Image.Resampling.BICUBIC)))


def reduced(data: bytes, factor: int = 4) -> bytes:
    picture = image_codec.decode(data, 1, "tiles").tensor
    height, width = (side // factor for side in picture.shape[-2:])
    return image_codec.encode(lanczos(picture[None], (height, width))[0]).data


def pairs(root: Path, count: int = 5) -> tuple[Path, Path]:
    """Small pictures in ``small`` and the same at full size in ``full``, in folders, one with a hostile name."""
    full = {f"{'ab'[i % 2]}/{f'Wanda {i}.png' if i else HOSTILE}": photo(i) for i in range(count)}
    small = {name: reduced(data) for name, data in full.items()}
    return folder_of(root / "small", small), folder_of(root / "full", full)


@pytest.fixture
def ideal(monkeypatch: pytest.MonkeyPatch) -> IdealGaussian:
    found = IdealGaussian(size=16)
    monkeypatch.setattr(enhance_job, "backbone_of", lambda config: found)
    return found


def run_redacted(config: EnhanceConfig) -> None:
    folder = StoragePath.from_uri(config.output.uri)
    redact_errors(folder, "enhance", StepError("enhancement: failed"), lambda: enhance_job.run(config))


def configure(tmp_path: Path, **more: Any) -> EnhanceConfig:
    given: dict[str, Any] = {
        "source": {"uri": str(tmp_path / "small")}, "output": {"uri": str(tmp_path / "large")}, "sampler": "ddim",
        "steps": 2, "metrics": {"lpips": "none"},
    }  # fmt: skip
    return build_resolved(EnhanceConfig, given | more)


def rows(folder: Path) -> list[dict[str, Any]]:
    return parquet.read(StoragePath.from_uri(str(folder / "manifest.parquet"))).to_pylist()  # type: ignore[no-any-return]


def test_a_folder_is_enlarged(tmp_path: Path, ideal: IdealGaussian) -> None:
    small, _ = pairs(tmp_path)
    summary = enhance_job.run(configure(tmp_path, levels=".5,.3"))
    assert (summary.read, summary.enhanced, summary.failed, summary.compared) == (5, 5, 0, 0)
    out = tmp_path / "large"
    assert {path.name for path in out.iterdir()} == {
        "images", "manifest.parquet", "purpose.json", "report.html", "summary.json"
    }  # fmt: skip
    found = rows(out)
    assert [row["file"] for row in found] == [f"images/{i:06d}.png" for i in range(5)]
    assert {str(path.relative_to(small)) for path in small.rglob("*.png")} == {row["record_id"] for row in found}
    first = found[0]
    assert (first["width"], first["height"], first["factor"], first["upsampling"]) == (16, 16, 4, "bicubic")
    assert (first["levels"], first["t_boom"], first["steps"]) == ([0.5, 0.3], [500, 300], 4)
    assert (first["model_digest"], first["sampler"], first["seed"]) == (ideal.digest, "ddim", 0)
    assert not {"psnr", "reference"} & first.keys()
    low_one = image_codec.decode((small / first["record_id"]).read_bytes(), 1, "tiles").tensor
    wanted = Enhancer(ideal, 4, (0.5, 0.3), sampler="ddim", steps=2)(
        low_one[None], KeyedNoise([noise_key(0, (small / first["record_id"]).read_bytes())])
    )[0]
    assert image_codec.encode(wanted).data == (out / first["file"]).read_bytes()


def test_the_output_is_private_and_marked_as_not_anonymised(tmp_path: Path, ideal: IdealGaussian) -> None:
    pairs(tmp_path)
    enhance_job.run(configure(tmp_path))
    out = tmp_path / "large"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (out, *out.rglob("*")))
    marker = "enhancement, not anonymised"
    assert json.loads((out / "purpose.json").read_text()) == {"purpose": marker}
    assert json.loads((out / "summary.json").read_text())["purpose"] == marker
    schema = parquet.read(StoragePath.from_uri(str(out / "manifest.parquet"))).schema
    assert schema.metadata[b"purpose"] == marker.encode()
    with pytest.raises(SourceError, match="not anonymised"):
        preflight.check(settings(str(out / "images"), str(tmp_path / "release")))
    with pytest.raises(OutputError, match="not anonymised"):
        preflight.check_output(settings(str(tmp_path / "small"), str(out / "release")))


def test_references_are_compared_with_the_output_and_plain_upsampling(tmp_path: Path, ideal: IdealGaussian) -> None:
    small, full = pairs(tmp_path)
    summary = enhance_job.run(configure(tmp_path, references=str(full)))
    assert summary.compared == 5 and summary.unusable_references == {}
    out = tmp_path / "large"
    for row in rows(out):
        reference = image_codec.decode((full / row["record_id"]).read_bytes(), 1, "tiles").tensor
        written = image_codec.decode((out / row["file"]).read_bytes(), 1, "tiles").tensor
        by_hand = 10 * np.log10(4 / float((reference - written).square().mean()))
        assert row["psnr"] == pytest.approx(by_hand, abs=1e-3)
        picture = image_codec.decode((small / row["record_id"]).read_bytes(), 1, "tiles").tensor
        bicubic = F.interpolate(picture[None], scale_factor=4, mode="bicubic")[0].clamp(-1, 1)
        bicubic = ((bicubic + 1) * 127.5).round() / 127.5 - 1  # as in a file
        by_hand = 10 * np.log10(4 / float((reference - bicubic).square().mean()))
        assert row["psnr_bicubic"] == pytest.approx(by_hand, abs=1e-2)
        assert row["reference"] == "used" and "lpips" not in row
        assert all(-1 < row[f"ssim{method}"] < 1 for method in ("", "_bilinear", "_bicubic", "_lanczos"))
    figures = json.loads((out / "summary.json").read_text())["figures"]
    assert list(figures) == ["psnr", "ssim"] and figures["psnr"]["n"] == 5
    values = {name: np.array([row[name] for row in rows(out)]) for name in ("psnr", "psnr_lanczos")}
    gain = figures["psnr"]["lanczos"]["gain"]
    assert gain["value"] == pytest.approx((values["psnr"] - values["psnr_lanczos"]).mean())
    assert gain["low"] < gain["value"] < gain["high"]
    assert "gain" not in figures["psnr"]["enhanced"]


def test_gains_are_below_zero_where_the_enhanced_picture_is_worse(tmp_path: Path, ideal: IdealGaussian) -> None:
    full = {f"{i}.png": photo(i, 32, 32) for i in range(4)}
    folder_of(tmp_path / "small", {name: reduced(data) for name, data in full.items()})
    ideal.spread = 1e-3  # it draws nothing but grey, which is further from everything
    where = str(folder_of(tmp_path / "full", full))
    enhance_job.run(configure(tmp_path, references=where, levels="1", metrics={"lpips": "st-alex"}))
    summary = json.loads((tmp_path / "large/summary.json").read_text())
    assert "st-lpips-alex" in summary["lpips"]
    for measure in ("lpips", "psnr", "ssim"):
        assert all(summary["figures"][measure][name]["gain"]["high"] < 0 for name in ("bilinear", "bicubic", "lanczos"))


def test_pictures_too_small_for_a_measure_are_compared_by_the_others(tmp_path: Path, ideal: IdealGaussian) -> None:
    folder_of(tmp_path / "small", {"a.png": photo(0, 2, 2)})
    folder_of(tmp_path / "full", {"a.png": photo(1, 8, 8)})
    config = configure(tmp_path, references=str(tmp_path / "full"), metrics={"lpips": "st-alex"})
    assert enhance_job.run(config).compared == 1
    summary = json.loads((tmp_path / "large/summary.json").read_text())
    assert list(summary["figures"]) == ["psnr"] and summary["figures"]["psnr"]["bicubic"]["gain"]["low"] is None
    assert [text.partition(":")[0] for text in summary["cautions"]] == ["LPIPS", "SSIM"]


def test_references_are_found_by_name_but_for_the_suffix(tmp_path: Path, ideal: IdealGaussian) -> None:
    folder_of(tmp_path / "small", {"a/x.png": plain(9), "a/y.png": plain(9), "a/y.jpg": plain(9), "z.png": plain(9)})
    full = {"a/x.webp": photo(1, 32, 32), "a/y.webp": photo(2, 32, 32), "b/z.png": photo(3, 32, 32)}
    full |= {"z.png": photo(4, 28, 32)}
    summary = enhance_job.run(configure(tmp_path, references=str(folder_of(tmp_path / "full", full))))
    found = {row["record_id"]: row["reference"] for row in rows(tmp_path / "large")}
    assert found == {"a/x.png": "used", "a/y.png": "missing", "a/y.jpg": "missing", "z.png": "wrong_size"}
    assert (summary.enhanced, summary.compared) == (4, 1)
    assert summary.unusable_references == {"missing": 2, "wrong_size": 1}


def test_references_may_be_another_column_of_the_same_rows(tmp_path: Path, ideal: IdealGaussian) -> None:
    files = {f"{kind}{i}.png": (photo(i) if kind == "full" else reduced(photo(i))) for kind in ("full", "small")
             for i in range(2)}  # fmt: skip
    folder_of(tmp_path / "in", files)
    place = listing(
        tmp_path / "in", [{"n": i, "lr": f"small{i}.png", "hr": f"full{i}.png", "who": i} for i in range(2)]
    )
    sides = [{"uri": str(place), "image": name, "id": "n"} for name in ("lr", "hr")]
    config = configure(tmp_path, source=sides[0], references=sides[1], output={"uri": str(tmp_path / "large")})
    assert enhance_job.run(config).compared == 2


def test_bad_records_and_bad_references_are_rows_and_stop_nothing(tmp_path: Path, ideal: IdealGaussian) -> None:
    small, full = pairs(tmp_path, 3)
    folder_of(small, {"c.png": GARBAGE, "d.png": b"", "e.png": plain(9), "long.png": photo(1, 4000, 1)})
    folder_of(full, {"e.png": GARBAGE})
    limits = {"max_pixels": 100_000}
    config = configure(tmp_path, references=str(full), source={"uri": str(small), "limits": limits})
    summary = enhance_job.run(config)
    assert (summary.read, summary.enhanced, summary.failed) == (7, 4, 3)
    assert summary.reasons == {"empty": 1, "not_an_image": 1, "too_many_pixels": 1}
    assert summary.unusable_references == {"not_an_image": 1}
    found = {row["record_id"]: row for row in rows(tmp_path / "large")}
    assert found["c.png"]["file"] is None and found["c.png"]["reason"] == "not_an_image"
    assert found["e.png"]["file"] is not None and found["e.png"]["psnr"] is None
    page = (tmp_path / "large/report.html").read_text()
    assert "3 of 7 records" in page and "too many pixels" in page


def test_pictures_of_several_shapes_keep_them(tmp_path: Path, ideal: IdealGaussian) -> None:
    shapes = {"a.png": (5, 4), "b.png": (5, 4), "c.png": (3, 9), "d.png": (1, 1), "e.png": (70, 8)}
    folder_of(tmp_path / "small", {name: photo(1, *shape) for name, shape in shapes.items()})
    enhance_job.run(configure(tmp_path, output={"uri": str(tmp_path / "large"), "image": "jpeg"}))
    for row in rows(tmp_path / "large"):
        width, height = shapes[row["record_id"]]
        with Image.open(tmp_path / "large" / row["file"]) as image:
            assert image.size == (row["width"], row["height"]) == (4 * width, 4 * height)
    assert "the middle of 280" in (tmp_path / "large/report.html").read_text()


def test_a_batch_is_of_one_shape_and_no_more_pixels_than_asked_for(tmp_path: Path, ideal: IdealGaussian) -> None:
    folder_of(tmp_path / "small", {f"{i}.png": photo(i, *(4, 4) if i < 5 else (8, 8)) for i in range(8)})
    config = configure(tmp_path, batch_size=4)
    job = enhance_job.Enhancement(config, enhance_job.EnhanceInputs(config), begun=0.0)
    sampler = BatchSampler(job, config.batch_size, Sequential(ideal.device), Stopwatch())
    batches = batch_items(map(job.decode, job.inputs.read()), sampler.batch_size_for)
    assert [len(batch) for batch in batches] == [4, 1, 1, 1, 1]


class Objects(IdealGaussian):
    """Its safety checker objects to what is light."""

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        return [bool(picture.mean() > 0.5) for picture in images]


def test_unsafe_and_non_finite_outputs_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Both(NotFinite, Objects):
        pass

    backbone = Both()
    backbone.mean = 0.8
    monkeypatch.setattr(enhance_job, "backbone_of", lambda config: backbone)
    folder_of(tmp_path / "small", {"black.png": plain(0), "light.png": plain(235), "white.png": plain(255)})
    config = configure(tmp_path, levels="0.01", model={"safety_checker": True})
    assert enhance_job.run(config).reasons == {"not_finite": 1, "unsafe": 1}
    assert [path.name for path in sorted((tmp_path / "large/images").iterdir())] == ["000000.png"]


class ClassPainter(IdealGaussian):
    """A model that gives back one grey for each class that it is given, whatever the input."""

    def __init__(self) -> None:
        super().__init__(size=8)
        self.condition_kind = "class"

    def condition(self, texts: Sequence[str]) -> torch.Tensor:
        if not {"dark", "light"}.issuperset(texts):
            raise RecordError(Reason.NO_CONDITION)
        return torch.tensor([0.5 if text == "light" else -0.5 for text in texts])

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        assert isinstance(condition, torch.Tensor)
        grey = condition[:, None, None, None].expand_as(zt)
        abar = float(self.alphas_cumprod[t - 1])
        return Denoised(grey, (zt - abar**0.5 * grey) / (1 - abar) ** 0.5)


def test_the_model_is_given_each_records_class_in_tiles_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = ClassPainter()
    monkeypatch.setattr(enhance_job, "backbone_of", lambda config: backbone)
    folder_of(
        tmp_path / "small", {name: photo(1, 3, 2) for name in ("dark/a.png", "light/b.png", "odd/c.png", "d.png")}
    )
    source = {"uri": str(tmp_path / "small"), "label": "folder"}
    summary = enhance_job.run(configure(tmp_path, source=source, model={"condition": "label"}, levels="1"))
    assert (summary.enhanced, summary.reasons) == (2, {"no_condition": 2})
    for row in rows(tmp_path / "large"):
        if row["file"] is not None:
            picture = image_codec.decode((tmp_path / "large" / row["file"]).read_bytes(), 1, "tiles").tensor
            grey = 0.5 if row["record_id"].startswith("light") else -0.5
            assert (picture - grey).abs().max() < 0.01


def test_the_same_seed_gives_the_same_pictures_whatever_the_batches(tmp_path: Path, ideal: IdealGaussian) -> None:
    pairs(tmp_path)

    def made(name: str, **more: Any) -> dict[str, bytes]:
        enhance_job.run(configure(tmp_path, output={"uri": str(tmp_path / name)}, **more))
        return tree(tmp_path / name / "images")

    first = made("one")
    assert made("two", batch_size=2) == first
    assert made("three", seed=1) != first


def test_names_do_not_become_markup(tmp_path: Path, ideal: IdealGaussian) -> None:
    _, full = pairs(tmp_path)
    enhance_job.run(configure(tmp_path, references=str(full), levels="0.05"))
    page = (tmp_path / "large/report.html").read_text()
    assert "<img src=x" not in page and "&lt;img src=x" in page
    assert "Do not hand it out" in page and "The detail is invented" in page
    assert "Caution." in page and "0.05 is outside of 0.2 to 0.6" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)


def test_the_page_shows_random_examples_and_the_worst_ones(tmp_path: Path, ideal: IdealGaussian) -> None:
    _, full = pairs(tmp_path, 16)
    enhance_job.run(configure(tmp_path, references=str(full)))
    page = (tmp_path / "large/report.html").read_text()
    assert "Before and after, drawn by chance" in page and "12 of 16 pictures." in page
    worst = sorted(rows(tmp_path / "large"), key=lambda row: row["psnr"])[:6]
    part = page.partition("Furthest from their references")[2].partition("</section>")[0]
    shown = re.findall(r'title="record"><bdi>(.*?)</bdi>', part)
    assert [name.replace("&lt;", "<").replace("&gt;", ">") for name in shown] == [row["record_id"] for row in worst]


def refused(config: EnhanceConfig, error: type[AnonymizerError], message: str) -> None:
    for step in (enhance_job.check, enhance_job.run):
        with pytest.raises(error, match=message):
            step(config)


def test_the_output_lies_in_no_source_and_no_release(tmp_path: Path, ideal: IdealGaussian) -> None:
    small, full = pairs(tmp_path)
    folder_of(tmp_path / "release", {"restricted/plan.json": b"{}", "public/a": b""})
    before = tree(tmp_path)

    def to(uri: Path) -> EnhanceConfig:
        return configure(tmp_path, output={"uri": str(uri)}, references=str(full))

    refused(to(small / "large"), OutputError, "inside the source")
    refused(to(full / "large"), OutputError, "inside the source")
    refused(to(tmp_path / "release/public/large"), OutputError, "inside a release")
    assert tree(tmp_path) == before


def test_an_existing_output_is_not_overwritten(tmp_path: Path, ideal: IdealGaussian, store: Any) -> None:
    pairs(tmp_path)
    enhance_job.run(configure(tmp_path))
    refused(configure(tmp_path), OutputError, "is there already")
    far = configure(tmp_path, output={"uri": "memory://bucket/large"})
    assert enhance_job.run(far).enhanced == 5
    assert store.exists("/bucket/large/images/000000.png") and store.exists("/bucket/large/summary.json")
    refused(far, OutputError, "is there already")


def test_references_of_which_none_fits_are_one_line(tmp_path: Path, ideal: IdealGaussian) -> None:
    small, _ = pairs(tmp_path)
    folder_of(tmp_path / "others", {"who.png": photo(1)})
    config = configure(tmp_path, references=str(tmp_path / "others"))
    with pytest.raises(SourceError, match=r"references\.uri .* none of its pictures is named as one of the source"):
        enhance_job.check(config)
    with pytest.raises(SourceError, match=r"references\.uri .*no such file"):
        enhance_job.check(configure(tmp_path, references=str(tmp_path / "nowhere")))
    with pytest.raises(SourceError, match=r"source\.uri .*no such file"):
        enhance_job.check(configure(tmp_path, source={"uri": str(tmp_path / "nowhere")}))
    assert not (tmp_path / "large").exists() and small.exists()


def test_a_failure_reveals_nothing_to_a_scheduler_and_can_be_repeated(
    tmp_path: Path, ideal: IdealGaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(tmp_path)

    def broken(*_: Any) -> EnhanceSummary:
        raise RuntimeError("Wanda")

    with monkeypatch.context() as patch, pytest.raises(StepError) as caught:
        patch.setattr(enhance_job, "EnhanceInputs", broken)
        run_redacted(configure(tmp_path))
    assert "Wanda" not in str(caught.value) and "errors/enhance.txt" in str(caught.value)
    assert "Wanda" in (tmp_path / "large/errors/enhance.txt").read_text()
    assert enhance_job.run(configure(tmp_path)).enhanced == 5


# -- the command ------------------------------------------------------------------------------------------------------

Cli = Callable[..., Any]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *words: CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "source: missing"),
        (["--source", "small"], "output: missing"),
        (["none.yaml"], "config: no file 'none.yaml'"),
        (["--source", "none", "--output", "out"], "source.uri 'none': no such file"),
        (["--source", "small", "--output", "out", "--factor", "1"], "factor: "),
        (["--source", "small", "--output", "out", "--levels", "much"], "levels must be numbers"),
        (["--source", "small", "--output", "out", "--upsampling", "nearest"], "upsampling: "),
        (["--source", "small", "--output", "out", "--set", "factr=2"], "did you mean 'factor'?"),
        (["--source", "small", "--output", "small/out"], "lies inside the source"),
        (["--source", "small", "--output", "out", "--references", "none"], "references.uri 'none': no such file"),
        (["--source", "small", "--output", "out", "--model", "bundled:cats"], "unknown bundled model"),
        (
            ["--source", "small", "--output", "out", "--references", "full", "--set", "metrics.lpips=alex:none.pth"],
            "metrics.lpips: no file",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_trace(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    pairs(tmp_path, 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")  # nothing must get as far as needing a server
    before = tree(tmp_path)
    done = cli("enhance", *words, "--set", "model.device=cpu")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr
    assert tree(tmp_path) == before and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_enlarges_through_prefect_which_sees_only_counts(
    tmp_path: Path, tiny_model: Path, prefect_home: Path, cli: Cli
) -> None:
    small, full = pairs(tmp_path)
    asking = ["enhance", "--source", small, "--references", full, "--model", tiny_model, "--levels", ".5,.3",
              "--set", "steps=2", "--set", "metrics.lpips=none"]  # fmt: skip
    done = cli(*asking, "--output", tmp_path / "large", "--json")
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["enhanced"], summary["compared"], summary["purpose"]) == (5, 5, "enhancement, not anonymised")
    assert summary["figures"]["psnr"]["n"] == 5
    for table, column, value in cells(prefect_home):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        assert "Wanda" not in text, f"{table}.{column}"
    again = cli(*asking, "--output", tmp_path / "large")
    assert again.exit_code == 2 and "is there already" in again.stderr

    (tmp_path / "c.yaml").write_text(
        f"source: {{uri: '{small}'}}\noutput: {{uri: '{tmp_path / 'other'}'}}\nreferences: '{full}'\n"
        f"model: {{id: '{tiny_model}'}}\nsteps: 2\nlevels: 0.9\nmetrics: {{lpips: none}}\n"
    )
    shown = cli("enhance", tmp_path / "c.yaml")
    assert shown.exit_code == 0, shown.output
    assert "Enlarged 5 of 5 pictures 4 times" in shown.stdout and "Against 5 references" in shown.stdout
    assert "Caution: levels: 0.9" in shown.stdout and "nobody is anonymised" in shown.stdout

    bad = folder_of(tmp_path / "bad", {"a.png": GARBAGE})
    none = cli("enhance", "--source", bad, "--output", tmp_path / "none", "--model", tiny_model)
    assert none.exit_code == 1 and "no picture could be enlarged" in none.stderr
