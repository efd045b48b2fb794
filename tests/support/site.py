"""Pages of the documentation as the site shows them, with what is generated in its place."""

from __future__ import annotations

import importlib.util

from tests.support import ROOT


def page_text(name: str) -> str:
    """The Markdown of a page in ``docs/`` after the hooks of the site."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs/hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text: str = hooks.on_page_markdown((ROOT / "docs" / name).read_text(encoding="utf-8"))
    return text
