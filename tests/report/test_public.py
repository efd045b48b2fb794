"""The public report and the dataset card: no private fact, every column documented, code that runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from anonymizer import config
from anonymizer.release.ledger import Ledger
from anonymizer.schema import MANIFEST_MEANINGS
from anonymizer.storage.layout import Release
from tests.support.releases import release_without_images
from tests.support.reports import (
    SECRET_FOLDER,
    Page,
    manifest,
    release_of,
    text,
)


def test_the_public_half_holds_no_source_record_or_path(made: tuple[Release, config.RunConfig], tmp_path: Path) -> None:
    release, run = made
    rows = pa.concat_tables([t for _, t in Ledger.open(release).scan()])
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


def test_neither_half_overstates_the_protection(made: tuple[Release, config.RunConfig]) -> None:
    for name in ("public/report.html", "public/README.md", "public/croissant.json", "restricted/report.html"):
        page = text(made[0], name)
        assert "A level is a setting, not a guarantee" in page
        assert "audit" in page
        assert re.search(r"\banonymous\b|\bepsilon\b|ε", page, re.IGNORECASE) is None


def test_a_release_that_everybody_was_erased_from_has_all_three_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = release_without_images(tmp_path, monkeypatch)
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
    everything = {n for n in MANIFEST_MEANINGS if not n.startswith(("clip", "lpips"))} - {"k"}  # which is of groups
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
