"""Carrying out what a client of the control socket asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metad.control import Connection
from metad.errors import MetadError


def carry_out(
    connection: Connection,
    request: dict[str, Any],
    command: Callable[[Connection, dict[str, Any]], None],
    report: Callable[[str], None],
) -> None:
    """Call `command`, and reply with its error if it fails."""
    try:
        command(connection, request)
    except MetadError as error:
        connection.reply_error(error)
    except Exception as error:  # a bug must not let a command end the hub
        report(f"warning: {request['command']}: {error!r}")
        failure = MetadError(f"internal error: {error!r}", remedy="the hub's log says where")
        connection.reply_error(failure)
