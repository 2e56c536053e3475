"""`metad start --dev`: a test inbox in one command, until Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import click

from metad.errors import EX_OSERR, MetadError
from metad.system.held_signals import ENDING, held_signals
from metad.testing import Hub, HubError


def run(accept: tuple[str, ...], smtp_port: int, pop3_port: int, data: Path | None) -> int:
    """Start a hub that takes any mail, and print the mail as it arrives.  Returns the exit code."""
    hub = Hub(accept=accept or ("*@*",), ports=(smtp_port, pop3_port), data=data)
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _interrupt)
    try:
        _serve(hub)
    except HubError as error:
        raise _failure(error) from None
    except KeyboardInterrupt:
        pass
    return 0


def _serve(hub: Hub) -> None:
    """Until a signal comes.  What was started ends then; another signal changes nothing."""
    try:
        hub.start()
        click.echo(f"SMTP  {hub.smtp.host}:{hub.smtp.port}")
        click.echo(f"POP3  {hub.pop3.host}:{hub.pop3.port}   any user, any password")
        click.echo("Mail is printed as it arrives.  Ctrl-C stops the hub and removes the mail.")
        sys.stdout.flush()
        _print_mail(hub)
    finally:
        hub.stop()


def _failure(error: HubError) -> MetadError:
    """The hub's own error, with its exit code, if it gave one."""
    last = str(error).rstrip().rpartition("\n")[2]
    found = MetadError(last.rpartition("metad: fatal: ")[2])
    code = error.exit_code or 0
    found.exit_code = code if code > 0 else EX_OSERR
    return found


def _print_mail(hub: Hub) -> None:
    """`metad mail tail` in a separate process: it may have to become the hub's user."""
    command = [sys.executable, "-m", "metad", "mail", "tail", "--all", *hub.options]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with held_signals():
            started.append(subprocess.Popen(command, start_new_session=True))  # not its Ctrl-C
        started[0].wait()
    finally:
        for tail in started:
            tail.terminate()
            tail.wait()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
