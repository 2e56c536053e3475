"""Commands with a running hub and with a stopped one; starts that must be refused."""

import json
import os
import signal
import subprocess

import pytest

from tests.support.clients import Pop3Line, SmtpLine, deliver, fetch, message, stranger
from tests.support.hub import DEADLINE, METAD, Hub, address, free_ports

EX_DATAERR, EX_NOUSER, EX_UNAVAILABLE, EX_OSERR, EX_CONFIG = 65, 67, 69, 71, 78


@pytest.fixture
def idle_hub():
    """A hub with a mailbox that has not been started."""
    hub = Hub(["alice"])
    try:
        yield hub
    finally:
        hub.__exit__(None)


def test_status_shows_what_runs_and_what_came(hub, mailbox):
    before = hub.status()
    deliver(hub, message(), mailbox)
    fetch(hub, mailbox)
    after = hub.status()
    assert after["running"] is True
    assert after["state"] == "serving"
    assert after["pid"] == hub.process.pid
    assert {one["pid"] for one in after["workers"]} <= set(hub.pids())
    assert after["messages"] == before["messages"] + 1
    assert after["retrieved"] == before["retrieved"] + 1
    assert {"protocol": "smtp", "address": f"127.0.0.1:{hub.smtp_port}"} in after["listen"]


def test_status_for_people_names_the_same_facts(hub):
    shown = hub.run("status").stdout
    assert str(hub.process.pid) in shown
    assert f"127.0.0.1:{hub.pop3_port}" in shown


def test_status_and_stop_without_a_hub_say_so(idle_hub):
    for command in ("status", "stop"):
        done = idle_hub.run(command, check=False)
        assert done.returncode == EX_UNAVAILABLE
        assert "no hub is running" in done.stderr
    assert json.loads(idle_hub.run("status", "--json", check=False).stdout) == {"running": False}


def test_stop_ends_the_hub_and_waits_for_its_end(idle_hub):
    idle_hub.start()
    workers = idle_hub.workers()
    assert len(workers) == 2
    idle_hub.run("stop")
    assert not set(workers) & set(idle_hub.pids())
    assert idle_hub.finished() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_signals_end_the_hub_cleanly(idle_hub, number):
    idle_hub.start()
    assert idle_hub.stop(number=number) == 0
    assert not [path for path in idle_hub.shared if path.exists()]


def test_stop_lets_a_transaction_finish(idle_hub):
    idle_hub.start()
    with SmtpLine(idle_hub) as idle, SmtpLine(idle_hub) as busy:
        busy.say("MAIL FROM:<x@client.example.test>")
        busy.say(f"RCPT TO:<{address('alice')}>")
        idle_hub.process.send_signal(signal.SIGTERM)
        assert idle.line().startswith(b"421 4.3.2")
        busy.say("DATA", b"354")
        busy.send(b"Subject: late\r\n\r\n.\r\n")
        busy.reply(b"250")
        assert busy.line().startswith(b"421 4.3.2")
    assert idle_hub.finished() == 0
    idle_hub.start()
    assert len(fetch(idle_hub, "alice")) == 1


def test_stop_now_does_not_wait(idle_hub):
    idle_hub.start()
    with SmtpLine(idle_hub) as smtp:
        smtp.say("MAIL FROM:<x@client.example.test>")
        idle_hub.run("stop", "--now")
        with pytest.raises(ConnectionError):
            smtp.line()
    assert idle_hub.finished() == 0


def test_users_change_while_the_hub_runs(hub):
    name = "newcomer"
    with SmtpLine(hub) as smtp:
        smtp.say("MAIL FROM:<>")
        smtp.say(f"RCPT TO:<{address(name)}>", b"550 5.1.1")
        hub.add(name, "first")
        smtp.deliver_in(message(), name)
    with Pop3Line(hub) as pop:
        pop.log_in(name, "first")
        pop.say("QUIT")
    hub.run("user", "passwd", address(name), "--password-stdin", given="second\n")
    with Pop3Line(hub, stranger()) as pop:
        pop.log_in(name, "first", b"-ERR")
    with Pop3Line(hub) as pop:
        pop.log_in(name, "second")
    assert address(name) in hub.run("user", "list").stdout.split()
    hub.run("user", "remove", address(name))
    assert address(name) not in hub.run("user", "list").stdout.split()
    with Pop3Line(hub, stranger()) as pop:
        pop.log_in(name, "second", b"-ERR")
    with SmtpLine(hub) as smtp:
        smtp.say("MAIL FROM:<>")
        smtp.say(f"RCPT TO:<{address(name)}>", b"550 5.1.1")


def test_an_address_added_again_gets_a_new_number_and_no_old_mail(hub):
    hub.add("again")
    deliver(hub, message(), "again")
    first = number_of(hub, "again")
    hub.run("user", "remove", address("again"))
    hub.add("again")
    assert number_of(hub, "again") > first
    assert fetch(hub, "again") == []


def test_users_change_without_a_hub(idle_hub):
    idle_hub.add("bob")
    done = idle_hub.run("user", "add", address("bob"), "--password-stdin", given="x\n", check=False)
    assert done.returncode == EX_DATAERR
    idle_hub.run("user", "remove", address("alice"))
    done = idle_hub.run("user", "remove", address("alice"), check=False)
    assert done.returncode == EX_NOUSER
    idle_hub.start()
    deliver(idle_hub, message(), "bob")
    assert len(fetch(idle_hub, "bob")) == 1


def test_the_hub_is_found_by_data_and_by_the_environment(hub):
    environment = {key: value for key, value in os.environ.items() if key != "METAD_DATA"}
    for extra, arguments in (
        ({}, ["--data", str(hub.data)]),
        ({"METAD_DATA": str(hub.data)}, []),
    ):
        done = subprocess.run(
            [METAD, "status", "--json", *arguments],
            env=environment | extra,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=True,
        )
        assert json.loads(done.stdout)["pid"] == hub.process.pid


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("[smtp]\nbare_line_end = 'repair'", "bare_line_ends"),
        ("[limits]\nrecipients = 'many'", "limits.recipients"),
        ("[limits", "metad.toml"),
        ("[store.log]\nsize = 1", "store"),
    ],
    ids=["unknown key", "bad value", "no TOML", "unknown table"],
)
def test_a_bad_configuration_is_refused_with_file_and_key(idle_hub, settings, said):
    idle_hub.configure(settings)
    for command in ("start", "status", "stop"):
        done = idle_hub.run(command, check=False)
        assert done.returncode == EX_CONFIG
        assert str(idle_hub.config) in done.stderr
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused for this")
def test_root_without_a_user_is_refused(idle_hub):
    idle_hub.config.write_text(idle_hub.config.read_text().replace("user =", "#"))
    done = idle_hub.run("start", check=False)
    assert done.returncode == EX_CONFIG
    assert "user" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root first")
def test_a_hub_started_by_root_soon_runs_as_another_user(hub):
    for pid in hub.pids():
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            facts = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        assert set(facts["Uid"].split()) & {"0"} == set()
        assert set(facts["Gid"].split()) & {"0"} == set()
        assert int(facts["CapEff"], 16) == 0
        assert facts["NoNewPrivs"].strip() == "1"


def test_a_data_directory_in_use_is_refused_and_the_hub_is_named(hub):
    other = hub.home / "other.toml"
    text = hub.config.read_text()
    ours = (hub.smtp_port, hub.pop3_port)
    for port, free in zip(ours, free_ports(2), strict=True):
        text = text.replace(f":{port}", f":{free}")
    other.write_text(text)
    done = subprocess.run(
        [METAD, "start", "--config", str(other)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == EX_UNAVAILABLE, done.stderr
    assert str(hub.process.pid) in done.stderr
    assert hub.status()["state"] == "serving"


def test_a_port_in_use_is_refused_and_nothing_is_left(hub, idle_hub):
    text = idle_hub.config.read_text()
    idle_hub.config.write_text(text.replace(str(idle_hub.pop3_port), str(hub.pop3_port)))
    done = idle_hub.run("start", check=False)
    assert done.returncode == EX_OSERR
    assert f"127.0.0.1:{hub.pop3_port}" in done.stderr
    assert done.stdout == ""
    assert idle_hub.run("status", check=False).returncode == EX_UNAVAILABLE


def test_the_null_layer_takes_mail_and_forgets_it():
    with Hub(["alice"], layer="null") as hub:
        deliver(hub, message(), "alice")
        assert fetch(hub, "alice") == []
        assert hub.status()["messages"] == 1
        assert "layer null" in hub.log.read_text()


def number_of(hub, name):
    listed = json.loads(hub.run("user", "list", "--json").stdout)
    return next(one["id"] for one in listed if one["address"] == address(name))
