"""Who may know whom: flows -> metrics -> anonymizer, and never back; and nothing heavy before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flows.cli
import metrics
from tests.support import ROOT

FORBIDDEN = {
    "anonymizer": {"flows", "metrics", "prefect", "deployments", "benchmarks", "tests"},
    "metrics": {"flows", "prefect", "deployments", "benchmarks", "tests"},
    "flows": {"deployments", "benchmarks", "tests"},
}


def imports(path: Path) -> Iterator[str]:
    """Top-level names that a module imports anywhere in it, by statement or by name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (a.value.partition(".")[0] for a in node.args if isinstance(a, ast.Constant))


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_no_package_imports_one_above_it(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert modules
    found = {f"{path.relative_to(ROOT)}: {name}" for path in modules for name in imports(path)}
    assert not [line for line in found if line.rpartition(" ")[2] in FORBIDDEN[package]]


def test_metrics_know_nothing_of_releases() -> None:
    """Only what describes settings, scores and errors, what fetches weights, and, for attackers, the method."""
    allowed = {"anonymizer.config", "anonymizer.records", "anonymizer.errors"}
    allowed |= {"anonymizer.boomerang", "anonymizer.noise", "anonymizer.backbones.protocol"}
    allowed |= {"anonymizer.data.image_codec", "anonymizer.data.metadata", "anonymizer.storage.download"}
    for path in Path(metrics.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anonymizer"):
                assert node.module in allowed, f"{path.name} imports {node.module}"


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
