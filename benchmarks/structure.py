"""Measure the structure of the product: rooms, floors, imports, circles, sizes, and the modules that a run enters.

    python benchmarks/structure.py [--root CHECKOUT] [--walk PICTURE]

A room is a folder of modules, or a module at the top of a package; a floor is one more than the highest floor that a
room imports. ``--walk`` releases one picture with the bundled model and counts the modules whose functions are called.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

PACKAGES = ("anonymizer", "metrics", "flows")


def read_modules(root: Path) -> dict[str, ast.Module]:
    """Dotted name -> syntax tree of each module of the product."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    names = [".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return {name: ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)}


def imports_of(tree: ast.Module, modules: Mapping[str, ast.Module]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if (target := inner if inner in modules else node.module) in modules:
                    yield target
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)


def room_of(module: str, modules: Mapping[str, ast.Module]) -> str:
    """The folder that a module lies in, or the module itself at the top of a package."""
    parts = module.split(".")
    is_package = any(name.startswith(f"{module}.") for name in modules)
    return ".".join(parts[:2]) if len(parts) > 2 or is_package or len(parts) == 2 else module


def floors_of(arrows: Mapping[str, set[str]]) -> dict[str, int]:
    """Floor of each node; those in a circle share one."""
    groups = circles_of(arrows)
    group_of = {name: number for number, group in enumerate(groups) for name in group}
    floors: dict[int, int] = {}
    for number, group in enumerate(groups):  # in topological order, what is imported first
        below = {group_of[other] for name in group for other in arrows[name]} - {number}
        floors[number] = 1 + max((floors[other] for other in below), default=0)
    return {name: floors[group_of[name]] for name in arrows}


def circles_of(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected components (Tarjan 1972), those that are imported before those that import them."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            groups.append(stack[at:])
            del stack[at:]

    sys.setrecursionlimit(10_000)
    for name in sorted(arrows):
        if name not in index:
            visit(name)
    return groups


def describe(root: Path) -> dict[str, Any]:
    modules = read_modules(root)
    arrows = {name: set(imports_of(tree, modules)) - {name} for name, tree in modules.items()}
    rooms: dict[str, set[str]] = {}
    for name, targets in arrows.items():
        room = room_of(name, modules)
        rooms.setdefault(room, set()).update(room_of(target, modules) for target in targets)
        rooms[room].discard(room)
    functions = [
        (node.end_lineno - node.lineno + 1, f"{name}.{node.name}")
        for name, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    lines = {
        ".".join(path.relative_to(root).with_suffix("").parts): len(path.read_text().splitlines())
        for package in PACKAGES
        for path in (root / package).rglob("*.py")
    }
    return {
        "modules": len(modules),
        "floors of modules": max(floors_of(arrows).values()),
        "circles of modules": sum(len(group) > 1 for group in circles_of(arrows)),
        "rooms": len(rooms),
        "rooms in anonymizer": sum(room.startswith("anonymizer") for room in rooms),
        "floors of rooms": max(floors_of(rooms).values()),
        "arrows between rooms": sum(map(len, rooms.values())),
        "circles of rooms": sum(len(group) > 1 for group in circles_of(rooms)),
        "lines of product": sum(lines.values()),
        "lines of tests": sum(len(path.read_text().splitlines()) for path in (root / "tests").rglob("*.py")),
        "longest module": max((count, name) for name, count in lines.items()),
        "longest function": max(functions),
    }


def walk(root: Path, picture: Path) -> dict[str, Any]:
    """Release one picture; return the modules whose functions are called, in all and while its shard is at work."""
    entered: set[str] = set()
    in_shard: set[str] = set()
    shards_at_work: list[FrameType] = []
    prefixes = tuple(str(root / package) for package in PACKAGES)

    def on_event(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if code.co_name == "anonymize_shard" and event == "call":
            shards_at_work.append(frame)
        elif code.co_name == "anonymize_shard" and event == "return":
            shards_at_work.clear()
        if event == "call" and code.co_filename.startswith(prefixes) and code.co_name != "<module>":
            module = str(Path(code.co_filename).relative_to(root))
            entered.add(module)
            if shards_at_work:
                in_shard.add(module)

    from flows.cli import main

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        (source / picture.name).write_bytes(picture.read_bytes())
        threading.setprofile(on_event)
        sys.setprofile(on_event)
        try:
            main(["run", "--source", str(source), "--output", f"{folder}/out", "--level", "0.5", "--quiet"])
        except SystemExit:
            pass
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
    return {"modules entered by a run": len(entered), "modules entered by its shard": sorted(in_shard)}


def measure() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--walk", type=Path, metavar="PICTURE")
    asked = parser.parse_args()
    found = describe(asked.root.resolve())
    if asked.walk:
        found |= walk(asked.root.resolve(), asked.walk)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    measure()
