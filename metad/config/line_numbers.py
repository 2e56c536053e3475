"""The line of a key in a TOML file, for errors: tomllib reports it only for syntax errors.

Rules of this file:

* A small scan, not a parser: it runs only on a file that tomllib has read without an error.
* A key that it does not find gets the line of its table, or none.
"""

from __future__ import annotations

import re

_HEADER = re.compile(r"\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)'|([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*))\s*=")


def find_line(content: str, key: str) -> int | None:
    """The line of `key` ("workers", "store.workers", "listen[2].address"), from 1."""
    lines = _lines(content)
    table = key.rpartition(".")[0]
    for place in (key, table, table.partition("[")[0], key.partition("[")[0]):
        if place in lines:
            return lines[place]
    return None


def _lines(content: str) -> dict[str, int]:
    """The first line of every key and table; tables of a list are listen[1], listen[2]."""
    lines: dict[str, int] = {}
    numbers: dict[str, int] = {}
    table = ""
    for number, line in enumerate(content.split("\n"), 1):
        header = _HEADER.fullmatch(line.rstrip())
        if header:
            bracket, table = header.groups()
            if bracket == "[[":
                numbers[table] = numbers.get(table, 0) + 1
                table = f"{table}[{numbers[table]}]"
            lines.setdefault(table, number)
        elif found := _KEY.match(line):
            name = next(group for group in found.groups() if group is not None)
            lines.setdefault(f"{table}.{name}" if table else name, number)
            if not table:
                lines.setdefault(name.partition(".")[0], number)
    return lines
