"""The custodian's report: closest pairs first, every record that was not released, and no trust in names."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anonymizer import config
from anonymizer.records import Reason
from anonymizer.report import glossary
from anonymizer.storage.layout import Release
from tests.support.releases import write_restricted_report
from tests.support.reports import (
    Page,
    release_of,
    text,
)


def test_hostile_names_are_text(made: tuple[Release, config.RunConfig]) -> None:
    html = text(made[0], "restricted/report.html")
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") >= 2  # a released record and a failed one
    assert "&amp; &#34;quoted&#34; &#39;" in html


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
    write_restricted_report(release, run)
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
    write_restricted_report(release, run)
    assert text(release, "restricted/report.html") == before


def test_restricted_report_survives_a_missing_source(made: tuple[Release, config.RunConfig]) -> None:
    release, run = made
    shutil.rmtree(run.source.uri)
    write_restricted_report(release, run)
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
    write_restricted_report(release, run)
    html = text(release, "restricted/report.html")
    assert "original: unreadable" in html and "output: not found" in html
    assert "The originals could not be read again" not in html


def test_restricted_report_survives_a_public_half_that_was_moved_away(made: tuple[Release, config.RunConfig]) -> None:
    release, run = made
    shutil.rmtree(release.public.path)
    write_restricted_report(release, run)
    assert "output: not found" in text(release, "restricted/report.html")


def test_copied_labels_are_listed(tmp_path: Path, ideal: Any) -> None:
    release, _ = release_of(tmp_path, ideal, source={"label": "folder"})
    html = text(release, "restricted/report.html")
    carried = html.split('id="carried"')[1]
    assert "<bdi>label</bdi>" in carried and "check that it names nobody" not in carried  # one folder, one label
    assert "Copied from the source as they were" in text(release, "public/report.html")


def test_a_column_with_a_value_for_each_image_is_flagged(tmp_path: Path, ideal: Any) -> None:
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
