"""`metad config show --running`: what a hub uses, and what its file says now."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from metad.cli.context import HubLocation
from metad.config.checks import show_value
from metad.config.effective import effective
from metad.config.parse import parse, read
from metad.control_client import request
from metad.errors import MetadError

_NONE = object()


def show(place: HubLocation, *, as_json: bool) -> None:
    """Print it.  Raises UnavailableError if no hub is running."""
    # As the caller, like a reload: the file may be root's.
    data = place.given or place.data  # a bad file must not hide the running configuration
    reply = request(data, "config")
    source = reply["source"]
    running: dict[str, Any] = tomllib.loads(reply["toml"])
    problem = ""
    differences: list[tuple[str, Any, Any]] = []
    try:
        path = place.file or (Path(source) if source else None)
        file, content = read(path)
        given = parse(content, file, data)
        now = tomllib.loads("\n".join(effective(given, hide=True)))
        differences = list(compare(running, now))
    except MetadError as error:
        problem = str(error)
    if as_json:
        facts = {
            "running": running,
            "source": source,
            "differs": {
                one[0]: {"running": _plain(one[1]), "file": _plain(one[2])} for one in differences
            },
            "problem": problem or None,
        }
        click.echo(json.dumps(facts, indent=2))
        return
    click.echo(f"# running since its last start or reload, from {source or 'the defaults'}")
    click.echo(reply["toml"])
    for line in _remarks(differences, problem):
        click.echo(line)


def _plain(value: Any) -> Any:
    return None if value is _NONE else value


def compare(running: Any, file: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each setting that differs: its key and both values; `_NONE` if one has none."""
    if isinstance(running, dict) and isinstance(file, dict):
        for name in dict.fromkeys([*running, *file]):
            inner = f"{key}.{name}" if key else name
            yield from compare(running.get(name, _NONE), file.get(name, _NONE), inner)
    elif _is_tables(running) and _is_tables(file):
        for at in range(max(len(running), len(file))):
            mine = running[at] if at < len(running) else _NONE
            its = file[at] if at < len(file) else _NONE
            yield from compare(mine, its, f"{key}[{at + 1}]")
    elif running != file:
        yield key, running, file


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _remarks(differences: list[tuple[str, Any, Any]], problem: str) -> Iterator[str]:
    yield ""
    if problem:
        yield f"# the file cannot be compared: {problem}"
    elif not differences:
        yield "# the file says the same"
    else:
        yield "# The file says otherwise (metad reload applies it, and names what needs a restart):"
        for key, mine, its in differences:
            yield f"#   {key}: {_shown(mine)} here, {_shown(its)} in the file"


def _shown(value: Any) -> str:
    if value is _NONE:
        return "not set"
    return json.dumps(value) if isinstance(value, dict) else show_value(value)
