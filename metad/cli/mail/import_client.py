"""Sending messages to a worker's import socket; without a running hub, one is started for it.

Rules of this file:

* Without a running hub, one without listeners is started and stopped again: there is one way into a
  log, and one way to recover a log.
* A message counts as stored only when its reply has arrived.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from metad.cli.mail.foreign import Foreign
from metad.cli.mail.mailstore import hub_runs
from metad.config.model import Config
from metad.control import short_path
from metad.control_client import heard
from metad.errors import (
    EX_SOFTWARE,
    EX_TEMPFAIL,
    MetadError,
    TemporaryError,
    UnavailableError,
)
from metad.protocol.dots import END_LINE, Stuffer
from metad.system import privileges

SECONDS = 120.0
# Messages and octets that may be sent without a reply.
MESSAGES, OCTETS = 64, 4 << 20
_READ = 64 << 10
_READY = b"R"
_AGAIN = "run the import again: it skips what is there already"


class Refusal(NamedTuple):
    """A message that was not stored.  `remedy`: None if trying again does not help."""

    place: str
    why: str
    remedy: str | None

    def __str__(self) -> str:
        return f"{self.place}: {self.why}"


def sorted_out(refused: Sequence[Refusal]) -> tuple[list[str], TemporaryError | None]:
    """(What is wrong with messages that never will be stored, the error that says why others were
    deferred.)"""
    bad = [str(one) for one in refused if one.remedy is None]
    deferred = [one for one in refused if one.remedy is not None]
    if not deferred:
        return bad, None
    first = deferred[0]
    more = f"{len(deferred):,} messages deferred, the first: " if len(deferred) > 1 else ""
    return bad, TemporaryError(f"{more}{first}", remedy=first.remedy or "")


class ImportClient:
    """A connection to a worker's import socket.  Raises UnavailableError.

    `again`: what to do if the hub ends before everything is stored.
    """

    def __init__(self, data: Path, again: str = _AGAIN) -> None:
        self._hub = f"the hub on {data}"
        self._again = again
        self._socket = _connect(data)
        self._input = bytearray()
        self._waiting: deque[tuple[Foreign, int]] = deque()
        self._octets = 0
        self.stored = 0
        self.refused: list[Refusal] = []

    def close(self) -> None:
        self._socket.close()

    def put(self, mailbox: int, message: Foreign) -> None:
        """Send a message; replies to earlier ones are read as needed."""
        wire = Stuffer().feed(message.octets) + END_LINE
        announced: dict[str, Any] = {
            "mailbox": mailbox, "address": message.address, "sender": message.sender,
            "uid": message.uid, "time_us": message.time_us, "size": len(wire),
        }  # fmt: skip
        while self._waiting and (
            len(self._waiting) >= MESSAGES or self._octets + len(wire) > OCTETS
        ):
            self._read_reply()
        try:
            self._socket.sendall(json.dumps(announced).encode() + b"\n" + wire)
        except OSError as error:
            raise self._gone(error) from None
        self._waiting.append((message, len(wire)))
        self._octets += len(wire)

    def finish(self) -> None:
        """Wait until everything is stored or refused."""
        while self._waiting:
            self._read_reply()

    def _read_reply(self) -> None:
        deadline = time.monotonic() + SECONDS
        while b"\n" not in self._input:
            try:
                data = heard(self._hub, self._socket, self._receive, deadline)
            except OSError as error:
                raise self._gone(error) from None
            if not data:
                raise self._gone(None)
            self._input += data
        line, _, self._input = self._input.partition(b"\n")
        answer = json.loads(line)
        message, size = self._waiting.popleft()
        self._octets -= size
        if "id" in answer:
            self.stored += 1
        else:
            self.refused.append(
                Refusal(
                    message.place,
                    str(answer.get("error")),
                    answer.get("remedy", "") if answer.get("exit_code") == EX_TEMPFAIL else None,
                )
            )

    def _receive(self) -> bytes:
        return self._socket.recv(_READ)

    def _gone(self, error: OSError | None) -> UnavailableError:
        if isinstance(error, TimeoutError):
            return UnavailableError(f"{self._hub} does not answer", remedy=self._again)
        why = f": {error.strerror or error}" if error else ""
        return UnavailableError(f"{self._hub} ended meanwhile{why}", remedy=self._again)


def _connect(data: Path) -> socket.socket:
    """Connect to the first worker that accepts."""
    for path in sorted((data / "run").glob("import-*")):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.settimeout(SECONDS)
        try:
            with short_path(path) as short:
                sock.connect(short)
        except OSError:
            sock.close()
            continue
        return sock
    raise UnavailableError(
        f"no worker of the hub on {data} accepts messages now", remedy="try again in a moment"
    )


@contextmanager
def some_hub(config: Config, data: Path) -> Iterator[None]:
    """The hub running on `data`, or one for the duration of this context."""
    if hub_runs(data):
        yield
        return
    quiet = replace(config, data=data, listen=(), user=None, chroot=None)
    quiet = replace(quiet, store=replace(config.store, workers=1))
    pid = _start(quiet)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise MetadError(
            f"the hub that stored the messages exited with {code}", remedy="see the lines above"
        )


def prepare() -> None:
    """Load the modules of a hub while they are readable (they may be below /root)."""
    from metad.master.preload import preload

    preload()


def _start(config: Config) -> int:
    """Fork a hub without listeners; its pid once it is ready.  Raises its error."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _be_hub(config, parent, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as words:
        first = words.read(1)
        if first == _READY:
            return pid
        error = words.read(4096).decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text, _, remedy = error.partition("\n")
    failure = MetadError(
        text or f"no hub could be started on {config.data}", remedy=remedy or "see the lines above"
    )
    failure.exit_code = code if 0 < code < 256 else EX_SOFTWARE
    raise failure


def _be_hub(config: Config, parent: int, write_end: int) -> None:
    """The whole life of the child."""
    code = EX_SOFTWARE
    try:
        from metad.master.options import Options
        from metad.master.start import start

        if privileges.die_with_parent(parent, signal.SIGTERM):
            os.setpgid(0, 0)  # Ctrl-C is for the command, not for this hub
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            sys.stdout = open(1, "w", closefd=False)
            code = start(config, Options(ready=lambda: _tell(write_end, _READY)))
    except MetadError as error:
        code = error.exit_code
        _tell(write_end, b"E" + f"{error}\n{error.remedy}".encode("utf-8", "replace")[:4000])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _tell(fd: int, word: bytes) -> None:
    with suppress(OSError):
        os.write(fd, word)
