"""The pages of the documentation, as tests use them: their files and their command lines.

Rules of this file:

* A block whose first line (after a `#!` line) is a comment with an absolute path is that file.
* A command line begins with a program of PROGRAMS, in a block of language `sh` or of none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = {
    path.name: path
    for path in (
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
    if path != ROOT / "docs" / "README.md"
}
# What a command line of the pages begins with.  A test shows that no other program is there.
PROGRAMS = (
    "metad", "sh", "git", "pip", "pipx", ".", "echo", "printf", "apt-get", "systemctl",
    "systemd-sysusers", "journalctl", "certbot", "postfix", "install", "mkdir", "python3", "ln",
    "cp", "rm", "podman", "curl", "sed", "kill", "usermod", "/opt/metad/bin/pip",
    ".venv/bin/python", "METAD_TEST_SCALE=1",
)  # fmt: skip
_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>[a-z]*)[^\n]*\n(?P<fenced>.*?)^ *```$"
    r"|(?P<plain>(?:^    [^\n]*\n)+)",
    re.MULTILINE | re.DOTALL,
)
_PATH = re.compile(r"(?:#![^\n]*\n)?# (/\S+(?: \([^)]*\))?)\n")
_NOTE = re.compile(r" {2,}\S.*$|\s+# .*$")


class Block(NamedTuple):
    """`language` is "" for a block without one, and for an indented one."""

    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    for found in _BLOCK.finditer(PAGES[page].read_text("utf-8")):
        text = found["fenced"] if found["fenced"] is not None else found["plain"]
        indent = 4 if found["fenced"] is None else len(found["indent"])
        yield Block(found["language"] or "", re.sub(rf"^ {{{indent}}}", "", text, flags=re.M))


def files(page: str) -> dict[str, str]:
    """What the page shows of files, by path; two of one path differ by a note in brackets."""
    found: dict[str, str] = {}
    for block in blocks(page):
        if match := _PATH.match(block.text):
            assert match[1] not in found, f"{page}: {match[1]} is there twice"
            found[match[1]] = block.text
    return found


def command_lines(page: str) -> list[str]:
    """In the page's order, without what explains them."""
    return [
        _NOTE.sub("", line)
        for block in blocks(page)
        if block.language in ("", "sh")
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.startswith(PROGRAMS) and line.split()[0] in PROGRAMS and "─" not in line
    ]


def variants(line: str) -> list[str]:
    """A line without its optional parts, and with them: `metad gc [--full]` is two commands."""
    without = re.sub(r" *\[[^\]]*\]", "", line)
    whole = line.replace("[", "").replace("]", "")
    return [without] if without == whole else [without, whole]
