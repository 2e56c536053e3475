"""metad start, stop and status, against a hub that is only a control socket."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

import pytest

from metad.cli import hub, tables
from metad.errors import EX_CONFIG, EX_NOPERM, EX_UNAVAILABLE, EX_USAGE

STATUS = {
    "pid": 42,
    "version": "0.1",
    "uptime": 90061.5,
    "listen": ["smtp 127.0.0.1:2525", "pop3 127.0.0.1:1110"],
    "workers": [{"slot": 0, "pid": 43, "state": "ready"}, {"slot": 1, "pid": 44, "log": None}],
    "logs": [],
}


def test_status_shows_facts_and_tables(run, data, fake_hub):
    fake_hub(status=STATUS)
    code, out, err = run("status", "--data", data)
    assert (code, err) == (0, "")
    assert out == (
        "running: yes\n"
        "pid:     42\n"
        "version: 0.1\n"
        "uptime:  1 d 1 h 1 min 1 s\n"
        "listen:  smtp 127.0.0.1:2525, pop3 127.0.0.1:1110\n"
        "logs:    -\n"
        "\n"
        "slot\tpid\tstate\tlog\n"
        "0\t43\tready\t-\n"
        "1\t44\t-\t-\n"
    )


def test_status_as_json_is_what_the_hub_says(run, data, fake_hub):
    fake_hub(status=STATUS)
    code, out, _ = run("status", "--data", data, "--json")
    assert code == 0
    assert json.loads(out) == {"running": True, **STATUS}


def test_status_on_a_terminal_is_drawn(run, data, fake_hub, monkeypatch):
    fake_hub(status={"workers": [{"pid": 43, "state": "[bold]"}]})
    monkeypatch.setattr(tables, "terminal", lambda: True)
    code, out, _ = run("status", "--data", data)
    assert code == 0
    assert "43" in out
    assert "[bold]" in out


def test_status_without_a_hub_says_so(run, data):
    data.mkdir()
    assert run("status", "--data", data) == (
        EX_UNAVAILABLE, "", f"metad: fatal: no hub is running on {data} (metad start starts it)\n",
    )  # fmt: skip
    code, out, _ = run("status", "--data", data, "--json")
    assert (code, json.loads(out)) == (EX_UNAVAILABLE, {"running": False})


def test_the_hub_is_found_by_the_environment_and_by_the_configuration(
    run, data, fake_hub, tmp_path, monkeypatch
):
    fake_hub(status={"pid": 42})
    file = tmp_path / "m.toml"
    file.write_text(f'data = "{data}"\n')
    assert "42" in run("status", "--config", file)[1]
    monkeypatch.setenv("METAD_DATA", str(data))
    assert "42" in run("status")[1]


def test_stop_tells_the_hub_and_waits_for_its_end(run, data, fake_hub):
    stopped = fake_hub()
    assert run("stop", "--data", data) == (0, "", "")
    assert stopped.requests == [{"command": "stop", "now": False}]


def test_stop_now_says_now(run, data, fake_hub):
    stopped = fake_hub()
    assert run("stop", "--now", "--data", data)[0] == 0
    assert stopped.requests == [{"command": "stop", "now": True}]


def test_stop_without_a_hub_says_so(run, data):
    data.mkdir()
    assert run("stop", "--data", data)[0] == EX_UNAVAILABLE
    assert run("stop", "--data", data / "none")[0] == EX_UNAVAILABLE


@pytest.mark.slow
def test_a_hub_that_does_not_end_is_told_after_the_deadline(run, data, fake_hub):
    fake_hub(stuck=True)
    code, _, err = run("stop", "--timeout", "0.1", "--data", data)
    assert code == EX_UNAVAILABLE
    assert "did not stop within 0.1 s" in err


@pytest.mark.slow
def test_stop_waits_for_the_lock_of_the_last_process(run, data, fake_hub):
    fake_hub()
    with (data / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run("stop", "--timeout", "0.2", "--data", data)
    assert code == EX_UNAVAILABLE
    assert "did not stop" in err


@pytest.mark.slow
def test_the_wait_for_the_lock_ends_when_it_is_given_up(tmp_path):
    path = tmp_path / "lock"
    held = path.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    timer = threading.Timer(0.05, held.close)
    timer.start()
    before = signal.getsignal(signal.SIGALRM)
    assert hub.wait_unlocked(path, 30)
    timer.join()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_lock_that_is_not_there_is_not_waited_for(tmp_path):
    assert hub.wait_unlocked(tmp_path / "lock", 30)


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "x"])
def test_a_timeout_that_is_none_is_a_usage_error(run, data, timeout):
    assert run("stop", "--timeout", timeout, "--data", data)[0] == EX_USAGE


@pytest.mark.parametrize(
    "command",
    ["top --once --interval", "trace 192.0.2.7 --seconds", "mail wait a@b.example --timeout"],
)
@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_seconds_that_no_clock_reaches_are_a_usage_error(run, data, command, seconds):
    code, _, err = run(*command.split(), seconds, "--data", data)
    assert code == EX_USAGE
    assert command.split()[-1] in err


def test_what_looks_like_a_network_and_is_none_is_not_waited_for_as_an_address(run, data):
    code, _, err = run("trace", "10.0.0.0/33", "--data", data)
    assert code == EX_USAGE
    assert "'10.0.0.0/33' does not appear to be an IPv4 or IPv6 network (give a network" in err


@pytest.fixture
def master(monkeypatch):
    """A stand-in for metad.master that keeps its arguments."""
    started = []
    module = types.ModuleType("metad.master")
    module.start = lambda config, options: started.append(config) or 5  # type: ignore[attr-defined]
    module.Options = lambda **_: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "metad.master", module)
    monkeypatch.setattr("metad.master", module, raising=False)
    return started


def test_start_gives_the_configuration_to_the_master(run, data, master, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() or 1000)
    assert run("start", "--data", data)[0] == 5
    assert [one.data for one in master] == [data]


def test_start_as_root_without_a_user_is_refused(run, data, master, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    code, _, err = run("start", "--data", data)
    assert (code, master) == (EX_CONFIG, [])
    assert "user: must be set" in err


def test_start_as_another_than_the_configured_user_is_refused(run, tmp_path, master, monkeypatch):
    file = tmp_path / "m.toml"
    file.write_text('user = "root"\n')
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert run("start", "--config", file)[0] == EX_NOPERM
    file.write_text('user = "no-such-user-here"\n')
    assert run("start", "--config", file)[0] == EX_CONFIG
    assert master == []


@pytest.fixture
def given_away():
    """A data directory of a user with a number and no name, on a path accessible to it."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o711)
        data = Path(top) / "data"
        data.mkdir(mode=0o700)
        os.chown(data, 54321, 54322)
        yield data


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_command_of_root_is_done_as_the_owner_of_the_data(given_away):
    code = (
        "import os, sys; from metad.cli import main; "
        f"code = main(['user', 'add', 'a@x.org', '--no-password', '--data', '{given_away}']); "
        "print(os.getresuid(), os.getresgid(), os.getgroups()); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(54321, 54321, 54321) (54322, 54322, 54322) [54322]" in done.stdout.decode()
    assert (given_away / "users" / "data.mdb").stat().st_uid == 54321


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be tricked")
@pytest.mark.parametrize("how", ["a link to root's directory", "below a user's directory"])
def test_a_users_link_leads_no_command_of_root_into_a_directory_of_roots(run, tmp_path, how):
    """Regression: the command did its work there as root."""
    roots = tmp_path / "roots"
    roots.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    data = home / "data"
    if how.startswith("a link"):
        data.symlink_to(roots)
        os.lchown(data, 54321, 54321)
    else:
        roots.rename(data)
        os.chown(home, 54321, 54321)
    code, _, err = run("user", "add", "a@x.org", "--no-password", "--data", data)
    assert code == EX_NOPERM
    assert "decides where" in err
    assert list(data.iterdir()) == []


def test_a_user_other_than_the_owner_is_refused(run, data, monkeypatch):
    data.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    code, _, err = run("user", "list", "--data", data)
    assert code == EX_NOPERM
    assert "belongs to" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_data_directory_made_by_root_belongs_to_the_configured_user(tmp_path):
    from metad.cli.context import make_data

    make_data(tmp_path / "a" / "d", "daemon")
    made = (tmp_path / "a" / "d").stat()
    assert (made.st_uid, made.st_mode & 0o777) == (1, 0o700)


def test_a_bad_owner_makes_no_data_directory(run, tmp_path, monkeypatch):
    file = tmp_path / "m.toml"
    file.write_text(f'user = "no-such-user-here"\ndata = "{tmp_path}/d"\n')
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert run("user", "add", "a@x.org", "--no-password", "--config", file)[0] == EX_CONFIG
    assert not (tmp_path / "d").exists()
