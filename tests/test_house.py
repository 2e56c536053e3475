"""Rules for every file of the tree."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import language

ROOT = Path(__file__).parents[1]
# A developer's machine, or a package registry.  Written so that this file does not match.
FORBIDDEN = re.compile(
    "|".join(
        (
            *(rf"(?<![\w.}}])/{name}/" for name in ("wor[k]", "tmp/[n]", "roo[t]", "opt/pyp[i]")),
            *(r"pypi\.or[g]", r"pythonhosted\.or[g]", r"npmjs\.or[g]"),
            *(r"deb\.debian\.or[g]", r"nodesource\.co[m]"),
        )
    )
)


def tracked() -> list[Path]:
    """Files of the tree that git has or would take; without git, those that look like it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        done = subprocess.CompletedProcess(command, 127)
    if done.returncode == 0:
        paths = [ROOT / os.fsdecode(name) for name in done.stdout.split(b"\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not hidden(path)]
    return [path for path in paths if path.is_file()]


def hidden(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return any((part.startswith(".") and part != ".ci") or part == "__pycache__" for part in parts)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


FILES = tracked()
MODULES = [path for path in FILES if path.suffix == ".py"]


def test_the_tree_is_looked_at():
    assert {"pyproject.toml", "metad/__init__.py", "tools/test"} <= {named(path) for path in FILES}


@pytest.mark.slow
def test_no_file_names_a_machine_or_a_registry():
    found = {
        named(path): names
        for path in FILES
        if (names := FORBIDDEN.findall(path.read_bytes().decode("utf-8", "replace")))
    }
    assert found == {}


def test_every_module_opens_with_what_it_is():
    opening = re.compile(r'(?:#[^\n]*\n|\s)*r?"""`?\w')
    bare = [path for path in MODULES if not opening.match(path.read_text("utf-8"))]
    assert [named(path) for path in bare] == []


def test_what_begins_with_an_interpreter_can_be_run_and_nothing_else():
    wrong = [
        path for path in FILES if os.access(path, os.X_OK) != path.read_bytes().startswith(b"#!")
    ]
    assert [named(path) for path in wrong] == []


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.read_bytes().startswith(b"#!/bin/sh\n")], ids=named
)
def test_shell_scripts_parse_and_stop_at_the_first_error(path):
    assert subprocess.run(["sh", "-n", str(path)], check=False).returncode == 0
    assert "\nset -eu\n" in path.read_text()


MOST_FUNCTION_LINES = 40
MOST_FILE_LINES = 400
PACKAGE = [path for path in MODULES if path.is_relative_to(ROOT / "metad")]


def long_functions(text: str) -> list[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    lengths = {one.name: (one.end_lineno or 0) - one.lineno + 1 for one in functions}
    return [name for name, lines in lengths.items() if lines > MOST_FUNCTION_LINES]


@pytest.mark.slow
def test_no_function_and_no_file_is_too_long_to_take_in():
    texts = {named(path): path.read_text("utf-8") for path in PACKAGE}
    assert [name for name, text in texts.items() if text.count("\n") > MOST_FILE_LINES] == []
    assert {name: long for name, text in texts.items() if (long := long_functions(text))} == {}


def test_a_long_function_would_be_found():
    assert long_functions("def f():\n" + "    pass\n" * 39) == []
    assert long_functions("def f():\n" + "    pass\n" * 40) == ["f"]


def test_a_machine_path_and_a_registry_would_be_found():
    for text in ("cd /wor" + "k/main", '"/roo' + 't/x"', "https://pypi" + ".org/"):
        assert FORBIDDEN.search(text)
    assert not FORBIDDEN.search("$test/root/usr, .test/root/")


MYSELF = {"tests/support/language.py", "tests/test_house.py"}  # they quote the words
WRITTEN = [path for path in FILES if language.is_written(path) and named(path) not in MYSELF]
ROOMS = sorted({named(path).partition("/")[0] for path in WRITTEN})


def within(room: str) -> list[Path]:
    return [path for path in WRITTEN if named(path).partition("/")[0] == room]


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_no_word_that_an_engineer_would_not_write(room: str) -> None:
    found = {
        named(path): language.faults(language.prose(path), language.EVERYWHERE)
        for path in within(room)
    }
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_users_read_of_bytes(room: str) -> None:
    found = {
        named(path): language.faults(language.for_users(path, named(path)), language.FOR_USERS)
        for path in within(room)
    }
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    "line",
    [
        "mail is put off until there is room",
        "Nobody is refused.",
        "The header is written anew.",
        "Wait; who has none goes on.",
        "what the client says before TLS",
        "the log is no more",
    ],
)
def test_a_wrong_word_is_found(line: str) -> None:
    (fault,) = language.faults([(1, line)], language.EVERYWHERE)
    assert not fault.endswith("write: ")


@pytest.mark.parametrize(
    "line", ['user = "nobody"', "RCPT TO:<nobody@example.org>", "who restarts whom", "{said}"]
)
def test_an_exception_is_none(line: str) -> None:
    assert language.faults([(1, line)], language.EVERYWHERE) == []


def test_a_wrong_word_is_found_in_a_comment_a_string_and_a_name(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text('''"""A module."""
    # Who has none goes on.
text = "put off"
def test_nobody_comes(): ...
''')
    found = language.faults(language.prose(module), language.EVERYWHERE)
    assert [one.partition(":")[0] for one in found] == ["2", "3", "4"]


def test_help_log_lines_and_errors_are_found_and_docstrings_are_not() -> None:
    module = '''
def f():
    """In octets."""
    report(f"{n} octets are damaged")

@user.command()
def show():
    """Print the octets of a user."""
'''
    lines = list(language.texts(ast.parse(module)))
    found = language.faults(sorted(lines), language.FOR_USERS)
    assert [one.partition(":")[0] for one in found] == ["4", "8"]
