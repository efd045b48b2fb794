"""Pages and card of a release of groups: a picture once, with all that it was drawn from, and what that promises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.groups import group_settings, photos, run_grouped
from tests.support.releases import rows, write_restricted_report
from tests.support.reports import Page, text


@pytest.mark.parametrize("outputs", ["one", "each"])
def test_the_custodians_page_shows_each_picture_with_all_members_of_its_group(tmp_path: Path, outputs: str) -> None:
    config = group_settings(photos(tmp_path / "in", 8), tmp_path / "out", groups={"outputs": outputs})
    release = run_grouped(config)
    write_restricted_report(release, config)
    html = text(release, "restricted/report.html")
    images = 2 if outputs == "one" else 6
    assert Page(html).pictures == 2 * images * (3 + 1)  # by both scores
    assert f"In {images} pictures, each of a group of 3 or more" in html
    assert "2 waiting" in html and "Waiting: too few alike" in html
    for row in rows(release):
        assert html.count(row["output_id"] or row["record_id"]) >= 1


@pytest.mark.parametrize("outputs", ["one", "each"])
def test_what_is_handed_out_says_what_pictures_are_drawn_from_and_what_that_promises(
    tmp_path: Path, outputs: str
) -> None:
    config = group_settings(photos(tmp_path / "in", 8), tmp_path / "out", groups={"outputs": outputs})
    release = run_grouped(config)
    html, card = text(release, "public/report.html"), text(release, "public/README.md")
    croissant = json.loads(text(release, "public/croissant.json"))
    for page in (html, card, croissant["description"]):
        assert "each redrawn from the mean of 3 or more originals" in page
        assert "one original" not in page
    for page in (html, card):
        assert "better than by guessing, 1 in 3; that hides neither that somebody is in the release" in page
        assert ("can be told to belong together" in page) == (outputs == "each")
    assert "| originals in them | 6 |" in card and "| read, not released | 2 |" in card
