"""Turn pydantic's validation errors into one line each: field, value, and the key that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from anonymizer.config.base import KEY_ENV_MESSAGE, safe_repr
from anonymizer.config.calibration_scope import ChosenLevel
from anonymizer.config.run import RunConfig

# Keys that users of other programs may expect, and the ones here.
SYNONYMS = {
    "columns": "source.carry",
    "source.columns": "source.carry",
    "source.path": "source.uri",
    "output.path": "output.uri",
    "model.name": "model.id",
}


def format_error(error: Any, kind: type[BaseModel]) -> str:
    """Return one of pydantic's error details as 'field: problem, value: next step'."""
    parts = [str(part) for part in error["loc"] if part != "[key]"]
    name, type_ = ".".join(parts), error["type"]
    if type_ == "extra_forbidden":
        return f"{name}: unknown key: {_suggest_key(parts, kind)}"
    if type_ == "missing":
        return f"{name}: missing: give it in the config or as --set {name}=..."
    if name in ("key_env", "signing_key_env"):  # the value may be the key itself
        return f"{name} {KEY_ENV_MESSAGE}"
    text = error["msg"].removeprefix("Value error, ")
    if type_ == "value_error":
        is_about_key = name and text.partition(":")[0] in _section_at(parts, kind).model_fields
        return f"{name}.{text}" if is_about_key else f"{name} {text}".lstrip()
    got = safe_repr(error["input"])
    if type_ == "model_type":
        return f"{name}: is a section, got {got}: {_suggest_section(parts, error['input'], kind)}"
    if type_ == "dict_type":
        return f"{name}: is a mapping, got {got}: write {name}.COLUMN: VALUE"
    if type_ == "tuple_type":
        return f"{name}: is a list, got {got}: put it in square brackets"
    hint = ": put it in quotes" if type_ == "string_type" else ""
    return f"{name}: {text}, got {got}{hint}"


def known_keys(kind: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings in order."""
    for name in _setting_names(kind):
        if section := _section_in(kind.model_fields[name].annotation):
            yield from known_keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _suggest_section(parts: Sequence[str], value: Any, kind: type[BaseModel]) -> str:
    """Return what to write instead of a plain value where a section is expected."""
    keys = _setting_names(_section_at(parts, kind))
    if isinstance(value, str) and keys[0] in ("uri", "id"):
        return f"write {'.'.join(parts)}.{keys[0]}: {value if safe_repr(value) == repr(value) else '...'}"
    return f"its keys are {', '.join(keys)}"


def _suggest_key(parts: Sequence[str], kind: type[BaseModel]) -> str:
    """Return the same key elsewhere, or the most similar sibling; at the top, all keys are compared."""
    *sections, key = parts
    siblings = sorted(_setting_names(_section_at(sections, kind)))
    leaves: dict[str, list[str]] = {}
    for known in known_keys(kind):
        leaves.setdefault(known.split(".")[-1], []).append(known)
    synonym = SYNONYMS.get(".".join(parts))
    names = leaves.get(key) or ([synonym] if synonym else [])
    if not names:
        close = difflib.get_close_matches(key, [*siblings, *(() if sections else leaves)], n=1, cutoff=0.5)
        if not close:
            return f"known keys: {', '.join(siblings)}"
        names = close if close[0] in siblings else leaves[close[0]]
    return f"did you mean {' or '.join(map(repr, names))}?"


def _setting_names(kind: type[BaseModel]) -> list[str]:
    """Return the keys of a section without the record of a chosen level, which is no setting."""
    return [name for name, field in kind.model_fields.items() if _section_in(field.annotation) is not ChosenLevel]


def _section_at(parts: Sequence[str], kind: type[BaseModel]) -> type[BaseModel]:
    """Return the innermost section on the way to a value, through lists and mappings of sections too."""
    for part in parts:
        if part in kind.model_fields:
            kind = _section_in(kind.model_fields[part].annotation, inside_containers=True) or kind
    return kind


def _section_in(annotation: Any, inside_containers: bool = False) -> type[BaseModel] | None:
    """Return the section that a field is, or may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if not inside_containers and get_origin(annotation) not in (Union, UnionType):
        return None
    return next(filter(None, (_section_in(part, inside_containers) for part in get_args(annotation))), None)
