"""Log lines: to a file with the time, to the journal with their priority."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time

import pytest

from metad.loglines import LINES_OF_SOURCE, LogLines, clean
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


# --- a log that is not read ---


@pytest.fixture
def unread():
    """A pipe of one page; gives what lies in it, and the log that writes to it."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)

    os.set_blocking(reader, False)

    def read() -> list[str]:
        try:
            return os.read(reader, 65536).decode().splitlines()
        except BlockingIOError:
            return []

    yield LogLines(writer), read
    os.close(reader)
    os.close(writer)


def reported(lines: list[str]) -> int:
    """The sum of the lines that were dropped, as they were reported."""
    found = [re.search(r"warning: (\d+) log lines were dropped unread$", line) for line in lines]
    return sum(int(one[1]) for one in found if one)


def test_lines_that_do_not_fit_are_counted_and_reported_once_there_is_room(unread):
    log, read = unread
    for number in range(100):
        log.line("smtp", f"{number:03} " + "x" * 200)
    lines = read()
    assert 0 < log.dropped < 100
    log.line("smtp", "room again")
    lines += read()
    assert lines[-1].endswith("]: room again")
    assert reported(lines) == log.dropped
    assert len([line for line in lines if line.endswith("xxx")]) == 100 - log.dropped
    log.tick()
    log.line("smtp", "no more to report")
    assert [line.partition("]: ")[2] for line in read()] == ["no more to report"]


def test_a_line_that_was_written_in_part_is_completed_later(unread):
    log, read = unread
    log.line("smtp", "x" * 10_000)
    log.line("smtp", "dropped")
    text = ""
    for _ in range(9):
        text += "".join(read())
        log.tick()
    assert text.count("x") == 10_000
    assert text.endswith("warning: 1 log lines were dropped unread")


def test_a_worker_reports_dropped_lines_without_another_line(unread):
    log, read = unread
    for number in range(30):
        log.line("smtp", f"{number:03} " + "x" * 200)
    lines = read()
    log.tick()
    assert reported(lines + read()) == log.dropped > 0


# --- what is repeated ---


def test_repeated_warnings_are_summed_up(unread, monkeypatch):
    log, read = unread
    now = [100.0]
    monkeypatch.setattr("metad.loglines.time.monotonic", lambda: now[0])
    for _ in range(50):
        log.line("store", "warning: the disk is slow")
    log.line("store", "warning: another")
    log.line("smtp", "not a warning")
    log.line("smtp", "not a warning")
    texts = [line.partition("]: ")[2] for line in read()]
    assert texts == ["warning: the disk is slow", "warning: another", *["not a warning"] * 2]
    now[0] += 11
    log.tick()
    texts = [line.partition("]: ")[2] for line in read()]
    assert texts == ["warning: the disk is slow (repeated 49 times in 10 s)"]
    log.line("store", "warning: the disk is slow")
    assert read()[0].endswith("warning: the disk is slow")


def test_one_client_network_writes_a_bounded_number_of_lines(tmp_path, monkeypatch):
    """Regression: MAIL over the message rate logged 445,000 lines in five seconds."""
    now = [100.0]
    monkeypatch.setattr("metad.loglines.time.monotonic", lambda: now[0])
    with (tmp_path / "log").open("ab") as file:
        log = LogLines(file.fileno())
        for number in range(5000):
            log.limited("192.0.2.1", "smtp", "reject", {"to": f"{number}@x"})
            log.limited("192.0.2.2", "smtp", "reject", {"to": "same@x"})
        now[0] += 11
        log.tick()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == LINES_OF_SOURCE + 3
    assert lines[-1].endswith("reject: to=same@x (repeated 4999 times in 10 s)") or lines[
        -2
    ].endswith("reject: to=same@x (repeated 4999 times in 10 s)")
    assert any(f"more lines of this client (repeated {5000 - LINES_OF_SOURCE}" in x for x in lines)


def test_fields_as_text_and_as_json(tmp_path):
    fields = {"client": "192.0.2.1", "helo": "a b", "to": ("x@y", "z@y"), "size": 5}
    with (tmp_path / "log").open("ab") as file:
        LogLines(file.fileno()).event("smtp", "0006", fields)
        log = LogLines(file.fileno(), as_json=True)
        log.event("smtp", "message", fields)
        log.line("master", "stopped")
    text, event, line = (tmp_path / "log").read_text().splitlines()
    assert text.endswith("]: 0006: client=192.0.2.1, helo=<a b>, to=<x@y>,<z@y>, size=5")
    found = json.loads(event)
    assert found.pop("time") == pytest.approx(time.time(), abs=60)
    assert found == {
        "service": "smtp", "pid": os.getpid(), "event": "message", "client": "192.0.2.1",
        "helo": "a b", "to": ["x@y", "z@y"], "size": 5,
    }  # fmt: skip
    assert json.loads(line)["text"] == "stopped"


def test_a_flood_from_many_networks_fills_no_memory(tmp_path, monkeypatch):
    """Regression: each network beyond those remembered got its own entry, without a bound."""
    monkeypatch.setattr("metad.loglines.REMEMBERED", 100)
    now = [100.0]
    monkeypatch.setattr("metad.loglines.time.monotonic", lambda: now[0])
    with (tmp_path / "log").open("ab") as file:
        log = LogLines(file.fileno())
        for number in range(5000):
            log.limited(f"2001:db8:{number:x}::/64", "smtp", "reject", {"to": f"{number}@x"})
        assert len(log._summaries._seen) <= 201
        now[0] += 11
        log.tick()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 100 + 100 + 1
    assert "more lines of other clients (repeated 4800 times" in lines[-1]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("r\u00e4ksm\u00f6rg\u00e5s", "r\u00e4ksm\u00f6rg\u00e5s"),
        ("a\x1b[2Jb\r\nc\x7f", "a?[2Jb??c?"),
        ("\x9b2J", "?2J"),
        ("user\u202egpj.exe", "user?gpj.exe"),
        ("one\u2028two\u2029three", "one?two?three"),
        ("\udcff\u200b", "??"),
    ],
)
def test_nothing_that_a_client_sent_steers_a_terminal_or_ends_a_line(text, shown):
    """Regression: only ASCII's control characters were removed."""
    assert clean(text) == shown
    assert clean("x" * 300 + text) == "x" * 256
