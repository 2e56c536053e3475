"""Imports only go down the ranks drawn in docs/architecture.md, and never form a cycle."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import metad

PACKAGE = Path(metad.__file__).parent
DRAWING = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
MODULES = sorted(PACKAGE.rglob("*.py"))

# The fields of a node that hold statements, or parts of one that do.
BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")

Ranks = dict[str, dict[str, int]]


def read_ranks(text: str) -> Ranks:
    """Room ("" for metad itself) -> part of it -> rank; the lowest line has rank 0."""
    ranks: Ranks = {}
    for room, body in re.findall(r"^```ranks *(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        lines = reversed(body.splitlines())
        ranks[room] = {part: rank for rank, line in enumerate(lines) for part in line.split()}
    return ranks


def read_closed(text: str) -> dict[str, set[str]]:
    """Room -> all that it may know besides itself."""
    found = re.search(r"^```closed\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found
    pairs = (line.split(":") for line in found[1].splitlines())
    return {room: set(known.split()) for room, known in pairs}


RANKS = read_ranks(DRAWING)
CLOSED = read_closed(DRAWING)


def module_name(path: Path) -> str:
    parts = ("metad", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {module_name(path) for path in MODULES}


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below the node: no expression has one, and most of a tree is expressions."""
    for block in BLOCKS:
        for inner in getattr(node, block, ()):
            yield inner
            yield from statements(inner)


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Full names of what is imported of metad anywhere in the tree, lazily too."""
    for node in statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "metad")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            if base.split(".")[0] == "metad":
                yield from (f"{base}.{alias.name}" for alias in node.names)


def known_module(name: str) -> str:
    """The module that a name lies in: metad.errors.Reply -> metad.errors."""
    while name not in NAMES and "." in name:
        name = name.rpartition(".")[0]
    return name


@functools.cache
def imported(path: Path) -> set[str]:
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return {known_module(found) for found in imports(ast.parse(path.read_text("utf-8")), package)}


def fault(mine: str, other: str, ranks: Ranks = RANKS) -> str | None:
    """The fault if module `mine` imports module `other`; None if it may."""
    own, foreign = mine.split(".")[1:], other.split(".")[1:]
    if not own or own == ["__main__"] or not foreign or mine == other:
        return None  # metad itself: its version
    if own[0] != foreign[0]:
        if own[0] in CLOSED and foreign[0] not in CLOSED[own[0]]:
            return f"{own[0]} must not know {foreign[0]}"
        return _upward("", own[0], foreign[0], ranks)
    room = own[0]
    if room in ranks and len(own) > 1 and len(foreign) > 1 and own[1] != foreign[1]:
        return _upward(room, own[1], foreign[1], ranks)
    return None


def _upward(room: str, mine: str, other: str, ranks: Ranks) -> str | None:
    for part in (mine, other):
        if part not in ranks[room]:
            return f"{room}/{part} has no rank in docs/architecture.md"
    return None if ranks[room][other] < ranks[room][mine] else f"{other} is not below {mine}"


def test_a_module_imports_only_from_below() -> None:
    found = {(module_name(path), other) for path in MODULES for other in imported(path)}
    assert len(found) > len(MODULES)
    assert [f"{mine}: {wrong}" for mine, other in found if (wrong := fault(mine, other))] == []


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Import cycles: strongly connected components (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph.get(name, ()):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in index:
            visit(name)
    return [one for one in found if len(one) > 1]


def test_no_modules_import_each_other() -> None:
    graph = {module_name(path): imported(path) - {module_name(path)} for path in MODULES}
    # A package's __init__ that has code may use its modules; they do not use it.
    assert circles(graph) == []


def test_a_circle_would_be_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_every_part_has_a_rank_and_every_rank_a_part() -> None:
    for room, ranks in RANKS.items():
        below = PACKAGE / room
        parts = {path.stem for path in below.glob("*.py")} - {"__init__", "__main__"}
        parts |= {path.parent.name for path in below.glob("*/__init__.py")}
        assert set(ranks) == parts
    assert set(CLOSED) <= set(RANKS[""])


@pytest.mark.parametrize(
    ("mine", "source", "wrong"),
    [
        ("metad.protocol.smtp.machine", "from ...store import log", "protocol must not know store"),
        ("metad.store.reader", "from metad.protocol.trace import date", "must not know"),
        ("metad.protocol.lines", "import metad.config.model", "must not know"),
        ("metad.sessions.smtp", "def f():\n    from metad import master", "is not below"),
        ("metad.sessions.smtp", "try: f()\nexcept E: import metad.master", "is not below"),
        ("metad.sessions.smtp", "if x: pass\nelse:\n with y: import metad.master", "is not below"),
        ("metad.sessions.smtp", "try: f()\nfinally: import metad.master", "is not below"),
        ("metad.sessions.smtp", "match x:\n case 1: import metad.master", "is not below"),
        ("metad.store.log.writer", "from metad.store.index import index", "index is not below log"),
        ("metad.store.ids", "from metad.store.identity import Store", "is not below"),
    ],
)
def test_a_wrong_import_is_found(mine: str, source: str, wrong: str) -> None:
    names = imports(ast.parse(source), mine.rpartition(".")[0])
    faults = [fault(mine, known_module(name)) for name in names]
    assert [one for one in faults if one and wrong in one]


def test_a_part_without_a_rank_is_a_fault() -> None:
    assert fault("metad.users.lookup", "metad.attic.chest") is not None
    assert fault("metad.store.attic", "metad.store.ids") is not None


def test_a_right_import_is_no_fault() -> None:
    tree = ast.parse("from ..errors import Reply\nfrom . import lines\nimport os")
    found = {known_module(name) for name in imports(tree, "metad.protocol")}
    assert found == {"metad.errors", "metad.protocol.lines"}
    assert [fault("metad.protocol.proxy", name) for name in ("metad.errors",)] == [None]
    assert fault("metad.store.commit.committer", "metad.store.log.writer") is None
