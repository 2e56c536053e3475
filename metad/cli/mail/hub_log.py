"""The lines of the hub's log about messages: only they show which session deleted one.

    --log FILE …           those files
    a running hub          the file that it writes (and the one before it), or the journal

Rules of this file:

* The caller's rights reach the files that it names, and the journal; the path that the hub names is
  opened with the rights of the hub's own user, the only ones left at `about`.
* No file is read whole into memory, and the journal is asked only once the ids are known.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from metad.cli.context import HubLocation
from metad.control_client import request
from metad.errors import MetadError, OsError

JOURNAL = "journal"
# For a hub that logs to /dev/log: syslog's facility mail.
_FACILITY = ("SYSLOG_FACILITY=2",)
# The ids are passed on standard input when they are known: the caller's rights are gone by then.
_JOURNALCTL = (
    'IFS= read -r ids; [ -n "$ids" ] && '
    'exec journalctl --quiet --no-pager -o short-iso "$@" -g "$ids"'
)
_UNIT = re.compile(r"/([^/]+\.service)$", re.MULTILINE)
_MOST_IDS = 500  # in one question to the journal


class HubLog:
    """`files`: open; `path`: of the hub's own log; `journal`: whose lines in it."""

    def __init__(
        self, files: Sequence[TextIO] = (), path: Path | None = None, journal: Sequence[str] = ()
    ) -> None:
        self._files = [*files]
        self._path = path
        self._journal = _journalctl(journal) if journal else None

    def about(self, ids: Sequence[str]) -> dict[str, list[str]]:
        """The lines that name each id.  Call this or `naming`, once."""
        found: dict[str, list[str]] = {one: [] for one in ids}
        wanted = re.compile("|".join(ids) or "$^")
        for line in self._lines(ids):
            for one in dict.fromkeys(wanted.findall(line)):
                found[one].append(line.rstrip("\n"))
        return found

    def naming(self, text: str, most: int) -> list[str]:
        """The latest lines with an address or a Message-ID, whatever its case."""
        pattern = rf"[<\"]{re.escape(text.lower())}[>\"]"
        wanted = re.compile(pattern, re.IGNORECASE)
        lines = (line.rstrip("\n") for line in self._lines([pattern]))
        return [*deque(filter(wanted.search, lines), maxlen=most)]

    def _lines(self, patterns: Sequence[str]) -> Iterator[str]:
        if patterns and self._path is not None:
            self._files += _own(self._path)
        for file in self._files:
            with file:
                yield from file if patterns else ()
        if self._journal is not None:  # without patterns its shell ends
            yield from self._journal.communicate("|".join(patterns[:_MOST_IDS]))[0].splitlines()


def _own(path: Path) -> Iterator[TextIO]:
    """The hub's log, preceded by the files that logrotate renamed."""
    for one in (path.with_name(f"{path.name}.1"), path):
        if one.is_file():
            with suppress(OsError):
                yield _open(one)


def _journalctl(matches: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["sh", "-c", _JOURNALCTL, "sh", *matches], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, errors="replace",
    )  # fmt: skip


def given(paths: Iterable[Path]) -> HubLog:
    """These files.  Raises OsError."""
    return HubLog([_open(path) for path in paths])


def of_hub(place: HubLocation) -> HubLog:
    """The log of the running hub; an empty one if none is running or its log cannot be found."""
    try:
        status = request(place.data, "status")
    except MetadError:
        return HubLog()
    where = status.get("log")
    if not where:
        return HubLog()
    if where != JOURNAL and not Path(where).is_socket():
        return HubLog(path=Path(where))
    matches = _unit(int(status["pid"])) if where == JOURNAL else _FACILITY
    return HubLog(journal=matches if shutil.which("journalctl") else ())


def _open(path: Path) -> TextIO:
    try:
        return path.open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise OsError.of(error, path) from None


def _unit(pid: int) -> Sequence[str]:
    """The service that a process belongs to."""
    try:
        found = _UNIT.search(Path(f"/proc/{pid}/cgroup").read_text())
    except OSError:
        return ()
    return ("-u", found[1]) if found else ()
