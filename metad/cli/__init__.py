"""The command line.  `main` is the entry point; there is a file per noun.

Rules of this file:

* Bad input never causes a traceback: it causes one line on standard error, "metad: fatal: WHERE:
  WHAT (WHAT TO DO NEXT)", and the exit code of the error (sysexits.h): see metad.errors.
* A traceback (exit 70) means a bug in metad, and is shown in full.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence

import click

from metad import __version__
from metad.cli.lazy import LazyGroup
from metad.cli.progress import tell_silence
from metad.control_client import Client
from metad.errors import (
    EX_OK,
    EX_OSERR,
    EX_SOFTWARE,
    EX_USAGE,
    DataError,
    MetadError,
    UsageError,
    remedy_for,
)
from metad.system.systemd import priority, to_journal

COMPLETE = "_METAD_COMPLETE"
EX_INTERRUPTED = 130  # 128 + SIGINT, like shells
COMMANDS = {
    "cluster": "cluster.cluster:group",
    "config": "config:config",
    "doctor": "doctor.doctor:doctor",
    "fsck": "fsck:fsck",
    "gc": "gc:gc",
    "kick": "sessions:kick",
    "mail": "mail.mail:mail",
    "reload": "hub:reload",
    "start": "hub:start",
    "status": "hub:status",
    "stop": "hub:stop",
    "store": "store:group",
    "tls": "tls:group",
    "top": "top:top",
    "trace": "trace:trace",
    "user": "user.users:user",
    "who": "sessions:who",
}


@click.group(
    cls=LazyGroup,
    places=COMMANDS,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="metad %(version)s")
def command() -> None:
    """A mail hub: receives mail by SMTP, stores it durably, serves it by POP3.

    \b
    Example:
      metad start --dev
    """


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def version(as_json: bool) -> None:
    """Show the version.

    \b
    Example:
      metad version
    """
    click.echo(json.dumps({"version": __version__}) if as_json else f"metad {__version__}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.  Returns the exit code.  Bad arguments never raise."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    Client.tell_silence = staticmethod(tell_silence)
    try:
        code = _run(given)
        sys.stdout.flush()
    except MetadError as error:
        if not error.remedy and isinstance(error, UsageError | DataError):
            error.remedy = f"try {_path(given)} --help"
        return _fatal(error.line, error.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "metad"
        return _fatal(f"{_lower(error.format_message())} (try {where} --help)", EX_USAGE)
    except click.ClickException as error:
        return _fatal(f"{_lower(error.format_message())} (try {_path(given)} --help)", EX_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return EX_INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _fatal(f"{place}{error.strerror or error} ({remedy_for(error)})", EX_OSERR)
    except Exception:
        traceback.print_exc()
        return EX_SOFTWARE
    return code if isinstance(code, int) else EX_OK


def _run(arguments: list[str]) -> object:
    """Returns the command's result.  Click's own `main` would exit with its own codes."""
    if instruction := os.environ.get(COMPLETE):
        return _complete(instruction)
    try:
        with command.make_context("metad", arguments) as context:
            return command.invoke(context)
    except click.exceptions.Exit as ended:  # --help and --version
        return ended.exit_code


def _path(arguments: Sequence[str]) -> str:
    """The words that name the command: "metad user add"."""
    found: click.Command = command
    words = ["metad"]
    for one in arguments:
        inner = None
        if isinstance(found, click.Group):
            inner = found.get_command(click.Context(found), one)
        if inner is None:
            break
        words.append(one)
        found = inner
    return " ".join(words)


def _complete(instruction: str) -> int:
    """Answers the shell when the user presses Tab (packaging/completion)."""
    from click.shell_completion import shell_complete

    return shell_complete(command, {}, "metad", COMPLETE, instruction)


def _fatal(text: str, code: int) -> int:
    # One line, whatever a name in it contains, without terminal control sequences.
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    mark = priority("fatal:") if to_journal() else ""
    click.echo(f"{mark}metad: fatal: {shown}", err=True)
    return code


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _reader_gone() -> int:
    """`metad user list | head`: the pipe is closed, and Python must not complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EX_OK
