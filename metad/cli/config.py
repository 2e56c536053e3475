"""`metad config show | check`: the configuration as the hub would take it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import click

from metad.cli.context import Place, hub_options
from metad.config import DEFAULT_LISTEN, SETTINGS, Config, Listener, StoreConfig
from metad.settings import Setting, show_size, show_value

_SIZES = {"store.log_size", "store.size_limit", "limits.message_size"}


@click.group(no_args_is_help=False)
def config() -> None:
    """Show and check the configuration."""


@config.command()
@hub_options
@click.option("--defaults", is_flag=True, help="All settings with their defaults, explained.")
def show(place: Place, defaults: bool) -> None:
    """Show the configuration in force, as a file that says the same."""
    for line in sample() if defaults else effective(place.config):
        click.echo(line)


@config.command()
@hub_options
def check(place: Place) -> None:
    """Check the configuration: exit code 78 and the reason if it is bad."""
    source = place.config.source
    click.echo(f"{source}: good" if source else "no configuration file: the defaults")


def effective(loaded: Config) -> Iterator[str]:
    """The lines of a TOML file that gives `loaded`."""
    yield from _table("", loaded)
    for listener in loaded.listen:
        yield from ("", "[[listen]]", *_table("listen", listener))
    for name in ("store", "limits", "smtp", "pop3"):
        yield from ("", f"[{name}]", *_table(name, getattr(loaded, name)))


def _table(name: str, values: Config | Listener | StoreConfig) -> Iterator[str]:
    for setting in SETTINGS:
        if setting.table == name:
            value = getattr(values, setting.name)
            if value is not None:
                yield f"{setting.name} = {_shown(setting, value)}"


def _shown(setting: Setting, value: Any) -> str:
    return show_value(show_size(value) if setting.key in _SIZES else value)


def sample() -> Iterator[str]:
    """The lines of a TOML file with every setting, its text and its default."""
    table = ""
    for setting in SETTINGS:
        if setting.table != table:
            table = setting.table
            yield from ("", *(_sample_listeners() if table == "listen" else [f"[{table}]"]))
        yield from textwrap.wrap(setting.doc, 96, initial_indent="# ", subsequent_indent="# ")
        yield _sample_line(setting)


def _sample_line(setting: Setting) -> str:
    """A listener's keys are only explained: each table has its own."""
    if setting.default is None:
        return f"# {setting.name} ="
    line = f"{setting.name} = {show_value(setting.default)}"
    return f"# {line}" if setting.table == "listen" else line


def _sample_listeners() -> Iterator[str]:
    for listener in DEFAULT_LISTEN:
        yield "[[listen]]"
        yield from (f"{key} = {show_value(value)}" for key, value in listener.items())
