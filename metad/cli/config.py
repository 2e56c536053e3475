"""`metad config show | get | check`: the configuration as the hub reads it."""

from __future__ import annotations

import json
import textwrap
import tomllib
from collections.abc import Iterator
from typing import Any

import click

from metad import filters, layers, limits
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.preflight import preflight
from metad.config.checks import show_value, shown
from metad.config.effective import effective
from metad.config.setting import Setting
from metad.config.settings import DEFAULT_LISTEN, SETTINGS
from metad.errors import EX_CONFIG, EX_OK, UsageError
from metad.workers.memory import MemoryBound, memory_bound


@click.group(no_args_is_help=False)
def config() -> None:
    """Show and check the configuration.

    \b
    Example:
      metad config show
    """


@config.command()
@hub_options
@click.option(
    "--defaults", is_flag=True, help="Show all settings with their defaults and meanings."
)
@click.option(
    "--running", is_flag=True, help="Show what the running hub uses, and where the file differs."
)
@json_option
def show(place: HubLocation, defaults: bool, running: bool, as_json: bool) -> None:
    """Show the effective configuration as a TOML file, and the maximum memory of its workers.

    With --running it is that of the running hub, with passwords and the like hidden; what the file
    says now and the hub does not use yet follows.

    \b
    Example:
      metad config show --running
    """
    if defaults and running:
        raise UsageError("--defaults and --running exclude each other")
    if running:
        from metad.cli import running_config

        running_config.show(place, as_json=as_json)
        return
    if defaults:
        lines = [*sample()]
        facts = {}
    else:
        lines = [*effective(place.config)]
        most = memory_bound(place.config)
        facts = {"memory": {**most._asdict(), "worker": most.worker, "total": most.total}}
        lines += ["", *_memory(most)]
    if as_json:
        click.echo(json.dumps(tomllib.loads("\n".join(lines)) | facts, indent=2))
    else:
        click.echo("\n".join(lines))


def _memory(most: MemoryBound) -> Iterator[str]:
    def mebibytes(octets: int) -> str:
        return f"{-(-octets // limits.MIB):,} MiB"

    yield f"# Maximum memory of all workers, whatever clients do: {mebibytes(most.total)}."
    yield (
        f"# {most.workers} workers of {mebibytes(most.worker)} each: the program "
        f"{mebibytes(most.program)}, limits.memory {mebibytes(most.clients)},"
    )
    yield (
        f"# the group being committed {mebibytes(most.group)}, messages being sent "
        f"{mebibytes(most.reading)}, remembered logins and networks {mebibytes(most.remembered)},"
    )
    if most.filters:
        yield f"# messages being checked {mebibytes(most.filters)},"
    yield f"# {most.connections:,} connections of {most.connection // limits.KIB:,} KiB each."


def _keys() -> dict[str, Setting]:
    """What `get` prints: every setting that there is once."""
    return {
        f"{one.table}.{one.name}".removeprefix("."): one
        for one in SETTINGS
        if one.table not in {"listen", "domain"}
    }


def _completed(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """For the shell's completion."""
    return [key for key in _keys() if key.startswith(begun)]


@config.command()
@click.argument("key", shell_complete=_completed)
@hub_options
@json_option
def get(place: HubLocation, key: str, as_json: bool) -> None:
    """Print one effective setting.

    \b
    Example:
      metad config get limits.message_size
    """
    setting = _keys().get(key)
    if setting is None:
        raise UsageError(
            f"{key}: no such setting", remedy="metad config show --defaults lists them"
        )
    table = getattr(place.config, setting.table) if setting.table else place.config
    value = getattr(table, setting.name)
    value = None if value is None else shown(setting.check, value)
    text = "" if value is None else _plain(value)
    click.echo(json.dumps({"key": key, "value": value}) if as_json else text)


def _plain(value: Any) -> str:
    """As a shell wants it: no quotes; a list one to a line."""
    if isinstance(value, (list, tuple)):
        return "\n".join(map(str, value))
    return str(value) if isinstance(value, str) else show_value(value)


@config.command()
@hub_options
@json_option
def check(place: HubLocation, as_json: bool) -> int:
    """Check the configuration, and whether a hub could start with it on this machine.

    It looks at the user, the data directory, certificates and ports.  Exit code 78 if the hub would
    not start; warnings do not count.

    \b
    Example:
      metad config check --config /etc/metad/metad.toml
    """
    source = place.config.source
    layers.check(place.config)
    filters.check(place.config)
    findings = list(preflight(place.config))
    fatal = any(one.fatal for one in findings)
    if as_json:
        facts = {"source": str(source) if source else None, "ok": not fatal}
        click.echo(json.dumps(facts | {"findings": [one._asdict() for one in findings]}, indent=2))
        return EX_CONFIG if fatal else EX_OK
    for finding in findings:
        click.echo(f"metad: {'error' if finding.fatal else 'warning'}: {finding.line}", err=True)
    if fatal:
        return EX_CONFIG
    click.echo(f"{source}: OK" if source else "no configuration file: the defaults apply")
    return EX_OK


def sample() -> Iterator[str]:
    """The lines of a TOML file with every setting, its text and its default."""
    table = ""
    for setting in SETTINGS:
        if setting.table != table:
            table = setting.table
            yield from ("", *_sample_head(table))
        yield from textwrap.wrap(setting.doc, 96, initial_indent="# ", subsequent_indent="# ")
        yield _sample_line(setting)


def _sample_line(setting: Setting) -> str:
    """The keys of a listener are comments: each table has its own values."""
    if setting.default is None:
        return f"# {setting.name} ="
    line = f"{setting.name} = {show_value(setting.default)}"
    return f"# {line}" if setting.table == "listen" else line


def _sample_head(table: str) -> Iterator[str]:
    if table == "listen":
        return _sample_listeners()
    return iter(["# [[domain]]" if table == "domain" else f"[{table}]"])


def _sample_listeners() -> Iterator[str]:
    for listener in DEFAULT_LISTEN:
        yield "[[listen]]"
        yield from (f"{key} = {show_value(value)}" for key, value in listener.items())
