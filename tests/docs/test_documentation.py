"""What the documentation points to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anonymizer.backbones.load import FAMILIES, bundled_models
from tests.support import ROOT

BESIDE = ("README.md", "CHANGELOG.md", "deployments/README.md")
PAGES = sorted([*(ROOT / name for name in BESIDE), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    gone = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert gone == []


def test_every_family_and_every_bundled_model_is_documented() -> None:
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"`{name}`" not in text] == []
    assert [name for name in bundled_models() if f"`bundled:{name}`" not in text] == []


def test_every_bundled_model_that_is_named_is_there() -> None:
    named = {name for page in PAGES for name in re.findall(r"bundled:([\w-]+)", page.read_text(encoding="utf-8"))}
    known = {path.name for path in (ROOT / "anonymizer/bundled").iterdir()}
    assert named - {"NAME"} <= known
