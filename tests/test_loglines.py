"""Log lines: to a file with the time, to the journal with their priority."""

from __future__ import annotations

import os
import re

import pytest

from metad.loglines import LogLines
from metad.system.systemd import to_journal


def written(monkeypatch: pytest.MonkeyPatch, stream: str, *texts: str) -> list[str]:
    """The lines of a log on a pipe; `stream` is JOURNAL_STREAM, {} in it the pipe itself."""
    reader, writer = os.pipe()
    try:
        found = os.fstat(writer)
        monkeypatch.setenv("JOURNAL_STREAM", stream.format(f"{found.st_dev}:{found.st_ino}"))
        log = LogLines(writer)
        for text in texts:
            log.line("smtp", text)
        return os.read(reader, 9999).decode().splitlines()
    finally:
        os.close(reader)
        os.close(writer)


def test_in_the_journal_lines_carry_their_priority_and_no_time(monkeypatch):
    tag = f"metad/smtp[{os.getpid()}]:"
    lines = written(monkeypatch, "{}", "from=<a>", "warning: full", "fatal: gone", "a warning: no")
    assert lines == [
        f"{tag} from=<a>",
        f"<4>{tag} warning: full",
        f"<3>{tag} fatal: gone",
        f"{tag} a warning: no",
    ]


@pytest.mark.parametrize("stream", ["", "1:1"])
def test_elsewhere_they_carry_the_time_and_no_mark(monkeypatch, stream):
    (line,) = written(monkeypatch, stream, "warning: full")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d metad/smtp\[\d+\]: warning: full", line)


def test_a_closed_descriptor_is_no_journal():
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    assert not to_journal(writer, {"JOURNAL_STREAM": "0:0"})
