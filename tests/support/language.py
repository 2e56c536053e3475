"""Keeps words that an engineer of the field would not write out of the whole tree.

Checked is prose: all of a page, a manual page or a script; of a Python module its comments, its
docstrings, its strings with a blank in them, and the names of its tests.  Each word has what to
write instead, each exception its reason.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

Line = tuple[int, str]

# Word to avoid -> what to write.
EVERYWHERE = {
    r"nobody": "no one, none; or the client, user or process that you mean",
    r"somebody": "another user, an attacker, a process",
    r"whoever": "the process, the client, any caller",
    r"said": "reported, printed, logged, sent",
    r"put(?:s|ting)? off": "deferred (4xx)",
    r"pass(?:es|ed)? over": "skipped",
    r"one says": "the term itself, without an apology",
    r"clients? (?:that )?says?": "sends",
    r"anew": "again; or the verb with re-",
    r"at last": "finally",
    r"(?:is|are) no more(?=[.;,:]|$)": "is gone",
    r"no restart makes": "so that recovery cannot resurrect it",
    r"by the users database is kept": "mail of unknown mailboxes is kept",
    r"those who": "clients that, processes that; to do something",
    r"(?:(?<=[.;:] )|^)who (?:has|have|had|comes|came|finds|cannot|can|waits|asks|holds|needs)": (
        "a client that, a process that"
    ),
}
# In texts for users.  RFCs count octets, so the pages about the wire and the disk may too.
FOR_USERS = {r"octets?": "bytes"}
OF_THE_WIRE = ("docs/log-format.md", "docs/protocols.md", "man/metad-log.5")

# Removed before a line is checked -> the reason.
EXCEPTIONS = {
    r"\{[^{}]*\}": "a name of a variable in an f-string",
    r"nobody\S*@": "an address in a test",
    r"""(?:["'`=]|user |root or |is |else |-o )nobody\b""": "the system's user of that name",
    r"\+OK[^\"']*octets": "POP3's own reply (RFC 1939)",
    r"`[^`]*`": "a name of the code or of a counter",
}
CLEAN = re.compile("|".join(EXCEPTIONS))


def pattern(words: Iterable[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?:{'|'.join(words)})(?![\w-])", re.IGNORECASE | re.MULTILINE)


def may_hold(text: str, words: Iterable[str]) -> bool:
    """Whether a closer check is needed: most files have none of the words."""
    bare = re.sub(r"""^[\s#"'*]+""", "", text.replace("_", " "), flags=re.MULTILINE)
    return pattern(words).search(bare) is not None


def faults(lines: Iterable[Line], words: dict[str, str]) -> list[str]:
    """The lines with such a word, and what to write."""
    search = pattern(words)
    found = []
    for at, line in lines:
        if hit := search.search(CLEAN.sub("", line)):
            (advice,) = [
                instead for word, instead in words.items() if pattern([word]).fullmatch(hit[0])
            ][:1] or [""]
            found.append(f"{at}: {hit[0]!r} in {line.strip()!r}; write: {advice}")
    return found


def prose(path: Path) -> Iterator[Line]:
    text = path.read_text("utf-8")
    if not may_hold(text, EVERYWHERE):
        return
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        written = token.type == tokenize.STRING and " " in token.string
        if written or token.type == tokenize.COMMENT:
            for at, line in enumerate(token.string.splitlines()):
                yield token.start[0] + at, line.strip("\"'# ")
    yield from names_of_tests(text)


def for_users(path: Path, name: str) -> Iterator[Line]:
    """Texts for users: pages, manual, help, log lines, errors; and the output of a test run."""
    text = path.read_text("utf-8")
    if not may_hold(text, FOR_USERS):
        return
    if (path.suffix == ".md" or name.startswith("man/")) and name not in OF_THE_WIRE:
        yield from enumerate(text.splitlines(), 1)
    elif path.suffix == ".py" and name.startswith("tests/"):
        yield from names_of_tests(text)
        if "reached(" in text or "noted(" in text:
            yield from labels(ast.parse(text))
    elif path.suffix == ".py" and name.startswith("metad/"):
        yield from texts(ast.parse(text))


def names_of_tests(text: str) -> Iterator[Line]:
    for at, line in enumerate(text.splitlines(), 1):
        if name := re.match(r" *def (test_\w+)", line):
            yield at, name[1].replace("_", " ")


def labels(tree: ast.AST) -> Iterator[Line]:
    """The labels under which a campaign reports its results."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("reached", "noted"):
            yield node.lineno, ast.unparse(node)


def texts(tree: ast.AST) -> Iterator[Line]:
    """Strings with a blank in them: no docstrings, except the help of commands."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented)
        and isinstance(node.body[0], ast.Expr)
        and not is_command(node)
    }
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and " " in text and id(node) not in docstrings:
            yield node.lineno, text  # type: ignore[attr-defined]


def is_command(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any(re.search(r"\.(command|group)\b", ast.unparse(one)) for one in decorators)


def is_written(path: Path) -> bool:
    kinds = {".md", ".py", ".toml", ".sh", ".service", ".socket", ".1", ".5", ".8"}
    return path.suffix in kinds or path.read_bytes().startswith(b"#!/bin/sh")
