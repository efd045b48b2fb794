"""Rendering of Jinja templates: HTML values are escaped, and a missing value is an error."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import jinja2

from anonymizer.report.glossary import format_date, format_number

MARKDOWN_ESCAPES = str.maketrans({c: f"&#{ord(c)};" for c in "|`[\\*"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def render(name: str, **context: Any) -> bytes:
    """Return a rendered template as UTF-8; lone surrogates are written as backslash escapes."""
    return _environment().get_template(name).render(context).encode("utf-8", "backslashreplace")


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anonymizer.report"),
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters = {"number": format_number, "date": format_date, "cell": markdown_cell, "code": markdown_code}
    environment.filters.update(filters)
    return environment


def markdown_cell(text: object) -> str:
    """Return text for one cell of a Markdown table, without markup of its own."""
    line = " ".join(str(text).split()).translate(MARKDOWN_ESCAPES)
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", "&#95;", line)  # inside a word it is no markup


def markdown_code(name: str) -> str:
    """Return a name as code for a Markdown table, or as text if it holds marks that could end the code."""
    is_plain = re.fullmatch(r"[\w .,:/-]*\w[\w .,:/-]*", name) and name.isprintable()
    return f"`{name}`" if is_plain else markdown_cell(name)
