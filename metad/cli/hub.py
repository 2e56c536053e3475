"""`metad start`, `metad stop`, `metad reload`, `metad status`."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from metad import __version__, limits
from metad.cli import tables, takeover
from metad.cli.context import F, HubLocation, finite, hub_options, json_option, may_start
from metad.cli.launch import Launch, launch
from metad.cli.progress import Progress
from metad.config.parse import parse, read
from metad.control_client import Client, request
from metad.errors import EX_UNAVAILABLE, MetadError, UnavailableError, UsageError

STOP_SECONDS = 120
LOOK_SECONDS = 0.25
# A hub that is starting, reloading or stopping needs no attention.
_NAGIOS_CODES = {
    "serving": 0, "reloading": 0, "draining": 1, "recovering": 1, "starting": 1, "degraded": 1,
    "refusing": 2,
}  # fmt: skip


class NotStoppedError(MetadError):
    """The hub was told to stop and is still running (exit 69)."""

    exit_code = EX_UNAVAILABLE
    remedy = "metad stop --now does not wait for sessions"


def _port_option(name: str, text: str) -> Callable[[F], F]:
    return click.option(name, type=click.IntRange(0, 65_535), default=0, help=text)


def _file_option(name: str, text: str) -> Callable[[F], F]:
    return click.option(
        name, metavar="FILE", type=click.Path(path_type=Path, readable=False), help=text
    )


@click.command()
@hub_options
@click.option("--detach", is_flag=True, help="Return when the hub is ready; it keeps running.")
@_file_option("--pid-file", "Write the process id of the hub to FILE while it runs.")
@_file_option(
    "--log-file",
    "Append the log to FILE instead of standard error; /dev/log is syslog, facility mail.",
)
@click.option("--dev", is_flag=True, help="A test inbox: temporary data, any recipient.")
@click.option(
    "--accept", multiple=True, metavar="PATTERN",
    help="With --dev: addresses to accept, such as '*@example.test' (default: all).",
)  # fmt: skip
@_port_option("--smtp-port", "With --dev: the SMTP port (default: a free one).")
@_port_option("--pop3-port", "With --dev: the POP3 port (default: a free one).")
def start(place: HubLocation, *, dev: bool, **options: Any) -> int:
    """Run the hub until it is stopped, in the foreground unless --detach is given.

    With --dev it is a test inbox: it takes mail for any address and any password, prints mail as it
    arrives, and removes it at the end.

    \b
    Examples:
      metad start --config /etc/metad/metad.toml --detach
      metad start --dev --accept '*@example.test'
    """
    inbox = [options[name] for name in ("accept", "smtp_port", "pop3_port")]
    if dev:
        from metad.cli import dev as dev_hub

        return dev_hub.run(
            options["accept"], options["smtp_port"], options["pop3_port"], place.given
        )
    if any(inbox):
        raise UsageError("--accept, --smtp-port and --pop3-port belong to --dev")
    may_start(place.config)
    return launch(Launch(place, options["detach"], options["pid_file"], options["log_file"]))


@click.command()
@hub_options
@click.option(
    "--execute", is_flag=True, help="Execute the program again, as after an upgrade of metad."
)
@json_option
def reload(place: HubLocation, execute: bool, as_json: bool) -> None:
    """Reload the configuration and the certificates without dropping a connection.

    The command reads and checks the configuration: the file given by --config, or the one that the
    hub was started with.  If metad has been upgraded since the hub was started, the hub finishes
    its transactions and the new release takes over; no connection is refused meanwhile.

    \b
    Example:
      metad reload
    """
    source, content = read(_source(place))
    config = parse(content, source, place.data)
    # After reading the file, which may be readable only by root.
    data = place.enter()
    text = str(source.absolute()) if source else None
    given = {"content": content, "source": text, "version": __version__, "execute": execute}
    sent = time.monotonic()
    reply = request(data, "reload", limits.RELOAD_TIMEOUT, **given)
    if reply.get("takeover"):
        takeover.wait(data, sent, config.limits.stop_deadline + limits.RELOAD_TIMEOUT,
                      quiet=as_json)  # fmt: skip
        takeover.show(reply["version"], as_json)
        return
    if as_json:
        click.echo(json.dumps({key: reply[key] for key in ("generation", "changed", "kept")}))
        return
    for key, why in reply["kept"].items():
        click.echo(f"metad: warning: {key} needs a restart: {why}", err=True)
    click.echo("reloaded: " + (", ".join(reply["changed"]) or "nothing changed"))


def _source(place: HubLocation) -> Path | None:
    """The file given by --config, or the one with which the hub was started."""
    if place.file is not None:
        return place.file
    named = request(place.data, "status").get("config")
    return Path(named) if isinstance(named, str) else None


@click.command()
@hub_options
@click.option("--now", is_flag=True, help="Do not wait for sessions to finish their transactions.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0.1, 86_400),
    default=STOP_SECONDS,
    callback=finite,
    show_default=True,
    help="How long to wait for the hub to exit.",
)
def stop(place: HubLocation, now: bool, timeout: float) -> None:
    """Stop the hub and wait until it has exited.

    \b
    Example:
      metad stop --timeout 60
    """
    data = place.enter()
    deadline = time.monotonic() + timeout
    with Client(data) as client:
        client.request("stop", now=now)
        gone = _wait_gone(client, timeout)
    if not gone or not wait_unlocked(data / "lock", deadline - time.monotonic()):
        raise NotStoppedError(f"the hub on {data} did not stop within {timeout:g} s")


def _wait_gone(client: Client, seconds: float) -> bool:
    """Whether the hub closed the connection in time."""
    began = time.monotonic()
    progress = Progress("seconds")
    gone = False
    while not gone and (left := began + seconds - time.monotonic()) > 0:
        gone = client.wait_closed(min(left, LOOK_SECONDS))
        progress.show(0, 0, f"waiting for its sessions, at most {left:.0f} s left")
    progress.close()
    return gone


@click.command()
@hub_options
@json_option
@click.option("--check", is_flag=True, help="One line, and the exit code of a Nagios plugin.")
def status(place: HubLocation, as_json: bool, check: bool) -> int | None:
    """Show what the hub is doing; exit code 69 if none is running.

    The state is serving, degraded (something needs a person) or refusing (new mail is refused),
    with the reasons, since when, and what to do.  --check: 0 serving, 1 degraded, 2 refusing or
    not running, 3 unknown.

    \b
    Example:
      metad status --check
    """
    try:
        reply = request(place.enter(), "status")
    except MetadError as error:
        if check:
            return nagios(error)
        if as_json and isinstance(error, UnavailableError):
            click.echo(json.dumps({"running": False}))
        raise
    if check:
        return nagios(reply)
    facts = {"running": True} | {key: value for key, value in reply.items() if key != "ok"}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        show_status(facts)
    return None


def nagios(reply: dict[str, Any] | MetadError) -> int:
    """Print one line and return the exit code of a Nagios plugin."""
    if isinstance(reply, MetadError):
        code, text = (2 if isinstance(reply, UnavailableError) else 3), str(reply)
    else:
        code = _NAGIOS_CODES.get(reply["state"], 3)
        reasons = "; ".join(
            f"{one['problem']} since {_moment(one['since'])}" for one in reply["problems"]
        )
        text = reply["state"] + (f": {reasons}" if reasons else "")
        text += f" | messages={reply['messages']}c refused={reply['refused']}c"
    click.echo(f"METAD {('OK', 'WARNING', 'CRITICAL', 'UNKNOWN')[code]} - {text}")
    return code


def show_status(facts: dict[str, Any]) -> None:
    """Single facts first, then a table for each list of maps."""
    problems = facts.get("problems", [])
    single = {key: value for key, value in facts.items() if not _is_table(value)}
    single.pop("problems", None)
    if isinstance(single.get("since"), int | float):
        single["since"] = _moment(single["since"])
    if isinstance(single.get("uptime"), int | float):
        single["uptime"] = tables.duration(single["uptime"])
    tables.show_facts(single)
    for one in problems:
        for line in _wrapped(f"problem: {one['problem']} (since {_moment(one['since'])})"):
            click.echo(line)
        for line in _wrapped(f"  to do: {one['remedy']}"):
            click.echo(line)
    for key, value in facts.items():
        if _is_table(value) and key != "problems":
            click.echo()
            tables.show_table(key, [_for_people(one) for one in value])


def _for_people(row: dict[str, Any]) -> dict[str, Any]:
    """On a terminal, without columns that repeat the facts, so that 80 columns are enough."""
    left_out = ("landlock",) if tables.terminal() else ()
    return {key: value for key, value in row.items() if key not in left_out}


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _wrapped(text: str) -> list[str]:
    """Within 80 columns; what follows the first line is indented."""
    return textwrap.wrap(text, 79, subsequent_indent=" " * 9, drop_whitespace=True)


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def wait_unlocked(path: Path, seconds: float) -> bool:
    """Wait up to `seconds` for the lock on `path` to be released.  Returns whether it was.

    The hub's processes hold it until the last of them exits.  The kernel wakes us; an alarm ends
    the wait.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        with _alarm(max(seconds, 0.001)):
            fcntl.flock(fd, fcntl.LOCK_SH)
    except TimeoutError:
        return False
    finally:
        os.close(fd)
    return True


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
