"""metad reload after an upgrade: the same process executes the new program, refusing no client."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from metad import __version__
from metad.control_client import request
from metad.errors import MetadError
from tests.support.clients import SmtpLine, deliver, message
from tests.support.hub import DEADLINE, free_ports
from tests.support.live import NAMES, LiveHub
from tests.support.load import Load
from tests.support.sizes import reached, sized


def execute(live: LiveHub) -> None:
    live.run("reload", "--execute")


@pytest.mark.long
def test_under_load_no_connection_is_refused_and_no_mail_is_lost():
    takeovers = sized(2, 6)
    with LiveHub() as live:
        process = live.process.pid
        with Load(live, NAMES) as load:
            for _ in range(takeovers):
                load.wait_for(10)
                execute(live)
            load.wait_for(10)
        refused = [one for one in load.failures if "Refused" in one or "Reset" in one]
        assert refused == []
        load.check()
        assert live.facts()["pid"] == process
    reached("takeovers under load", takeovers)


def test_another_release_takes_over_and_the_same_only_reloads():
    with LiveHub() as live:
        workers = set(live.worker_pids())
        text, source = live.config.read_text(), str(live.config)
        given = {"content": text, "source": source}
        reply = request(live.data, "reload", DEADLINE, **given, version=__version__)
        assert reply["generation"] == 2
        reply = request(live.data, "reload", DEADLINE, **given, version="99")
        assert (reply["takeover"], reply["version"]) == (True, __version__)
        live.until(lambda facts: facts["generation"] == 1, "executed again")
        live.whole(*workers)
        assert "metad 99 takes over" in live.log.read_text()


@pytest.mark.long
def test_what_only_a_restart_changes_is_changed():
    (port,) = free_ports(1)
    with LiveHub() as live:
        text = live.config.read_text()
        text = text.replace(f"127.0.0.1:{live.pop3_port}", f"127.0.0.1:{port}")
        live.config.write_text(text.replace("workers = 2", "workers = 3"))
        execute(live)
        assert len(live.worker_pids()) == 3
        socket.create_connection(("127.0.0.1", port), DEADLINE).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", live.pop3_port), DEADLINE)
        # Fewer workers than sockets: every socket is served.
        live.config.write_text(text.replace("workers = 2", "workers = 1"))
        execute(live)
        for _ in range(10):
            with SmtpLine(live) as smtp:
                smtp.say("NOOP", b"250")


def test_systemd_and_the_pid_file_know_the_same_process(notified, monkeypatch):
    # Unread output would fill the socket, and the hub does not wait for clients.
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    with LiveHub() as live:
        live.stop()
        pid_file = live.home / "pid"
        pid_file.touch()
        if os.geteuid() == 0:
            pid_file.chmod(0o666)
        live.options = ["--pid-file", str(pid_file)]
        live.start()
        assert notified("READY")
        execute(live)
        assert notified("RELOADING")
        assert notified("READY")["MAINPID"] == str(live.process.pid)
        assert pid_file.read_text() == f"{live.process.pid}\n"
        live.options = []


@pytest.mark.long
def test_a_stop_during_the_drain_is_a_stop():
    with LiveHub() as live, SmtpLine(live) as smtp:
        for line in ("EHLO x", "MAIL FROM:<a@b.example>", f"RCPT TO:<{NAMES[0]}@example.test>"):
            smtp.say(line, b"250")
        smtp.say("DATA", b"354")  # a transaction, which the drain waits for
        text, source = live.config.read_text(), str(live.config)
        reply = request(live.data, "reload", DEADLINE, content=text, source=source, execute=True)
        assert reply["takeover"]
        live.process.send_signal(signal.SIGTERM)
        live.until(lambda facts: facts["state"] == "draining", "draining")
        smtp.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
        smtp.reply(b"250")
        live.process.wait(DEADLINE)
        assert live.finished() == 0
        assert "executing the program again" not in live.log.read_text()
        live.start()


def test_a_bad_configuration_changes_nothing():
    with LiveHub() as live:
        workers = live.worker_pids()
        live.config.write_text("nonsense = 1\n" + live.config.read_text())
        done = live.run("reload", "--execute", check=False)
        assert done.returncode == 78
        assert live.worker_pids() == workers
        deliver(live, message(), NAMES[0])


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="not root: no nanny and no chroot")
def test_below_a_nanny_the_master_is_executed_again_and_in_a_chroot_it_reports_why_not():
    with LiveHub() as live:
        text = live.config.read_text()
        live.stop()
        live.config.write_text(f'chroot = "{live.data}"\n' + text)
        live.start()
        done = live.run("reload", "--execute", check=False)
        assert "Python cannot be executed in the chroot (restart the hub" in done.stderr
        assert live.facts()["state"] == "serving"
        live.stop()
        live.config.write_text(text)
        live.start()


@pytest.mark.long
def test_two_at_once_are_refused():
    with LiveHub() as live, SmtpLine(live) as smtp:
        smtp.say("EHLO x", b"250")
        smtp.say("MAIL FROM:<a@b.example>", b"250")
        text, source = live.config.read_text(), str(live.config)
        given = {"content": text, "source": source, "execute": True}
        assert request(live.data, "reload", DEADLINE, **given)["takeover"]
        with pytest.raises(MetadError, match="starting, stopping or reloading"):
            request(live.data, "reload", DEADLINE, **given)
        smtp.say("RSET", b"")
        live.until(lambda facts: facts["state"] == "serving", "serving again")
