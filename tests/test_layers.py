"""The order of rooms, no circle, no private import or dialect, nothing heavy before it is needed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement

import flows.cli
from tests.support import ROOT

# Rooms from the ground up: a module imports from its own room and from those above it in this list.
ROOMS = [
    "anonymizer.storage", "anonymizer.crypto", "anonymizer.config", "anonymizer.data", "anonymizer.backbones",
    "anonymizer.noise", "anonymizer.samplers", "anonymizer.boomerang", "anonymizer.augment", "anonymizer.enhance",
    "anonymizer.policy", "anonymizer.grouping", "anonymizer.attest", "anonymizer.release", "anonymizer.pipeline",
    "anonymizer.report", "anonymizer.bundled", "metrics.stats", "metrics.models", "metrics.features", "metrics.attacks",
    "metrics.scores", "metrics.utility", "metrics.audit", "flows.jobs", "flows.lineage", "flows.runtime", "flows",
    "flows.cli",
]  # fmt: skip
TYPES = {"anonymizer.errors", "anonymizer.records", "anonymizer.schema", "anonymizer.devices"}  # the ground, one room
PUBLIC_SURFACE = {"anonymizer"}  # hands on names by ``__getattr__``, see docs/decisions/015-the-house.md
# What metrics may know of the product: settings, errors, models and the method, never a release.
METRICS_KNOW = {"errors", "records", "storage", "config", "data", "backbones", "boomerang", "noise"}
# Words that say nothing to a newcomer, as whole identifiers or as a part of one.
DIALECT = {
    "told", "said", "whoever", "alone", "stand_in", "made_of", "handed", "misshapen", "undue", "patiently",
    "take_over", "settled", "settle", "shown", "apart", "beside", "exhibits", "hear", "ruling", "ahead", "exhibit",
    "wanted", "still", "tried", "invented", "nobody", "everybody", "somebody", "wherever", "whatever", "whenever",
}  # fmt: skip


@cache
def modules() -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of each module of the product."""
    paths = sorted(path for top in ("anonymizer", "metrics", "flows") for path in (ROOT / top).rglob("*.py"))
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in names.items()}


def imports(name: str) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it) for each import statement in a module, wherever it stands but for TYPE_CHECKING."""
    for node in ast.walk(modules()[name]):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield (inner, None) if inner in modules() else (node.module, alias.name)


def floor_of(module: str) -> int:
    """The number of a module's room in ``ROOMS``; -1 for the types below them all."""
    if module in TYPES:
        return -1
    return ROOMS.index(max((room for room in ROOMS if module == room or module.startswith(f"{room}.")), key=len))


def own_imports(name: str) -> set[str]:
    return {module for module, _ in imports(name) if module in modules() and module != name}


def test_every_module_has_a_room() -> None:
    without = {name for name in modules() if not any(name == room or name.startswith(f"{room}.") for room in ROOMS)}
    assert without - TYPES <= PUBLIC_SURFACE | {"metrics"}


def test_rooms_import_only_from_those_above_them() -> None:
    wrong = []
    for name in modules():
        if name in PUBLIC_SURFACE | {"metrics"}:
            continue
        for module in own_imports(name) - PUBLIC_SURFACE:
            if floor_of(module) > floor_of(name):
                wrong.append(f"{name} imports {module}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circle_between_modules() -> None:
    """A package's ``__init__`` counts as a module of its own."""
    try:
        TopologicalSorter({name: own_imports(name) for name in modules()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_metrics_know_nothing_of_releases() -> None:
    known = {module for name in modules() if name.startswith("metrics") for module in own_imports(name)}
    rooms = {module.split(".")[1] for module in known if module.startswith("anonymizer.")}
    assert rooms <= METRICS_KNOW, sorted(rooms - METRICS_KNOW)


@pytest.mark.parametrize("top", ["anonymizer", "metrics"])
def test_only_flows_knows_prefect(top: str) -> None:
    users = [
        name
        for name in modules()
        if name.split(".")[0] == top and any(m.split(".")[0] == "prefect" for m, _ in imports(name))
    ]
    assert users == []


def test_no_module_imports_a_private_name_of_another() -> None:
    private = [
        f"{name}: {module}.{taken or ''}"
        for name in modules()
        for module, taken in imports(name)
        if module.split(".")[0] in ("anonymizer", "metrics", "flows")
        and any(part.startswith("_") and not part.startswith("__") for part in [*module.split("."), taken or ""])
    ]
    assert not private, "\n".join(private)


def test_nothing_reaches_into_another_module_for_a_private_name() -> None:
    """``module._name``, where ``module`` was imported."""
    wrong = []
    for name, tree in modules().items():
        statements = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        imported = {alias.asname or alias.name for statement in statements for alias in statement.names
                    if f"{statement.module}.{alias.name}" in modules()}  # fmt: skip
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported):
                continue
            if node.attr.startswith("_") and not node.attr.startswith("__"):
                wrong.append(f"{name}: {node.value.id}.{node.attr}")
    assert not wrong, "\n".join(wrong)


def identifiers(tree: ast.Module) -> Iterator[str]:
    """Names that a module gives: functions, classes, parameters, variables, attributes, aliases."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname


def words_of(identifier: str) -> set[str]:
    """The words of an identifier, and the whole of it, in lower case."""
    parts = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", identifier)
    return {part.lower() for part in parts} | {identifier.strip("_").lower()}


def test_no_identifier_is_of_a_private_dialect() -> None:
    wrong = {
        f"{name}: {word}" for name, tree in modules().items() for word in identifiers(tree) if words_of(word) & DIALECT
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_no_function_is_longer_than_a_screen_or_two() -> None:
    long = [
        f"{name}.{node.name}: {length} lines"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert not long, "\n".join(long)


def test_every_module_and_public_function_has_a_docstring() -> None:
    without = []
    for name, tree in modules().items():
        if tree.body and not ast.get_docstring(tree):
            without.append(name)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not ast.get_docstring(node):
                without.append(f"{name}.{node.name}")
    assert not without, "\n".join(without)


def test_every_package_that_is_imported_is_declared() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        *settings["dependencies"],
        *(line for extra in settings["optional-dependencies"].values() for line in extra),
    ]
    declared = {re.sub(r"[-_.]+", "-", Requirement(line).name).lower() for line in lines}
    providers = packages_distributions()
    missing = set()
    for name in modules():
        for module, _ in imports(name):
            top = module.split(".")[0]
            if top in sys.stdlib_module_names or top in ("anonymizer", "metrics", "flows"):
                continue
            names = {re.sub(r"[-_.]+", "-", provider).lower() for provider in providers.get(top, [top])}
            if not names & declared:
                missing.add(f"{name}: {top} ({', '.join(sorted(names))})")
    assert not missing, "\n".join(sorted(missing))


def test_help_answers_without_anything_heavy() -> None:
    code = (
        "import sys; from flows.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as leave: assert not leave.code\n"
        "print('HEAVY', sorted({'torch', 'prefect', 'pyarrow', 'numpy', 'diffusers', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "Usage:" in done.stdout
    assert done.stdout.strip().endswith("HEAVY []")
    assert done.stderr == ""


@pytest.mark.parametrize("name", sorted(flows.cli.main.commands))
def test_each_command_says_what_it_is_for(name: str) -> None:
    command = flows.cli.main.commands[name]
    assert (command.help or "").strip().split("\n")[0].endswith(".")
    for option in command.params:
        assert not isinstance(option, flows.cli.click.Option) or option.help, f"{name} --{option.name} has no help"
