"""Configurations from files, options and nested mappings, and back to YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from anonymizer.config.base import CREDENTIALS_PATTERN, safe_repr
from anonymizer.config.run import RunConfig
from anonymizer.config.validation_messages import format_error
from anonymizer.errors import ConfigError, OutputError

C = TypeVar("C", bound=BaseModel)


def build(tree: Mapping[str, Any], overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> RunConfig:
    """Return a run's configuration from nested mappings, changed as ``merge`` does."""
    return validate(RunConfig, merge(tree, overrides, given))


def read_tree(path: str | Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, on a disk or at an fsspec URI. ConfigError in one line."""
    name = str(path)
    hint = "check the address" if "://" in name else "name a YAML file, or use --source and --output"
    try:
        return parse(_read_uri(name) if "://" in name else Path(path).read_text(encoding="utf-8"), name)
    except FileNotFoundError:
        raise ConfigError(f"config: no file {name!r}: {hint}") from None
    except OutputError as error:
        raise ConfigError(f"config: cannot read {name!r}: {str(error).partition(': ')[2]}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: cannot read {name!r} ({type(error).__name__}): check the file") from None


def _read_uri(uri: str) -> str:
    from anonymizer.storage.path import StoragePath  # fsspec, which a file on a disk does not need

    if CREDENTIALS_PATTERN.search(uri):
        raise ConfigError(
            "config: its address holds a password: leave it out, and give it in the environment or in fsspec's own "
            "config file (~/.config/fsspec/)"
        )
    return StoragePath.from_uri(uri).read().decode()


def parse(text: str, name: str) -> dict[str, Any]:
    """Return the mapping in a YAML text; ``name`` is the file's in messages. ConfigError in one line."""
    try:
        return deepcopy(_parse(text, name))
    except RecursionError:
        raise _not_values(name) from None


@lru_cache(maxsize=16)  # a run reads the settings of a release many times, and PyYAML is slow
def _parse(text: str, name: str) -> dict[str, Any]:
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        problem, step = "is not YAML", "check indentation and quotes"
        if isinstance(error, _DuplicateKeyError):
            problem, step = f"key {error.key!r} stands twice", "remove one of them"
        raise ConfigError(f"config: {name!r}: {problem}{where}: {step}") from None
    except (RecursionError, ValueError):  # an anchor that holds itself; an impossible date
        raise _not_values(name) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config: {name!r} holds no mapping: it needs at least source.uri and output.uri")
    return tree


def _not_values(name: str) -> ConfigError:
    return ConfigError(f"config: {name!r} cannot be read as values: write them out, and dates in quotes")


def dump(config: RunConfig) -> str:
    """Return the YAML text that ``parse`` and ``build`` make the same configuration of.

    In ASCII: with ``allow_unicode`` PyYAML writes some line separators as they are and reads them back as others.
    """
    return _dump(json.dumps(config.model_dump(mode="json")))


@lru_cache(maxsize=16)
def _dump(tree: str) -> str:
    text: str = yaml.safe_dump(json.loads(tree), sort_keys=False)
    return text


def merge(
    tree: Mapping[str, Any], overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return nested mappings with ``given`` (``a.b`` -> value) over them, and over both ``a.b=value`` overrides.

    Values of overrides are read as YAML. ConfigError in one line.
    """
    changes = dict(given or {})
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator or not all(name.split(".")):
            raise ConfigError(f"--set: got {safe_repr(override)}: write it as section.key=value")
        changes[name] = _parse_override(name, value)
    try:
        merged: dict[str, Any] = _copy(tree)
    except RecursionError:
        raise ConfigError("config: holds itself: write the values out instead of using an anchor") from None
    for name, value in changes.items():
        *sections, key = name.split(".")
        node = merged
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ConfigError(f"--set: {name!r} goes through {section!r}, which is a value: check the key")
        node[key] = value
    return merged


def validate(kind: type[C], tree: Mapping[str, Any]) -> C:
    """Return a configuration of any kind from nested mappings. ConfigError, with all problems in one line."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(format_error(item, kind) for item in error.errors())) from None


def _parse_override(name: str, text: str) -> Any:
    """Return an override's value, read as YAML; a prompt that is no string there stays as it is written."""
    is_prompt = name.endswith("prompt")  # it may begin with a column in braces, which YAML takes for a mapping
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError):
        if is_prompt:
            return text
        got = "" if name.endswith("key_env") else f" {safe_repr(text)}"
        raise ConfigError(f"--set {name}: the value{got} is not YAML: put it in quotes") from None
    return text if is_prompt and not isinstance(value, str) else value


def _copy(node: Any) -> Any:
    return {key: _copy(value) for key, value in node.items()} if isinstance(node, Mapping) else node


class _DuplicateKeyError(yaml.YAMLError):
    """A repeated key, of which YAML would silently take the last."""

    def __init__(self, mark: Any, key: str) -> None:
        super().__init__(mark, key)
        self.problem_mark, self.key = mark, key


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _DuplicateKeyError(key.start_mark, key.value)
                seen.add(key.value)
        return super().construct_mapping(node, deep)
