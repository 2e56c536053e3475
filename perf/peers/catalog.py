"""The compared servers, by name: requirements, and how each is started.

A peer that is unavailable on this machine is reported with the reason, and left out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from perf import harness
from perf.harness import HarnessError, HubOptions
from perf.peers.account import Account
from perf.peers.peer import (
    HERE,
    PASSWORD,
    Peer,
    files_below,
    install,
    maildir_count,
    mbox_count,
    started,
    stat_count,
)
from perf.peers.peer import entering as enter
from perf.state import STATE

USERS = tuple(f"user{number}@perf.example" for number in range(10))
SMALL = tuple(f"small{number}@perf.example" for number in range(20))
LARGE = tuple(f"large{number}@perf.example" for number in range(20))
EMPTY = tuple(f"empty{number}@perf.example" for number in range(20))
LEFT = ("left@perf.example",)
ALL = (*USERS, *SMALL, *LARGE, *EMPTY, *LEFT)
WORKERS = 2

Start = Callable[[str, Path], AbstractContextManager[Peer]]


@dataclass(frozen=True, slots=True)
class Kind:
    """`title` goes into tables.  `loads`: names of SMTP loads; empty: all."""

    title: str
    start: Start
    loads: tuple[str, ...] = ()
    lmtp: bool = False  # measured through its LMTP port
    smtp: bool = True
    pop3: bool = False
    smallest: int = 200  # messages of a turn
    has_left: bool = False  # also polled with many messages left on the server


def _prepare(where: Path) -> None:
    where.mkdir(mode=0o755, exist_ok=True)
    (where / "users").write_text("".join(f"{user}\n" for user in ALL))


@contextlib.contextmanager
def _account(name: str) -> Iterator[Account]:
    account = Account(name)
    try:
        yield account
    finally:
        account.close()


@contextlib.contextmanager
def metad(name: str, where: Path, layer: str = "log", more: str = "") -> Iterator[Peer]:
    _prepare(where)
    options = HubOptions(WORKERS, layer, ALL, more=more)
    with _account(name) as account, harness.hub(where, options) as hub:
        account.adopt(hub)
        stored = (lambda: stat_count(hub.pop3, USERS)) if layer == "log" else None
        yield Peer(name, account, where, smtp=hub.smtp, pop3=hub.pop3, delivered=stored)


@contextlib.contextmanager
def smtp_sink(name: str, where: Path) -> Iterator[Peer]:
    tool = harness.find_tool("smtp-sink") or harness.find_tool(
        "smtp-sink", STATE / "roots" / "postfix" / "upper"
    )
    if tool is None:
        raise HarnessError("smtp-sink is part of Postfix, which is not there")
    _prepare(where)
    with _account(name) as account, harness.sink(tool, where) as server:
        account.adopt(server)
        yield Peer(name, account, where, smtp=server.smtp)


@contextlib.contextmanager
def _debian(
    name: str, script: str, where: Path, environment: dict[str, int | str]
) -> Iterator[Peer]:
    """A peer of Debian's packages in a root of its own; its ports are in the environment."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise HarnessError("needs root and Debian's packages")
    _prepare(where)
    install(script, where)
    ports = {key: int(value) for key, value in environment.items() if key.endswith("_PORT")}
    mine = [port for key, port in ports.items() if not (script == "postfix" and key == "LMTP_PORT")]
    settings = {key: str(value) for key, value in environment.items()} | {"PASSWORD": PASSWORD}
    log = where / "server.log"
    with (
        _account(name) as account,
        started(account, enter(script, where, "run"), settings, mine, log),
    ):
        yield Peer(
            name,
            account,
            where,
            smtp=ports.get("SMTP_PORT", 0),
            pop3=ports.get("POP3_PORT", 0),
            lmtp=ports.get("LMTP_PORT", 0),
        )


def _queued(peer: Peer, queue: str, mail: Callable[[Path], int] = maildir_count) -> Peer:
    peer.undelivered = lambda: files_below(peer.data / queue)
    peer.delivered = lambda: mail(peer.data / "mail")
    return peer


@contextlib.contextmanager
def postfix(name: str, where: Path) -> Iterator[Peer]:
    (port,) = harness.free_ports(1)
    with _debian(name, "postfix", where, {"SMTP_PORT": port}) as peer:
        peer.undelivered = lambda: _postfix_queue(where)
        peer.delivered = lambda: maildir_count(where / "mail")
        yield peer


def _postfix_queue(where: Path) -> int:
    names = ("maildrop", "incoming", "active", "deferred")
    return sum(files_below(where / "queue" / name) for name in names)


@contextlib.contextmanager
def dovecot(name: str, where: Path, form: str = "mdbox") -> Iterator[Peer]:
    lmtp, pop3 = harness.free_ports(2)
    ports: dict[str, int | str] = {"LMTP_PORT": lmtp, "POP3_PORT": pop3, "FORMAT": form}
    with _debian(name, "dovecot", where, ports) as peer:
        peer.delivered = lambda: stat_count(pop3, USERS)
        yield peer


def dovecot_maildir(name: str, where: Path) -> AbstractContextManager[Peer]:
    return dovecot(name, where, "maildir")


@contextlib.contextmanager
def postfix_dovecot(name: str, where: Path) -> Iterator[Peer]:
    """Both in one account: their total cost."""
    _prepare(where)
    (port,) = harness.free_ports(1)
    with dovecot(f"{name}-store", where / "dovecot", "maildir") as store:
        settings: dict[str, int | str] = {"SMTP_PORT": port, "LMTP_PORT": store.lmtp}
        with _debian(name, "postfix", where / "postfix", settings) as peer:
            peer.account.join(store.account)
            peer.undelivered = lambda: _postfix_queue(where / "postfix")
            peer.delivered = lambda: stat_count(store.pop3, USERS)
            yield peer


@contextlib.contextmanager
def opensmtpd(name: str, where: Path) -> Iterator[Peer]:
    (port,) = harness.free_ports(1)
    with _debian(name, "opensmtpd", where, {"SMTP_PORT": port}) as peer:
        yield _queued(peer, "spool/queue")


@contextlib.contextmanager
def sendmail(name: str, where: Path) -> Iterator[Peer]:
    (port,) = harness.free_ports(1)
    with _debian(name, "sendmail", where, {"SMTP_PORT": port}) as peer:
        yield _queued(peer, "mqueue", mbox_count)


def _fetched(command: list[str], made: Path) -> None:
    """Runs a package manager unless its result exists."""
    if made.exists():
        return
    if shutil.which(command[0]) is None:
        raise HarnessError(f"{command[0]} is not there")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise HarnessError(f"{command[0]}: {done.stderr[-800:]}")


@contextlib.contextmanager
def haraka(name: str, where: Path) -> Iterator[Peer]:
    """From npm; with a plugin that stores durably, since Haraka itself has no mailboxes."""
    home = STATE / "haraka"
    made = home / "node_modules" / "Haraka" / "bin" / "haraka"
    install_it = ["npm", "install", "--prefix", str(home), "--no-audit", "--no-fund"]
    _fetched([*install_it, "--ignore-scripts", "Haraka"], made)
    if shutil.which("node") is None:
        raise HarnessError("node is not there")
    _prepare(where)
    (port,) = harness.free_ports(1)
    for part in ("config", "plugins", "mail"):
        (where / part).mkdir()
    config = where / "config"
    shutil.copy(made.parents[1] / "config" / "connection.ini", config)
    (config / "smtp.ini").write_text(f"listen=127.0.0.1:{port}\nnodes={WORKERS}\n")
    (config / "plugins").write_text("perf_maildir\n")
    (config / "me").write_text("mx.perf.example\n")
    (config / "log.ini").write_text("[main]\nlevel=error\n")
    shutil.copy(HERE / "haraka_maildir.js", where / "plugins" / "perf_maildir.js")
    mail = where / "mail"
    environment = {"PERF_MAIL": str(mail), "PERF_USERS": str(where / "users")}
    command = ["node", str(made), "-c", str(where)]
    with _account(name) as account, started(account, command, environment, [port], where / "log"):
        delivered = lambda: maildir_count(mail)  # noqa: E731
        yield Peer(name, account, where, smtp=port, delivered=delivered)


@contextlib.contextmanager
def aiosmtpd(name: str, where: Path) -> Iterator[Peer]:
    """From PyPI, with its own handler for Maildirs."""
    home = STATE / "aiosmtpd"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(home), "aiosmtpd"]
    _fetched(pip, home / "aiosmtpd")
    _prepare(where)
    mail = where / "mail"
    mail.mkdir()
    (port,) = harness.free_ports(1)
    command = [sys.executable, str(HERE / "aiosmtpd_mailbox.py"), str(port), str(mail)]
    environment = {"PYTHONPATH": str(home)}
    with _account(name) as account, started(account, command, environment, [port], where / "log"):
        delivered = lambda: maildir_count(mail)  # noqa: E731
        yield Peer(name, account, where, smtp=port, delivered=delivered)


@contextlib.contextmanager
def constants(name: str, where: Path, *, syncs: bool = False) -> Iterator[Peer]:
    """Not a peer but a bound; it needs nothing beyond metad's requirements."""
    _prepare(where)
    (port,) = harness.free_ports(1)
    command = [sys.executable, "-m", "perf.peers.constants", str(port), str(WORKERS)]
    command += [str(where)] * syncs
    environment = {"PYTHONPATH": str(harness.TOP)}
    with _account(name) as account, started(account, command, environment, [port], where / "log"):
        yield Peer(name, account, where, smtp=port)


def syncing_constants(name: str, where: Path) -> AbstractContextManager[Peer]:
    return constants(name, where, syncs=True)


def sessions_alone(name: str, where: Path) -> AbstractContextManager[Peer]:
    """metad's own sessions with a store that costs nothing and keeps nothing."""
    return metad(name, where, "null")


def without_sync(name: str, where: Path) -> AbstractContextManager[Peer]:
    return metad(name, where, more="sync = false\n")


PLAIN = ("1", "20", "100", "50 KB", "per mail")  # not pipelined
KINDS = {
    "metad": Kind("metad", metad, pop3=True, has_left=True),
    "constants": Kind("bound: uvloop, constant answers", constants),
    "syncs": Kind("bound: constant answers, one sync for a turn's messages", syncing_constants),
    "sessions": Kind("metad without a store", sessions_alone),
    "no-sync": Kind("metad without syncs", without_sync),
    "smtp-sink": Kind("smtp-sink (stores nothing)", smtp_sink),
    "postfix": Kind("Postfix, Maildir", postfix),
    "postfix-dovecot": Kind("Postfix + Dovecot LMTP", postfix_dovecot),
    # It refuses a command in one write with the end of a message, which RFC 2920 allows.
    "haraka": Kind("Haraka, Maildir + fsync", haraka, loads=PLAIN),
    "aiosmtpd": Kind("aiosmtpd, Mailbox", aiosmtpd, loads=PLAIN),
    "dovecot-mdbox": Kind("Dovecot LMTP, mdbox", dovecot, lmtp=True, pop3=True, has_left=True),
    "dovecot-maildir": Kind("Dovecot, Maildir", dovecot_maildir, smtp=False, pop3=True, lmtp=True),
    # Its listen backlog of 5 makes more clients at once wait for seconds.
    "opensmtpd": Kind("OpenSMTPD", opensmtpd, loads=("1",)),
    # Two deliveries into one mbox at a time defer one of them to the next run of the queue.
    "sendmail": Kind("sendmail", sendmail, loads=("1",), smallest=40),
}
