"""What is wrong with a configuration, in one line: field, value, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from anonymizer.config.base import KEY_ENV_MESSAGE, safe_repr
from anonymizer.config.calibration_scope import ChosenLevel
from anonymizer.config.run import RunConfig


def format_error(item: Any, kind: type[BaseModel]) -> str:
    """One pydantic error as 'field: what, value: next step'."""
    where = [str(part) for part in item["loc"] if part != "[key]"]
    name = ".".join(where)
    if item["type"] == "extra_forbidden":
        return f"{name}: unknown key: {_nearest(where, kind)}"
    if item["type"] == "missing":
        return f"{name}: missing: give it in the config or as --set {name}=..."
    if name in ("key_env", "signing_key_env"):  # whatever stands there may be the key itself
        return f"{name} {KEY_ENV_MESSAGE}"
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        of_section = name and text.partition(":")[0] in _section(where, kind).model_fields
        return f"{name}.{text}" if of_section else f"{name} {text}".lstrip()
    got = safe_repr(item["input"])
    if item["type"] == "model_type":
        return f"{name}: is a section, got {got}: {_inside(where, item['input'], kind)}"
    if item["type"] == "dict_type":
        return f"{name}: is a mapping, got {got}: write {name}.COLUMN: VALUE"
    if item["type"] == "tuple_type":
        return f"{name}: is a list, got {got}: put it in square brackets"
    hint = ": put it in quotes" if item["type"] == "string_type" else ""
    return f"{name}: {text}, got {got}{hint}"


def _inside(where: Sequence[str], value: Any, kind: type[BaseModel]) -> str:
    """What to write instead of a value that stands where a section belongs."""
    fields, name = _settings(_section(where, kind)), ".".join(where)
    key = fields[0]
    if isinstance(value, str) and key in ("uri", "id"):
        return f"write {name}.{key}: {value if safe_repr(value) == repr(value) else '...'}"
    return f"its keys are {', '.join(fields)}"


# What is looked for under another name than ours, and what it is called here.
SYNONYMS = {
    "columns": "source.carry",
    "source.columns": "source.carry",
    "source.path": "source.uri",
    "output.path": "output.uri",
    "model.name": "model.id",
}


def _nearest(where: Sequence[str], kind: type[BaseModel]) -> str:
    """What an unknown key was probably meant to be: the same key elsewhere, or the most similar one beside it.

    At the top, where a section may have been forgotten, all keys are compared.
    """
    *sections, key = where
    beside = sorted(_settings(_section(sections, kind)))
    leaves: dict[str, list[str]] = {}
    for known in known_keys(kind):
        leaves.setdefault(known.split(".")[-1], []).append(known)
    if meant := leaves.get(key) or [*filter(None, [SYNONYMS.get(".".join(where))])]:
        return f"did you mean {_either(meant)}?"
    close = difflib.get_close_matches(key, [*beside, *(() if sections else leaves)], n=1, cutoff=0.5)
    if not close:
        return f"known keys: {', '.join(beside)}"
    return f"did you mean {_either(close if close[0] in beside else leaves[close[0]])}?"


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _section(where: Sequence[str], kind: type[BaseModel]) -> type[BaseModel]:
    at: Any = kind
    for part in where:  # of a section a field, of a mapping or a list one of its values
        at = kind.model_fields[part].annotation if at is kind else next(filter(_is_section, get_args(at)), None)
        kind = next(filter(_is_section, [at, *_alternatives(at)]), kind)
        at = kind if _is_section(at) or _alternatives(at) else at
    return kind


def _sections(kind: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Name -> section, of those fields that are one (or may be left out)."""
    of = {name: [field.annotation, *_alternatives(field.annotation)] for name, field in kind.model_fields.items()}
    return {name: a for name, some in of.items() for a in some if _is_section(a)}


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _settings(kind: type[BaseModel]) -> list[str]:
    """The names in a section, without the record of a choice, which nobody sets."""
    return [name for name in kind.model_fields if _sections(kind).get(name) is not ChosenLevel]


def known_keys(kind: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    sections = _sections(kind)
    for name in _settings(kind):
        if name in sections:
            yield from known_keys(sections[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
