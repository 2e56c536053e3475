"""Every command of metad's, found by walking the groups."""

from __future__ import annotations

from collections.abc import Iterator

import click

from metad.cli import command as root


def every() -> Iterator[tuple[str, click.Command, click.Context]]:
    """The words of a command ("mail list"; "" for metad itself), the command and its context."""
    context = click.Context(root, info_name="metad", **root.context_settings)
    yield from _below("", root, context)


def _below(
    path: str, one: click.Command, context: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    yield path, one, context
    if isinstance(one, click.Group):
        for name in one.list_commands(context):
            inner = one.get_command(context, name)
            assert inner is not None
            below = click.Context(inner, info_name=name, parent=context, **inner.context_settings)
            yield from _below(f"{path} {name}".lstrip(), inner, below)


COMMANDS = {path: one for path, one, _ in every()}
WITH_JSON = sorted(
    path for path, one in COMMANDS.items() if any("--json" in each.opts for each in one.params)
)
