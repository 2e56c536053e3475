"""`_new(T, (…))` builds a NamedTuple from a complete tuple without checking it: this does.

Otherwise a field added to T and forgotten in a fast path would make a tuple that is too short, and
fail far away.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import metad

PACKAGE = Path(metad.__file__).parent


def module_name(path: Path) -> str:
    return ".".join(("metad", *path.relative_to(PACKAGE).with_suffix("").parts))


def constructions(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_new":
            yield node


def tuples(tree: ast.AST, items: ast.expr) -> list[ast.Tuple]:
    """What `items` is: a tuple, or a name to which nothing but tuples are assigned."""
    if isinstance(items, ast.Tuple):
        return [items]
    values = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        for target in node.targets
        if ast.unparse(target) == ast.unparse(items)
    ]
    found = [value for value in values if isinstance(value, ast.Tuple)]
    return found if len(found) == len(values) else []


def faults(tree: ast.AST, names: dict[str, Any]) -> list[str]:
    """The faults in calls of `_new` in a module whose globals are `names`."""
    wrong = []
    for call in constructions(tree):
        where = f"line {call.lineno}"
        kind = eval(ast.unparse(call.args[0]), names)
        found = tuples(tree, call.args[1]) if len(call.args) == 2 else []
        if not found or any(isinstance(item, ast.Starred) for each in found for item in each.elts):
            wrong.append(f"{where}: the items of {kind.__name__} are not written out")
        wrong += [
            f"{where}: {kind.__name__} has {len(kind._fields)} fields, {len(each.elts)} items given"
            for each in found
            if len(each.elts) != len(kind._fields)
        ]
    return wrong


USING = [path for path in sorted(PACKAGE.rglob("*.py")) if " _new(" in path.read_text()]


@pytest.mark.parametrize("path", USING, ids=module_name)
def test_every_tuple_has_as_many_items_as_its_type_has_fields(path: Path) -> None:
    names = vars(importlib.import_module(module_name(path)))
    assert faults(ast.parse(path.read_text()), names) == []


def test_the_quick_paths_are_looked_at() -> None:
    assert {"metad.protocol.smtp.machine", "metad.sessions.smtp"} <= set(map(module_name, USING))


class Pair(NamedTuple):
    one: int
    two: int


@pytest.mark.parametrize(
    "source",
    [
        "_new(Pair, (1,))",
        "_new(Pair, (1, 2, 3))",
        "_new(Pair, both)",
        "_new(Pair, (*both,))",
        "_new(Pair)",
        "both = (1, 2) if x else (1,)\n_new(Pair, both)",
        "both = 1, 2, 3\n_new(Pair, both)",
    ],
)
def test_a_wrong_construction_is_found(source: str) -> None:
    assert faults(ast.parse(source), {"Pair": Pair})


@pytest.mark.parametrize("source", ["_new(Pair, (1, 2))", "both = 1, 2\n_new(Pair, both)"])
def test_a_right_construction_is_none_of_them(source: str) -> None:
    assert faults(ast.parse(source), {"Pair": Pair}) == []
