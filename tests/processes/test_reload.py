"""metad reload: new configuration, no connection dropped or refused."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from contextlib import suppress

import pytest

from tests.support.clients import Pop3Line, SmtpLine, deliver, in_time, message
from tests.support.hub import DEADLINE, free_ports
from tests.support.live import NAMES, LiveHub, as_it_was, wait_gone
from tests.support.load import Load
from tests.support.sizes import reached, sized


@pytest.fixture(scope="module")
def shared():
    with LiveHub() as hub:
        yield hub


@pytest.fixture
def live(shared):
    with as_it_was(shared) as hub:
        yield hub


def change(live: LiveHub, old: str, new: str) -> None:
    text = live.config.read_text()
    assert old in text
    live.config.write_text(text.replace(old, new))


def greets_as(live: LiveHub, name: bytes) -> bool:
    """An old worker may accept one more connection at the moment of retiring."""
    with SmtpLine(live, greet=False) as smtp:
        return name in smtp.reply(b"220")


@pytest.mark.long
def test_reloads_under_load_break_no_session(live):
    """The promise: zero failed sessions, whatever the number of reloads."""
    first, before = set(live.worker_pids()), live.facts()["generation"]
    reloads = sized(20, 60)
    with Load(live, NAMES) as load:
        for number in range(reloads):
            load.wait_for(10)
            change(live, "hostname = ", f"# {number}\nhostname = ")
            live.reload()
    assert load.failures == []
    assert load.sessions > 20
    load.check()
    facts = live.whole(*first)
    assert facts["generation"] == before + reloads
    reached("reloads under load: reloads", reloads)
    reached("reloads under load: sessions, none of them broken", load.sessions)


def test_new_settings_are_in_force_and_named(live):
    change(live, 'hostname = "hub.example.test"', 'hostname = "new.example.test"')
    done = live.run("reload")
    assert done.stdout == "reloaded: hostname\n"
    assert in_time(lambda: greets_as(live, b"new.example.test"))


def test_nothing_new_is_no_error(live):
    assert live.run("reload").stdout == "reloaded: nothing changed\n"


def test_settings_that_a_reload_cannot_change_are_named_and_stay(live):
    change(live, "workers = 2", "workers = 3")
    done = live.run("reload", "--json")
    assert list(json.loads(done.stdout)["kept"]) == ["store.workers"]
    assert "store.workers needs a restart" in live.run("reload").stderr
    assert {one["slot"] for one in live.whole()["workers"]} == {0, 1}


def test_a_session_goes_on_in_the_old_worker_until_it_ends(live):
    with SmtpLine(live) as smtp, Pop3Line(live) as pop:
        pop.log_in("alice")
        old = [one["pid"] for one in live.facts()["workers"] if one["smtp_open"]]
        live.run("reload")
        states = {one["pid"]: one["state"] for one in live.facts()["workers"]}
        assert [states[pid] for pid in old] == ["finishing"]
        smtp.deliver(message(), "bob")
        smtp.say("QUIT", b"221")
        pop.say("QUIT")
    for pid in old:
        wait_gone(pid)


def test_a_session_that_does_not_end_is_told_at_the_deadline():
    with LiveHub(settings="reload_deadline = 1") as live, SmtpLine(live) as smtp:
        live.run("reload")
        started = time.monotonic()
        assert smtp.line().startswith(b"421 ")
        assert 0.5 < time.monotonic() - started < DEADLINE / 2


def test_a_bad_configuration_is_refused_and_nothing_changes(live):
    pids = live.worker_pids()
    change(live, "workers = 2", "workers = -2")
    done = live.run("reload", check=False)
    assert done.returncode == 78
    assert re.fullmatch(r"metad: fatal: \S.*metad.toml:\d+: store.workers: .*\n", done.stderr)
    assert live.worker_pids() == pids


def test_a_listener_comes_and_goes(live):
    (port,) = free_ports(1)
    text = live.config.read_text()
    more = f'[[listen]]\nprotocol = "smtp"\naddress = "127.0.0.1:{port}"\n'
    live.config.write_text(text + more)
    assert live.run("reload").stdout == "reloaded: listen\n"
    with socket.create_connection(("127.0.0.1", port), DEADLINE) as sock:
        assert sock.recv(4) == b"220 "
    live.config.write_text(text)
    live.run("reload")
    live.until(lambda facts: len(facts["workers"]) == 2, "the old generation gone")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), DEADLINE)


def test_a_port_in_use_refuses_the_reload_and_nothing_changes(live):
    before = live.facts()["generation"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with live.config.open("a") as file:
            file.write(f'[[listen]]\nprotocol = "smtp"\naddress = "127.0.0.1:{port}"\n')
        done = live.run("reload", check=False)
    assert done.returncode == 71
    assert "Address already in use" in done.stderr
    assert live.facts()["generation"] == before
    deliver(live, message(), "alice")


def test_new_workers_that_cannot_start_leave_the_old_ones_at_work(live):
    """Here: the users cannot be read."""
    pids = live.worker_pids()
    users = live.data / "users"
    users.chmod(0)
    try:
        done = live.run("reload", check=False)
    finally:
        users.chmod(0o700)
    assert done.returncode
    assert "a new worker cannot start: " in done.stderr
    assert live.worker_pids() == pids
    assert live.facts()["state"] == "serving"
    deliver(live, message(), "alice")
    live.run("reload")
    live.whole(*pids)


def test_sighup_reloads_from_the_file_that_the_hub_was_started_with(live):
    pids = live.worker_pids()
    change(live, 'hostname = "hub.example.test"', 'hostname = "new.example.test"')
    os.kill(live.process.pid, signal.SIGHUP)
    live.whole(*pids)
    assert in_time(lambda: greets_as(live, b"new.example.test"))


def test_sighup_with_a_bad_file_changes_nothing(live):
    pids = live.worker_pids()
    live.config.write_text("nonsense")
    os.kill(live.process.pid, signal.SIGHUP)
    live.until(lambda _: "not reloaded: " in live.log.read_text(), "a word in the log")
    assert live.worker_pids() == pids


def test_a_worker_that_dies_while_it_finishes_loses_nothing(live):
    with Load(live, NAMES) as load, SmtpLine(live):
        load.wait_for(20)
        live.run("reload")
        old = [w["pid"] for w in live.facts()["workers"] if w["state"] == "finishing"]
        assert old
        for pid in old:
            with suppress(ProcessLookupError):  # it may have finished meanwhile
                os.kill(pid, signal.SIGKILL)
        load.wait_for(20)
    live.whole(*old)
    load.check()
