"""metad who and metad kick, on a real hub."""

from __future__ import annotations

import contextlib
import json
import os
import signal

import pytest

from metad.cli.attached import Workers, ask_all
from metad.errors import EX_DATAERR, EX_TEMPFAIL, EX_UNAVAILABLE, EX_USAGE
from tests.support.clients import Line, Pop3Line, SmtpLine, deliver, message, stranger
from tests.support.hub import DEADLINE, address, watching
from tests.support.live import LiveHub


def who(hub, *options: str) -> list[dict]:
    return json.loads(hub.run("who", "--json", *options).stdout)["sessions"]


def ended(line: Line) -> bool:
    return line.input.read() == b""


def test_who_shows_what_each_session_is_doing(hub, mailbox):
    here = stranger()
    with (
        SmtpLine(hub, source=here) as smtp,
        Pop3Line(hub, source=here) as pop3,
        Pop3Line(hub, source=here) as other,
    ):
        smtp.say("MAIL FROM:<sender@client.example.test>")
        pop3.log_in(mailbox)
        other.say("USER " + address(mailbox))
        shown = {one["protocol"] + one["state"]: one for one in who(hub, "--client", here)}
        assert set(shown) == {"smtpmail", "pop3open", "pop3login"}
        assert shown["smtpmail"]["from"] == "sender@client.example.test"
        assert shown["pop3open"]["user"] == address(mailbox)
        assert shown["pop3login"]["user"] == ""
        assert {one["tls"] for one in shown.values()} == {"no"}
        assert {one["client"] for one in shown.values()} == {here}
        assert [one["state"] for one in who(hub, "--user", address(mailbox).upper())] == ["open"]
        assert not who(hub, "--client", here, "--protocol", "lmtp")
        text = hub.run("who", "--client", f"{here}/32").stdout
        assert text.splitlines()[0].split("\t")[:4] == ["session", "proto", "client", "user"]
        assert text.endswith("3 sessions\n")


def test_names_of_sessions_are_unique_across_workers(hub):
    here = stranger()
    with contextlib.ExitStack() as lines:
        for _ in range(40):
            lines.enter_context(SmtpLine(hub, source=here))
        names = [one["session"] for one in who(hub, "--client", here)]
        assert len(set(names)) == 40
        assert len({name.partition("-")[0] for name in names}) == 2  # both workers


def test_kick_ends_one_session_and_no_other(hub, mailbox):
    here = stranger()
    with SmtpLine(hub, source=here) as smtp, Pop3Line(hub, source=here) as pop3:
        pop3.log_in(mailbox)
        smtp.say("MAIL FROM:<sender@client.example.test>")
        name = next(one["session"] for one in who(hub, "--client", here, "--protocol", "smtp"))
        text = hub.run("kick", name).stdout
        assert text == f"ended {name}: smtp {here} <sender@client.example.test>\n"
        assert smtp.input.readline().startswith(b"421 4.3.2 ")
        assert ended(smtp)
        assert pop3.say("NOOP")
        left = {one["protocol"]: one["state"] for one in who(hub, "--client", here)}
        assert left.pop("pop3") == "open"
        assert set(left.values()) <= {"closing"}


def test_kick_by_user_deletes_nothing(hub, mailbox):
    deliver(hub, message(), mailbox)
    with Pop3Line(hub) as pop3:
        pop3.log_in(mailbox)
        pop3.say("DELE 1")
        hub.run("kick", "--user", address(mailbox))
        assert pop3.input.readline() == b"-ERR [SYS/TEMP] ended by the administrator\r\n"
        assert ended(pop3)
    with Pop3Line(hub) as pop3:
        pop3.log_in(mailbox)
        assert pop3.count() == 1


def test_kick_by_network(hub):
    here = stranger()
    network = here.rpartition(".")[0] + ".0/24"
    with SmtpLine(hub, source=here) as one, Pop3Line(hub, source=here) as other:
        facts = json.loads(hub.run("kick", "--client", network, "--json").stdout)
        assert {one["protocol"] for one in facts["ended"]} == {"smtp", "pop3"}
        assert b"421" in one.input.read()
        assert b"-ERR" in other.input.read()
    assert "kicked: session=" in hub.log.read_text()


def test_a_session_within_a_message_can_be_kicked(hub, mailbox):
    here = stranger()
    with SmtpLine(hub, source=here) as smtp:
        smtp.say("MAIL FROM:<>")
        smtp.say(f"RCPT TO:<{address(mailbox)}>")
        smtp.say("DATA", b"354")
        smtp.send(b"half a message\r\n")
        [one] = who(hub, "--client", here)
        assert one["state"] == "data"
        hub.run("kick", one["session"])
        assert smtp.input.read().startswith(b"421 ")
    with Pop3Line(hub) as pop3:
        pop3.log_in(mailbox)
        assert pop3.count() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["kick"], EX_USAGE, "no session is named"),
        (["kick", "1-1"], EX_DATAERR, "metad who shows"),
        (["who", "--client", "nonsense"], EX_USAGE, "no address or network"),
        (["who", "--protocol", "imap"], EX_USAGE, "imap"),
    ],
)
def test_what_is_wrong_is_refused_with_what_to_do(hub, arguments, code, text):
    done = hub.run(*arguments, check=False)
    assert done.returncode == code
    assert text in done.stderr


def test_a_worker_answers_nonsense_with_an_error(hub):
    for request in ({"command": "reboot"}, {"command": "who", "client": "x"}, {}):
        with Workers(hub.data) as workers:
            workers.send(request)
            answers = []
            while workers.open:
                answers += [line for _, line in workers.hear(30) if line]
        assert len(answers) == 2
        assert all("not a request" in one["error"] for one in answers)


def test_without_a_hub_there_are_no_sessions(tmp_path):
    with LiveHub() as live:
        live.stop()
        assert live.run("who", check=False).returncode == EX_UNAVAILABLE


def test_a_worker_that_hangs_does_not_hang_the_command():
    """Sessions of the other workers are shown, and the exit code shows that some are missing."""
    with LiveHub() as live, contextlib.ExitStack() as lines:
        for _ in range(20):
            lines.enter_context(SmtpLine(live))
        stuck, _ = pids = live.worker_pids()
        os.kill(stuck, signal.SIGSTOP)
        found: list[dict] = []
        silent = ask_all(live.data, {"command": "who"}, found.append, 3.0)
        os.kill(stuck, signal.SIGCONT)
        assert any(f"pid {stuck}" in one for one in silent)
        left = {one["session"].partition("-")[0] for one in found if "session" in one}
        assert left == {str(pids[1])}


def test_a_worker_of_an_old_generation_is_asked_too():
    with LiveHub() as live, SmtpLine(live) as smtp:
        [before] = who(live)
        live.config.write_text(live.config.read_text().replace("heartbeat = 30", "heartbeat = 31"))
        live.reload()
        [after] = who(live)
        assert after["session"] == before["session"]
        live.run("kick", after["session"])
        assert b"421 " in smtp.input.read()


def test_a_worker_that_ends_while_it_is_asked_is_not_silent(monkeypatch):
    """Regression: exit code 75 right after a reload, because an old worker had just retired."""
    with LiveHub() as live:
        [victim, _] = live.workers()
        send = Workers.send

        def kill_and_send(workers, request, **options):
            with watching([victim]) as gone:
                os.kill(victim, signal.SIGKILL)
                gone(DEADLINE)
            send(workers, request, **options)

        monkeypatch.setattr(Workers, "send", kill_and_send)
        assert ask_all(live.data, {"command": "who"}, lambda line: None) == []


def test_who_says_so_when_a_worker_is_silent(monkeypatch, capsys):
    from metad.cli import sessions

    assert sessions._warn(["worker 1 (pid 7)"], "its sessions are missing") == EX_TEMPFAIL
    assert "worker 1 (pid 7) does not answer" in capsys.readouterr().err
