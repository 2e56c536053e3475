"""How far a command has come: nothing within a second, then a line with the time that is left."""

from __future__ import annotations

import io

import pytest

from metad.cli.backup import Steps
from metad.cli.progress import Progress, left, tell_silence


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    is_one = True

    def isatty(self) -> bool:
        return self.is_one

    def taken(self) -> str:
        """What was written since the last call."""
        text = self.getvalue()
        self.truncate(self.seek(0))
        return text


@pytest.fixture
def clock() -> Clock:
    return Clock()


def standard_error(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put in its place, by the test itself: pytest puts its own there before each."""
    one = Terminal()
    monkeypatch.setattr("sys.stderr", one)
    return one


@pytest.mark.parametrize(
    ("seconds", "done", "total", "text"),
    [(10, 1, 4, ", 30 s left"), (100, 1, 4, ", 5 min left"), (9, 0, 4, ""), (9, 4, 4, ""),
     (9, 5, 4, ""), (9, 0, 0, "")],
)  # fmt: skip
def test_the_rest_goes_as_what_was_done(seconds, done, total, text):
    assert left(seconds, done, total) == text


def test_a_line_is_rewritten_once_a_second(monkeypatch, clock):
    terminal = standard_error(monkeypatch)
    progress = Progress("logs", clock=clock)
    progress.show(1, 40)
    assert terminal.taken() == ""
    clock.now += 10
    progress.show(1, 40)
    progress.show(2, 40)
    assert terminal.taken() == "\r\033[K1 of 40 logs, 6 min left"
    clock.now += 1
    progress.show(39, 40, ", 3 MiB moved")
    assert terminal.taken() == "\r\033[K39 of 40 logs, 0 s left, 3 MiB moved"
    progress.close()
    progress.close()
    assert terminal.taken() == "\r\033[K"


def test_what_has_no_known_end_shows_how_much_it_has_done(monkeypatch, clock):
    terminal = standard_error(monkeypatch)
    progress = Progress("bytes", clock=clock)
    clock.now += 2
    progress.show(0, 0, ", 1,000 lines")
    assert terminal.taken() == "\r\033[K1,000 lines"


def test_a_second_step_has_an_estimate_of_its_own(monkeypatch, clock):
    terminal = standard_error(monkeypatch)
    progress = Progress("logs", clock=clock)
    clock.now += 100
    progress.step("messages", 0, 10)
    clock.now += 2
    progress.step("messages", 1, 10)
    assert terminal.taken().endswith("\r\033[K1 of 10 messages, 18 s left")


@pytest.mark.parametrize("quiet", [True, False])
def test_without_a_terminal_or_with_json_nothing_is_shown(monkeypatch, clock, quiet):
    terminal = standard_error(monkeypatch)
    terminal.is_one = quiet
    progress = Progress("logs", quiet=quiet, clock=clock)
    clock.now += 2
    progress.show(1, 2)
    progress.close()
    assert terminal.taken() == ""


def test_a_backup_reports_steps_and_warnings(monkeypatch, clock):
    terminal = standard_error(monkeypatch)
    steps = Steps("logs", clock=clock)
    clock.now += 2
    steps.report("log 2 of 3")
    steps.report("warning: log 2 has no good header; copied as it is")
    assert terminal.taken() == (
        "\r\033[K1 of 3 logs, 4 s left\r\033[Kwarning: log 2 has no good header; copied as it is\n"
    )


def test_a_silent_hub_is_named_on_a_terminal_until_it_answers(monkeypatch):
    terminal = standard_error(monkeypatch)
    tell_silence("the hub on /srv/mail", 8.9)
    assert terminal.taken() == "\r\033[Kwaiting for the hub on /srv/mail, at most 9 s more"
    tell_silence("the hub on /srv/mail", 0)
    assert terminal.taken() == "\r\033[K"
    terminal.is_one = False
    tell_silence("the hub on /srv/mail", 8.9)
    assert terminal.taken() == ""
