"""Rendered pages load nothing and run nothing; Markdown cells hold no markup."""

from __future__ import annotations

import pytest

from anonymizer import config
from anonymizer.report import rendering
from anonymizer.storage.layout import Release
from tests.support.reports import (
    Page,
    text,
)


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


def test_a_table_cell_has_no_markup() -> None:
    assert rendering.markdown_cell("a|b\n# c <i> `x` [y](z) *e* _f_ t_boom") == (
        "a&#124;b # c &lt;i&gt; &#96;x&#96; &#91;y](z) &#42;e&#42; &#95;f&#95; t_boom"
    )
