"""The reports and the card of small releases made by the real code, with a model in closed form and a toy scorer."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from anonymizer import config, report
from anonymizer.crypto import custodian_key
from anonymizer.pipeline.shard import anonymize_shard
from anonymizer.policy import public_scores
from anonymizer.records import Reason, Scores
from anonymizer.release import assemble, ledger, plan, publish
from anonymizer.report import glossary, histograms, rendering
from anonymizer.schema import MANIFEST_MEANINGS
from anonymizer.storage.layout import Release

HOSTILE = '<img src=x onerror=alert(1)> & "quoted" \' -->'
SECRET_FOLDER = "people-of-lisbon"
LOADS = ("src", "href", "srcset", "data", "poster", "action", "background", "xlink:href")


class ToyScorer:
    """Mean differences, so that each pair has scores of its own."""

    names: Mapping[str, str] = {"clip_similarity": "toy-clip sha256:00", "lpips": "toy-lpips sha256:11"}

    def embed(self, originals: torch.Tensor) -> torch.Tensor:
        return originals

    def score(self, reference: torch.Tensor, outputs: torch.Tensor) -> list[Scores]:
        far = (reference - outputs).abs().mean((1, 2, 3)).tolist()
        return [Scores(clip_similarity=1 - d, lpips=d) for d in far]


def release_of(tmp_path: Path, ideal: Any, good: int = 6, **settings: Any) -> tuple[Release, config.RunConfig]:
    """A release of ``good`` pictures, one of them with a hostile name, and two files that are none."""
    source = tmp_path / SECRET_FOLDER
    (source / "site").mkdir(parents=True)
    draw = np.random.default_rng(3)
    for i in range(good):
        pixels = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        name = "jane_doe" if i else HOSTILE.replace("/", "")
        Image.fromarray(pixels).save(source / "site" / f"{name}_{i}.png")
    (source / "empty_scan.jpg").write_bytes(b"")
    (source / f"broken {HOSTILE.replace('/', '')}\n.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    tree: dict[str, Any] = {
        "source": {"uri": str(source)},
        "output": {"uri": str(tmp_path / "release")},
        "boomerang": {"level": 0.5, "steps": 2},
        "run": {"shard_size": 4},
    }
    for section, values in settings.items():
        tree.setdefault(section, {}).update(values)
    run = config.build(tree)
    release, key = Release.at(run.output.uri), custodian_key.load_key("NO_SUCH_VARIABLE")
    the_plan = plan.write_or_resume(run, ideal, key, release)
    for shard in range(the_plan.shards):
        writer = ledger.ShardWriter(release, shard, ToyScorer.names)
        anonymize_shard(shard, plan.read_entries(release, shard), run, ideal, ToyScorer(), key, writer)
    assemble.assemble(release, run)
    write_restricted(release, run)
    publish.decide_and_publish(release, run, key, report.write_public)
    return release, run


def write_restricted(release: Release, run: config.RunConfig) -> None:
    the_plan = plan.read(release)
    report.write_restricted(release, the_plan, run, assemble.summarize_release(release, the_plan))


def text(release: Release, name: str) -> str:
    return Path(release.root.path, name).read_text(encoding="utf-8")


def manifest(release: Release) -> pa.Table:
    return pq.read_table(Path(release.manifest.path))


class Page(HTMLParser):
    """Tags, ids and whatever a browser would load."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.pictures = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.pictures += tag == "img"
        for name, value in attrs:
            if name in LOADS:
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


@pytest.fixture
def made(tmp_path: Path, ideal: Any) -> tuple[Release, config.RunConfig]:
    return release_of(tmp_path, ideal)


def test_public_half_says_nothing_of_source_records_or_places(
    made: tuple[Release, config.RunConfig], tmp_path: Path
) -> None:
    release, run = made
    rows = pa.concat_tables([t for _, t in ledger.scan_shards(release, plan.read(release))])
    secrets = {str(tmp_path), SECRET_FOLDER, run.source.uri, run.output.uri, "jane_doe", "onerror", "empty_scan"}
    secrets |= set(rows["record_id"].to_pylist()) | set(rows["source_hmac"].drop_null().to_pylist())
    secrets |= {f"{when:%H:%M:%S}" for when in rows["started"].to_pylist()}
    for name in ("public/report.html", "public/README.md", "public/croissant.json"):
        page = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text(release, name))
        assert [s for s in secrets if s in page] == [], name


def test_a_model_in_a_local_folder_is_not_named_in_public(tmp_path: Path, ideal: Any) -> None:
    release, run = release_of(tmp_path, ideal, model={"id": "/srv/jane/models/faces"})
    assert run.model.public_name == "a local model"
    assert config.ModelConfig(id="owner/name", revision="abc").public_name == "owner/name"
    assert config.ModelConfig(id="owner/name").public_name == "a local model"  # a folder: hub ids are pinned
    for path in Path(release.public.path).rglob("*"):
        assert path.is_dir() or b"/srv/jane" not in path.read_bytes(), path.name
    assert "/srv/jane" not in str(manifest(release).to_pylist())
    assert "/srv/jane/models/faces" in text(release, "restricted/report.html")


@pytest.mark.parametrize("name", ["public/report.html", "restricted/report.html"])
def test_pages_load_nothing_and_run_nothing(made: tuple[Release, config.RunConfig], name: str) -> None:
    html = text(made[0], name)
    page = Page(html)
    assert page.loads
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    assert page.handlers == []
    assert "@import" not in html and "url(" not in html and "://" not in html
    assert len(page.ids) == len(set(page.ids))
    assert all(load[1:] in page.ids for load in page.loads if load.startswith("#"))


def test_hostile_names_are_text(made: tuple[Release, config.RunConfig]) -> None:
    html = text(made[0], "restricted/report.html")
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") >= 2  # a released record and a failed one
    assert "&amp; &#34;quoted&#34; &#39;" in html


def test_no_half_promises_more_than_is_known(made: tuple[Release, config.RunConfig]) -> None:
    for name in ("public/report.html", "public/README.md", "public/croissant.json", "restricted/report.html"):
        page = text(made[0], name)
        assert "A level is a setting, not a guarantee" in page
        assert "audit" in page
        assert re.search(r"\banonymous\b|\bepsilon\b|ε", page, re.IGNORECASE) is None


def test_restricted_report_counts_and_shows_closest_pairs_first(made: tuple[Release, config.RunConfig]) -> None:
    release, _ = made
    html = text(release, "restricted/report.html")
    assert "6 of 8 records released" in html
    assert "2 failed" in html and "toy-clip sha256:00" in html and "No audit is part of this page" in html
    assert Page(html).pictures == 2 * (6 + 6)  # both rankings, which show all pairs, each with original and output
    assert "All pairs" not in html and "random sample" not in html
    for title, better in (("CLIP", max), ("LPIPS", min)):
        part = html.split(f"By {glossary.SCORES['clip_similarity' if title == 'CLIP' else 'lpips'].title}")[1]
        values = [float(v) for v in re.findall(rf"{title} <b>([0-9.-]+)</b>", part)[:6]]
        assert values == sorted(values, reverse=better is max)
        assert values[0] == better(values)


def test_restricted_report_names_what_failed_and_bounds_the_list(
    made: tuple[Release, config.RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    release, run = made
    assert "Failed: empty" in text(release, "restricted/report.html")
    monkeypatch.setattr("anonymizer.report.ledger_summary.MAX_NAMED", 0)
    write_restricted(release, run)
    assert "and 1 more" in text(release, "restricted/report.html")
    assert "empty_scan" not in text(release, "restricted/report.html")


def test_restricted_report_is_bounded_by_its_samples(
    tmp_path: Path, ideal: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anonymizer.report.ledger_summary.N_CLOSEST", 2)
    monkeypatch.setattr("anonymizer.report.ledger_summary.SAMPLE_SIZE", 3)
    monkeypatch.setattr("anonymizer.report.public.SHEET_SIZE", 4)
    release, _ = release_of(tmp_path, ideal, good=11)
    assert Page(text(release, "restricted/report.html")).pictures == 2 * (2 + 2 + 3)
    assert Page(text(release, "public/report.html")).pictures == 4


def test_restricted_report_is_the_same_when_written_again(made: tuple[Release, config.RunConfig]) -> None:
    release, run = made
    before = text(release, "restricted/report.html")
    write_restricted(release, run)
    assert text(release, "restricted/report.html") == before


def test_restricted_report_survives_a_missing_source(made: tuple[Release, config.RunConfig]) -> None:
    release, run = made
    shutil.rmtree(run.source.uri)
    write_restricted(release, run)
    html = text(release, "restricted/report.html")
    assert "The originals could not be read again" in html
    assert "original: gone" in html
    assert Page(html).pictures == 12  # the outputs are still there


def test_restricted_report_survives_a_missing_original_and_a_missing_output(
    made: tuple[Release, config.RunConfig],
) -> None:
    release, run = made
    next(Path(run.source.uri).rglob("jane_doe*")).unlink()
    next(Path(release.public.path, "images").rglob("*.png")).unlink()
    write_restricted(release, run)
    html = text(release, "restricted/report.html")
    assert "original: unreadable" in html and "output: not found" in html
    assert "The originals could not be read again" not in html


def test_restricted_report_survives_a_public_half_that_was_moved_away(made: tuple[Release, config.RunConfig]) -> None:
    release, run = made
    shutil.rmtree(release.public.path)
    write_restricted(release, run)
    assert "output: not found" in text(release, "restricted/report.html")


def test_a_release_without_a_picture_has_all_three_papers(tmp_path: Path, ideal: Any) -> None:
    release, _ = release_of(tmp_path, ideal, good=0)
    assert "0 of 2 records released" in text(release, "restricted/report.html")
    assert "No picture was released" in text(release, "public/report.html")
    card = text(release, "public/README.md")
    assert "configs" not in yaml.safe_load(card.split("---\n")[1])
    assert Page(text(release, "public/report.html")).pictures == 0


@pytest.mark.parametrize("layout", ["folder", "webdataset", "parquet"])
def test_every_layout_shows_its_pictures_and_says_how_to_load_them(tmp_path: Path, ideal: Any, layout: str) -> None:
    release, _ = release_of(tmp_path, ideal, output={"format": layout})
    assert Page(text(release, "public/report.html")).pictures == 6
    assert Page(text(release, "restricted/report.html")).pictures == 24
    front = yaml.safe_load(text(release, "public/README.md").split("---\n")[1])
    pattern = front["configs"][0]["data_files"][0]["path"]
    public = Path(release.public.path)
    listed = {p.relative_to(public).as_posix() for p in public.glob(pattern.replace("**", "**/*.*"))}
    assert listed == set(manifest(release)["file"].to_pylist())
    assert "license" not in front and front["size_categories"] == ["n<1K"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its tars open
@pytest.mark.parametrize("layout", ["folder", "webdataset", "parquet"])
def test_the_code_on_the_card_runs(tmp_path: Path, ideal: Any, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    release, _ = release_of(tmp_path, ideal, output={"format": layout})
    monkeypatch.chdir(release.public.path)
    blocks = re.findall(r"```python\n(.*?)```", text(release, "public/README.md"), re.DOTALL)
    assert len(blocks) == 4
    found: dict[str, Any] = {}
    for block in blocks:
        if "load_dataset" not in block and "mlcroissant" not in block:  # those are run in test_ecosystem
            exec(block, found)
    assert len(found["manifest"]) == 6
    if layout == "folder":
        assert found["picture"].size == (8, 8)
        found["picture"].close()
    elif layout == "webdataset":
        assert len(list(found["pictures"])) == 6
    else:
        assert found["part"].num_rows == 6


@pytest.mark.parametrize("how", ["none", "binned", "exact"])
def test_columns_are_documented_once_and_completely(tmp_path: Path, ideal: Any, how: str) -> None:
    release, _ = release_of(tmp_path, ideal, output={"public_scores": how})
    names = manifest(release).column_names
    assert [name for name in names if name not in MANIFEST_MEANINGS] == []
    html, card = text(release, "public/report.html"), text(release, "public/README.md")
    for name in names:
        assert f"<code><bdi>{name}</bdi></code>" in html
        assert f"| `{name}` |" in card
        assert MANIFEST_MEANINGS[name] in card
    everything = {n for n in MANIFEST_MEANINGS if not n.startswith(("clip", "lpips"))}
    assert everything <= set(names)


def test_scores_are_as_public_as_the_configuration_says(tmp_path: Path, ideal: Any) -> None:
    for how in ("none", "binned", "exact"):
        (tmp_path / how).mkdir()
        release, _ = release_of(tmp_path / how, ideal, output={"public_scores": how})
        html, card = text(release, "public/report.html"), text(release, "public/README.md")
        assert ("<svg" in html) == (how != "none")
        assert ("toy-clip" in html) == ("toy-clip" in card) == (how != "none")
        assert ("middle half between" in html) == (how == "binned")
        assert ("whoever holds a candidate can compare" in html) == (how == "exact")


def test_labels_that_may_name_somebody_are_pointed_out(tmp_path: Path, ideal: Any) -> None:
    release, _ = release_of(tmp_path, ideal, source={"label": "folder"})
    html = text(release, "restricted/report.html")
    carried = html.split('id="carried"')[1]
    assert "<bdi>label</bdi>" in carried and "check that it names nobody" not in carried  # one folder, one label
    assert "Copied from the source as they were" in text(release, "public/report.html")


def test_a_column_with_a_value_for_each_picture_is_pointed_out(tmp_path: Path, ideal: Any) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    lines = []
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(pictures / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "name|`<b>": f"person {i}"}))
    (pictures / "list.jsonl").write_text("\n".join(lines))
    source = {"uri": str(pictures / "list.jsonl"), "carry": ["name|`<b>"]}
    release, _ = release_of(tmp_path, ideal, good=0, source=source)
    html, card = text(release, "restricted/report.html"), text(release, "public/README.md")
    assert "check that it names nobody" in html
    assert "<b>" not in re.sub(r"(CLIP|LPIPS) <b>", "", html)
    assert "| name&#124;&#96;&lt;b&gt; | text |" in card
    assert glossary.PASSTHROUGH_COLUMN in card
    assert "person 1" not in text(release, "public/report.html") + card


def test_every_reason_is_explained() -> None:
    assert set(glossary.REASONS) == set(Reason)


def test_histogram_counts_every_value_once() -> None:
    draw = np.random.default_rng(0)
    for values in (draw.normal(0.8, 0.1, 1000), np.full(5, 0.3), np.array([-1.0, 1.0]), np.array([0.1, 250.0])):
        shape = histograms.from_values(values)
        assert shape is not None
        assert sum(bar.count for bar in shape.bars) == shape.total == len(values)
        assert len(shape.bars) <= histograms.MAX_BARS
        for bar in shape.bars:
            assert 0 <= bar.x <= bar.x + bar.width <= shape.width
            assert shape.top - 1.5 <= bar.y <= shape.base


def test_histogram_says_median_and_quartiles() -> None:
    shape = histograms.from_values(np.linspace(0, 1, 101))
    assert shape is not None
    assert shape.summary == "Median 0.500, middle half 0.250 to 0.750, all 0.000 to 1.000."


def test_histogram_of_bins_keeps_gaps_and_signs() -> None:
    assert (
        public_scores.bin_label(1.0) == public_scores.bin_label(1 + 1e-7) == "0.9 to 1.0"
    )  # else the bin would tell exact copies
    shape = histograms.from_bins([(public_scores.bin_label(-0.05), 2), (public_scores.bin_label(0.2), 5), (None, 1)])
    assert shape is not None
    assert [bar.count for bar in shape.bars] == [2, 0, 0, 5]
    assert shape.summary == "Median between 0.2 and 0.3, middle half between -0.1 and 0.3."


def test_histogram_of_nothing_is_nothing() -> None:
    assert histograms.from_values(np.array([float("nan")])) is None
    assert histograms.from_bins([(None, 3)]) is None


def test_counts_are_short() -> None:
    counts = {999: "999", 1000: "1.0k", 9_949: "9.9k", 9_999: "10k", 999_999: "1.0M", 1_200_000: "1.2M"}
    assert {n: histograms.format_count(n) for n in counts} == counts


def test_a_cell_of_a_table_has_no_markup() -> None:
    assert rendering.markdown_cell("a|b\n# c <i> `x` [y](z) *e* _f_ t_boom") == (
        "a&#124;b # c &lt;i&gt; &#96;x&#96; &#91;y](z) &#42;e&#42; &#95;f&#95; t_boom"
    )
