"""Hooks of mkdocs: tables of settings and columns, generated from the configuration's models and the schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from anonymizer import config, schema

MARK = re.compile(r"^<!-- (configuration|columns): (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables in place of ``<!-- configuration: MODEL -->`` and ``<!-- columns: TABLE -->``."""
    return MARK.sub(lambda match: table(*match.groups()), markdown)


def table(kind: str, name: str) -> str:
    """Return a generated table."""
    return settings_table(getattr(config, name)) if kind == "configuration" else columns_table(schema.Table[name])


def columns_table(of: schema.Table) -> str:
    """Return the columns of the ledger or the manifest as a Markdown table: column, type, meaning."""
    rows = [f"| `{c.name}` | {c.type} | {c.meaning} |" for c in schema.COLUMNS if of in c.tables]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])


def settings_table(model: type[BaseModel]) -> str:
    """Return the settings of a configuration as a Markdown table: key, default, meaning."""
    rows = [f"| `{key}` | {format_default(field)} | {field.description} |" for key, field in iter_settings(model)]
    return "\n".join(["| key | default | meaning |", "|---|---|---|", *rows])


def iter_settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted key and the field of each setting; a section's own settings stand in its place."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from iter_settings(field.annotation, f"{prefix}{name}.")
        elif field.description:
            yield prefix + name, field


def format_default(field: FieldInfo) -> str:
    """Return a default as YAML would write it, or ``required``."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, str | Enum):
        return f"`{value}`" if str(value) else '`""`'
    return f"`{json.dumps(value)}`"
