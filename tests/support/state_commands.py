"""A command in a child, in one of the bad states of tests/support/bad_states.py.

Rules of this file:

* A command runs in a forked child, without the price of a new interpreter; as root it becomes the
  owner of the data as the real one does.  Only `metad start` is a process of its own.
* No command is ended by the test: DEADLINE is a net, and a command that it catches has failed.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from metad import limits
from metad.cli.mail import change, import_client
from tests.support.forked import run_here
from tests.support.hub import DEADLINE, METAD


class Ran(NamedTuple):
    """A command that has ended.  `code`: negative, if a signal ended it."""

    code: int
    out: str
    err: str


class Running:
    """A command in a child of its own."""

    def __init__(self, words: list[str], given: str, prepare: Callable[[], None]) -> None:
        self._files: list[IO[bytes]] = [tempfile.TemporaryFile(dir="/tmp") for _ in range(2)]
        self._pid = os.fork()
        if self._pid == 0:
            os._exit(_child(words, given, self._files, prepare))

    def ended(self) -> Ran:
        descriptor = os.pidfd_open(self._pid)
        if not select.select([descriptor], [], [], 4 * DEADLINE)[0]:
            os.kill(self._pid, signal.SIGKILL)
        os.close(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        texts = []
        for file in self._files:
            with file:
                file.seek(0)
                texts.append(file.read().decode())
        return Ran(code, *texts)


def _child(words: list[str], given: str, files: list[IO[bytes]], prepare: Callable) -> int:
    """The whole of the child; its exit status."""
    try:
        os.chdir("/")
        for number, file in enumerate(files, 1):
            os.dup2(file.fileno(), number)
        prepare()
        if words[0] == "start":
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.execv(METAD, [METAD, *words])
        return run_here(words, given)
    except BaseException:
        with contextlib.suppress(Exception):
            traceback.print_exc(file=open(2, "w", closefd=False))
        return 1


def _impatient(words: list[str]) -> None:
    """Shortens the longest promised waits; `metad mail tail` gets ^C at its first pause."""

    def pause(_seconds: object) -> None:
        raise KeyboardInterrupt

    import_client.SECONDS = change.ANSWER_SECONDS = 2.0
    limits.RELOAD_TIMEOUT = 2.0
    if words[:2] == ["mail", "tail"]:
        time.sleep = pause


@dataclass(frozen=True)
class State:
    """`says`: what an error with the exit code `code` must say; {data} and {config} are places.

    `inside`: what a child does first.  `root`: below what the test sees the state's files.
    """

    name: str
    code: int
    says: str
    data: Path
    clustered: Path
    configs: dict[str, Path]
    at_once: bool = False
    is_alive: bool = False  # the hub itself changes files
    after: Callable[[], object] = lambda: None  # after each command
    inside: Callable[[], None] = lambda: None
    root: str = ""

    def config(self, command: str) -> Path:
        return self.configs[kind_of(command)]

    def data_of(self, command: str) -> Path:
        return self.data if kind_of(command) == "alone" else self.clustered

    def begin(self, words: list[str], given: str = "") -> Running:
        def prepare() -> None:
            _impatient(words)
            self.inside()

        return Running(words, given, prepare)

    def files(self) -> dict[str, tuple[int, ...]]:
        """What a command that changes nothing leaves as it is.

        Not LMDB's table of readers, locks, sockets, nor what is written aside of a file.
        """
        found: dict[str, tuple[int, ...]] = {}
        if self.is_alive:
            return found
        for data in (self.data, self.clustered):
            place = Path(f"{self.root}{data}")
            with contextlib.suppress(PermissionError):
                for path in (place, *place.rglob("*")):
                    if path.name in ("lock", "lock.mdb") or path.suffix in (".lock", ".new"):
                        continue
                    if path.parent.name == "run" or not path.exists():
                        continue
                    one = path.stat()
                    size = 0 if path.is_dir() else one.st_size
                    moment = 0 if path.is_dir() else one.st_mtime_ns
                    found[str(path)] = (one.st_mode, one.st_uid, size, moment)
        return found


def kind_of(command: str) -> str:
    """The configuration that it gets: "alone", "cluster", or "etcd" (which does not answer)."""
    if command in ("cluster drain", "cluster remove", "cluster restore-directory"):
        return "etcd"
    return "cluster" if command.startswith("cluster ") else "alone"
