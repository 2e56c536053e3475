"""Facts and tables for people: drawn by rich on a terminal, otherwise plain and tab-separated."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import click

LINES = 1000  # written at once
INDENT = 4
_SPACE = "\u00a0"  # where no line breaks


def terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def show_facts(facts: Mapping[str, Any]) -> None:
    """One "key: value" per line."""
    width = max(map(len, facts), default=0) + 1
    for key, value in facts.items():
        label = f"{key}:"
        click.echo(f"{label:<{width}} {cell(value)}")


def show_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if terminal():
        _draw(title, columns, rows)
        return
    click.echo("\t".join(columns))
    for row in rows:
        click.echo("\t".join(cell(row.get(column)) for column in columns))


def show_records(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Like `show_table`, for rows that are too wide for a terminal: there the first column has a
    line of its own, so that an id can be copied whole."""
    if not terminal():
        show_table(title, rows)
        return
    width = max(shutil.get_terminal_size().columns, INDENT * 4)
    for row in rows:
        (_, name), *others = row.items()
        click.echo(cell(name))
        facts = [f"{key.replace('_', ' ')}: {cell(value)}" for key, value in others]
        text = ", ".join(one.replace(" ", _SPACE) for one in facts)
        for line in textwrap.wrap(text, width - INDENT, break_on_hyphens=False):
            click.echo(f"{'':{INDENT}}{line.replace(_SPACE, ' ')}")


def _draw(title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    # Imported here: importing rich takes longer than most commands run.
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    # Narrow: eleven columns fit into 80 characters, and headings break between words.
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for column in columns:
        numbers = all(isinstance(row.get(column), int | float | None) for row in rows)
        heading = escape(column.replace("_", " "))
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell(row.get(column))) for column in columns))
    Console().print(table)


def cell(value: object) -> str:
    """A value as text, without terminal control sequences."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value)) or "-"
    if isinstance(value, dict):
        return " ".join(f"{key}={cell(one)}" for key, one in value.items())
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text if text.isprintable() else ascii(text)[1:-1]


def duration(seconds: float) -> str:
    """1 d 2 h 3 min 4 s, without leading zeros."""
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts or unit == "s":
            parts.append(f"{count} {unit}")
    return " ".join(parts)


def write_lines(lines: Iterable[str]) -> None:
    """Lines in large pieces: a million of them must not take a system call each."""
    source = iter(lines)
    while piece := list(islice(source, LINES)):
        sys.stdout.write("\n".join(piece) + "\n")


def print_array(items: Any) -> None:
    """One JSON array, written piece by piece: a million users need no memory."""
    separator = "[\n"
    source = iter(items)
    while piece := list(islice(source, LINES)):
        lines = ",\n".join([json.dumps(item, ensure_ascii=False) for item in piece])
        sys.stdout.write(separator + lines)
        separator = ",\n"
    sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")
