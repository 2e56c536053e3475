"""Imports go downwards only: errors, limits < system < config < protocol, store < layers …

`protocol` and `store` know nothing of each other, nor of the configuration or the processes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import metad

PACKAGE = Path(metad.__file__).parent

# The first part of a module's name below `metad` -> its rank.
RANKS = {
    "": 0,  # metad itself: its version
    "errors": 0,
    "limits": 0,
    "budget": 1,
    "system": 1,
    "loglines": 2,
    "control": 2,
    "config": 2,
    "tls": 3,
    "listeners": 3,
    "protocol": 4,
    "store": 4,
    "layers": 5,
    "filters": 6,
    "users": 7,
    "sessions": 8,
    "workers": 9,
    "master": 10,
    "cli": 11,
    "nanny": 10,
    "__main__": 12,
}
# What these may know of metad besides themselves.
CLOSED = {
    "protocol": {"errors", "limits"},
    "store": {"budget", "errors", "limits", "system"},
    "nanny": {"errors", "limits", "system"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def top(name: str) -> str:
    """`metad.store.log.writer` -> `store`."""
    return name.partition(".")[2].partition(".")[0]


def module_name(path: Path) -> str:
    parts = ("metad", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Full names of the modules of metad that are imported anywhere in it, lazily too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "metad")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            if base == "metad":  # from metad import errors
                yield from (f"metad.{alias.name}" for alias in node.names)
            elif base.startswith("metad."):
                yield base


def imported(path: Path) -> set[str]:
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {top(module) for module in imports(tree, package)}
    return {part for part in found if part in RANKS or (PACKAGE / f"{part}.py").exists()}


def faults(mine: str, others: set[str]) -> list[str]:
    """What is wrong with a module of `mine` that imports `others`."""
    wrong = [f"{other} is not below {mine}" for other in others if other not in RANKS]
    for other in sorted(others & RANKS.keys() - {mine}):
        if RANKS[other] >= RANKS[mine]:
            wrong.append(f"{other} is not below {mine}")
        if mine in CLOSED and other not in CLOSED[mine] and other != "":
            wrong.append(f"{mine} must not know {other}")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_from_below(path: Path) -> None:
    mine = top(module_name(path))
    assert mine in RANKS, f"give {mine} a rank in this test"
    assert faults(mine, imported(path)) == []


def test_every_part_of_the_package_has_a_rank() -> None:
    parts = {top(module_name(path)) for path in MODULES}
    assert parts <= RANKS.keys()
    assert {"protocol", "store", "errors"} <= parts


@pytest.mark.parametrize(
    ("mine", "source", "wrong"),
    [
        (
            "metad.protocol.smtp.machine",
            "from ...store import log",
            ["store is not below protocol"],
        ),
        ("metad.store.log.writer", "from metad.protocol.trace import date", []),
        ("metad.protocol.smtp.machine", "import metad.config.model", []),
        ("metad.sessions.smtp", "def f():\n    from metad import master", []),
    ],
)
def test_a_wrong_import_is_found(mine: str, source: str, wrong: list[str]) -> None:
    found = {top(name) for name in imports(ast.parse(source), mine.rpartition(".")[0])}
    report = faults(top(mine), found)
    assert report
    assert set(wrong) <= set(report)


def test_a_right_import_is_none_of_them() -> None:
    tree = ast.parse("from ..errors import Reply\nfrom . import lines\nimport os")
    found = {top(name) for name in imports(tree, "metad.protocol")}
    assert found == {"errors", "protocol"}
    assert faults("protocol", found) == []
