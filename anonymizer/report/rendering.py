"""Templates to bytes: pages escape every value, and a value that is missing is an error."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import jinja2

from anonymizer.report.glossary import format_date, format_number


def render(name: str, **context: Any) -> bytes:
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
    environment.filters["number"] = format_number
    environment.filters["date"] = format_date
    environment.filters["cell"] = markdown_cell
    environment.filters["code"] = markdown_code
    return environment


def markdown_cell(text: object) -> str:
    """Text as one cell of a Markdown table, without markup of its own."""
    line = " ".join(str(text).split())
    for mark, plain in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;"), ("[", "&#91;")):
        line = line.replace(mark, plain)
    line = line.replace("\\", "&#92;").replace("*", "&#42;")
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", "&#95;", line)  # inside a word it is no markup


def markdown_code(name: str) -> str:
    """A name as code in a Markdown table, or as text where it has marks that end code."""
    return (
        f"`{name}`" if re.fullmatch(r"[\w .,:/-]*\w[\w .,:/-]*", name) and name.isprintable() else markdown_cell(name)
    )
