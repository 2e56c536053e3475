"""The progress shown by an import, and mailboxes whose server is gone."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from metad.cli.mail.import_mail import MOST_SILENT, Result, _each, _report, _until_error
from metad.cli.mail.import_progress import WIDTH, Progress
from metad.errors import DataError, MetadError, TemporaryError, UnavailableError
from metad.users.account import Account


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bar_with_the_share_of_mailboxes_and_the_time_that_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(4, quiet=False, clock=clock)
    for number in range(2):
        progress.begin(f"user{number}@example.test")
        for _ in range(10):
            clock.now += 15
            progress.message()
        progress.end()
    progress.begin("user2@example.test")
    bar = "#" * (WIDTH // 2) + "-" * (WIDTH // 2)
    assert progress.text() == (
        f"[{bar}] 2 of 4 mailboxes, 20 messages, 5 min left: user2@example.test"
    )
    progress.close()
    shown = capsys.readouterr().err
    assert shown.count("\r\033[K[") == 20
    assert shown.endswith("\r\033[K")


def test_once_a_second_at_most_and_one_mailbox_needs_no_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(1, quiet=False, clock=clock)
    progress.begin("a@b.example")
    for _ in range(100):
        clock.now += 0.05
        progress.message()
    assert capsys.readouterr().err.count("\r") in (4, 5)
    assert progress.text() == "a@b.example: 100 messages"


def test_one_mailbox_has_an_estimate_by_what_its_source_reports(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(1, quiet=False, clock=clock)
    progress.begin("a@b.example")
    clock.now += 10
    progress.message()
    progress.reached(250, 1000)
    assert progress.text() == "a@b.example: 1 messages, 25%, 30 s left"
    progress.reached(5, 0)  # a pipe: its length is unknown
    assert progress.text() == "a@b.example: 1 messages"
    # What is there already counts too, though it is not stored again.
    clock.now += 10
    progress.reached(750, 1000)
    assert capsys.readouterr().err.endswith("a@b.example: 1 messages, 75%, 7 s left")


def test_of_several_mailboxes_the_one_at_work_counts_by_its_share() -> None:
    clock = Clock()
    progress = Progress(2, quiet=True, clock=clock)
    progress.begin("a@b.example")
    clock.now += 60
    progress.reached(1, 2)
    assert "0 of 2 mailboxes, 0 messages, 3 min left" in progress.text()
    progress.end()
    assert "1 of 2 mailboxes, 0 messages, 1 min left" in progress.text()


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_is_shown_without_a_terminal(
    quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    progress = Progress(2, quiet=quiet, clock=clock)
    for _ in range(3):
        clock.now += 60
        progress.message()
    progress.close()
    assert capsys.readouterr().err == ""


ACCOUNTS = [Account(number, f"user{number}@example.test") for number in range(2, 12)]


def run(errors: dict[int, MetadError]) -> list[Result]:
    def one(account: Account, progress: Progress) -> Result:
        return Result(account.address, error=errors.get(account.id))

    return list(_each(ACCOUNTS, one, Progress(len(ACCOUNTS), quiet=True)))


def test_a_server_that_refuses_one_mailbox_is_asked_for_the_others() -> None:
    """Regression: the first mailbox whose connection the server closed ended the whole import."""
    results = run({3: UnavailableError("closed"), 5: DataError("bad"), 6: UnavailableError("x")})
    assert [str(one.error or "") for one in results] == [
        "", "closed", "", "bad", "x", "", "", "", "", "",
    ]  # fmt: skip


def test_a_server_that_is_gone_is_not_waited_for_again_and_again() -> None:
    results = run(dict.fromkeys(range(4, 12), UnavailableError("no answer in time")))
    assert len(results) == len(ACCOUNTS)
    assert [one.error is None for one in results[:2]] == [True, True]
    asked = [one for one in results if "no answer in time" in str(one.error)]
    assert len(asked) == MOST_SILENT
    assert [str(one.error) for one in results[2 + MOST_SILENT :]] == ["not tried: no answer"] * 5
    assert all(one.exit_code for one in results[2:])


def test_what_a_source_gave_before_it_failed_is_kept() -> None:
    def read(address: str) -> Iterator[object]:
        yield address
        raise UnavailableError("gone")

    result = Result("a@b.example")
    assert list(_until_error(read, result)) == ["a@b.example"]  # type: ignore[arg-type]
    assert str(result.error) == "gone"


def test_bad_messages_are_named_even_if_all_others_were_deferred(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = Result("a@x.example", bad=["in.mbox:7: \x1b[31mno header"], notes=["left out: Sent"])
    result.deferred = TemporaryError("in.mbox:9: no space")
    with pytest.raises(TemporaryError, match="no space"):
        _report([result], everyone=False, as_json=False)
    shown = capsys.readouterr().err.splitlines()
    assert shown == ["note: left out: Sent", r"metad: warning: in.mbox:7: \x1b[31mno header"]
