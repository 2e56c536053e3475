"""As root, in a network of its own, with ports 25 and 110 and a chroot: nanny and master."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from metad import __version__
from metad.cli.launch import _can_read
from metad.system import landlock
from metad.system.privileges import CAP_SYS_CHROOT, find_user
from tests.processes.test_log_rotation import holders, log_directory, wait_released
from tests.support.clients import Pop3Line, SmtpLine, bodies, deliver, digest, message
from tests.support.hub import DEADLINE, USER, watching
from tests.support.live import NAMES, LiveHub, as_it_was, strike
from tests.support.load import KILLS, Load, show
from tests.support.sizes import reached, sized

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SYSTEM_PYTHON = Path("/usr/bin/python3")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a nanny")


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    """A network namespace with a loopback that has all its ports free."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/self/ns/net") as before:
        if libc.unshare(CLONE_NEWNET):
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            with socket.socket() as sock:
                fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
            yield
        finally:
            assert libc.setns(before.fileno(), CLONE_NEWNET) == 0


class NannyHub(LiveHub):
    """`process` is the nanny."""

    def configure(self, settings: str = "", **store: object) -> None:
        super().configure(settings, **store)
        text = self.config.read_text()
        for port, privileged in ((self.smtp_port, 25), (self.pop3_port, 110)):
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{privileged}")
        self.smtp_port, self.pop3_port = 25, 110
        self.config.write_text(f'chroot = "{self.data}"\n{text}')
        self.config.chmod(0o600)  # for root only

    def wrapper(self) -> list[str]:
        """Like a shell with a low limit on descriptors."""
        return ["sh", "-c", 'ulimit -Sn 256; exec "$@"', "-"]

    def master(self) -> int:
        return self.facts()["pid"]

    def next_master(self, old: int) -> int:
        return self.until(
            lambda facts: facts["pid"] != old and facts["state"] == "serving", "the next master"
        )["pid"]


class ExecHub(NannyHub):
    """With a Python that the hub's user can read, so that its master is a program of its own."""

    def wrapper(self) -> list[str]:
        return [*super().wrapper(), str(SYSTEM_PYTHON)]


@pytest.fixture(scope="module")
def shared() -> Iterator[NannyHub]:
    with NannyHub() as hub:
        yield hub


@pytest.fixture
def live(shared) -> Iterator[NannyHub]:
    if shared.process is None:
        shared.start()
    with as_it_was(shared) as hub:
        yield hub  # type: ignore[misc]


def status_of(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_only_the_nanny_is_root_and_the_rest_has_nothing(live):
    check_privileges(live)
    assert (len(given_to_the_master(live)) == 1) == _can_read(find_user(USER))


def test_a_second_start_says_which_hub_runs_not_that_the_port_is_in_use(live, tmp_path):
    """Even on the terminal, if the log goes to a file."""
    for more in ([], ["--log-file", str(live.home / "second.log")]):
        done = live.run("start", *more, check=False)
        assert done.returncode == 69
        assert f"a hub is already running, pid {live.master()}" in done.stderr


def given_to_the_master(live: NannyHub) -> list[int]:
    """The capabilities that it keeps over its exec, before it drops them."""
    assert "metad.master.entry" in command_of(live.master())
    order = json.loads(command_of(live.process.pid)[-1])
    return order[1]


def command_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]


def check_privileges(live: NannyHub) -> None:
    master, nanny = live.master(), live.process.pid
    assert live.facts()["nanny"] == nanny
    assert live.facts()["nanny_version"] == __version__
    assert status_of(nanny)["Uid"].split() == ["0"] * 4
    user = find_user(USER)
    others = [pid for pid in live.pids() if pid != nanny]
    assert {master, *live.worker_pids()} <= set(others)
    for pid in others:
        found = status_of(pid)
        assert found["Uid"].split() == [str(user.uid)] * 4
        assert found["Gid"].split() == [str(user.gid)] * 4
        assert set(found["Groups"].split()) == set(map(str, user.groups))
        assert {found[key] for key in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
        assert found["NoNewPrivs"] == "1"
        assert os.readlink(f"/proc/{pid}/root") == str(live.data)
    facts = live.facts()
    assert facts["chroot"] == str(live.data)
    children = [*facts["workers"], *facts["processes"]]
    assert {one["landlock"] for one in children} == {landlock.version()}


def test_no_child_can_write_what_the_next_master_will_be(live):
    """Landlock closes no descriptors: the configuration's would be an escape."""
    assert "/memfd:metad configuration (deleted)" in descriptors(live.master())
    for pid in live.pids():
        if pid not in (live.process.pid, live.master()):
            assert "/memfd:metad configuration (deleted)" not in descriptors(pid)


def descriptors(pid: int) -> set[str]:
    found = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(os.readlink(fd))
    return found


def run(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


@pytest.mark.long
def test_every_command_works_in_the_chroot(live):
    """Lazily loaded Python modules would be missing there: take each path once, and check the
    log."""
    with SmtpLine(live) as smtp:
        for command in ("HELP", "NOOP", "VRFY a@example.test", "RSET", "HELO x"):
            smtp.say(command)
        for command in ("EXPN a", "MAIL FROM:<", "XYZZY", "RCPT TO:<alice@example.test>"):
            smtp.say(command, b"5")
        smtp.say("EHLO client.example.test")
        smtp.say("MAIL FROM:<räk@example.test> SMTPUTF8")
        smtp.say("RCPT TO:<nobody-here@example.test>", b"550")
        smtp.say("RCPT TO:<alice@xn--rksmrgs-5wao1o.test>", b"550")
        smtp.say("RSET")
        smtp.deliver(message(), "alice", "bob")
        smtp.deliver(message(b"x" * 900 + b"\r\n" * 4_000_00), "bob")
        smtp.send(b"BDAT 3\r\nabc")
        smtp.reply(b"503")
        smtp.say("QUIT", b"221")
    with Pop3Line(live) as pop:
        pop.say("CAPA")
        while pop.line() != b".":
            pass
        pop.say("USER alice@example.test")
        pop.say("PASS wrong", b"-ERR")
        pop.log_in("alice")
        for command in ("LIST", "UIDL", "TOP 1 0", "RETR 1"):
            assert pop.listing(command)
        for command in ("STAT", "NOOP", "RSET", "DELE 1"):
            pop.say(command)
        pop.say("RETR 9", b"-ERR")
        pop.say("QUIT")
    assert len(bodies(live, "bob")) == 2
    live.run("user", "add", "later@example.test", "--no-password")
    deliver(live, message(), "later")
    live.run("reload")
    strike(live.worker_pids()[0])
    live.whole()
    with SmtpLine(live, greet=False) as smtp:
        smtp.reply(b"220")
        smtp.send(b"\xff\xfe\r\n")
        smtp.reply(b"5")
    log = live.log.read_text()
    assert not re.search(r"ImportError|ModuleNotFound|LookupError|No such file", log), log


# Two of each: if more masters die in a row, the nanny delays the next ones for long.
@pytest.mark.long
@pytest.mark.parametrize("turn", range(sized(1, 2)))
def test_the_nanny_starts_a_killed_master_again_and_clients_wait_meanwhile(live, turn):
    times = []
    with Load(live, NAMES) as load:
        for _ in range(2):
            load.wait_for(30)
            master = live.master()
            struck = time.monotonic()
            strike(master)
            # Nothing accepts now, but no client is refused: the nanny keeps the sockets.
            with SmtpLine(live) as waiting:
                waiting.say("QUIT", b"221")
            live.next_master(master)
            times.append(time.monotonic() - struck)
    load.check()
    assert not [text for text in load.failures if "Refused" in text]
    reached(KILLS, len(times))
    show("a master below its nanny", times)


def test_with_the_nanny_killed_everything_ends(live):
    with Load(live, NAMES) as load:
        load.wait_for(30)
        live.kill_master()  # the first process: here the nanny
    live.start()
    load.check()


def test_a_stopped_nanny_stops_nothing_else(live):
    os.kill(live.process.pid, signal.SIGSTOP)
    try:
        sent = message()
        deliver(live, sent, "alice")
        assert digest(bodies(live, "alice")[0]) == digest(sent)
    finally:
        os.kill(live.process.pid, signal.SIGCONT)


def test_a_restarted_master_has_the_configuration_of_the_last_reload(live):
    text = live.config.read_text()
    live.config.write_text(text.replace("hub.example.test", "new.example.test"))
    live.run("reload")
    master = live.master()
    strike(master)
    live.next_master(master)
    with SmtpLine(live, greet=False) as smtp:
        assert b"new.example.test" in smtp.reply(b"220")


def test_privileged_ports_need_a_restart_and_a_reload_says_so(live):
    text = live.config.read_text()
    live.config.write_text(text.replace("127.0.0.1:110", "127.0.0.1:995"))
    done = live.run("reload")
    assert "listen 127.0.0.1:995 needs a restart" in done.stderr
    assert "listen 127.0.0.1:110 needs a restart" in done.stderr
    assert bodies(live, "alice") == []  # it still answers on 110


@pytest.mark.long
def test_stop_through_the_nanny_and_by_the_command(live):
    assert live.stop() == 0
    live.start()
    with watching(live.pids()) as gone:
        live.run("stop")
        gone(DEADLINE)
    assert live.finished() == 0
    live.start()


@pytest.mark.long
def test_the_pid_file_and_systemd_are_told_of_the_nanny(shared, notified):
    """It outlives its masters; and the master has opened the notify socket before its chroot."""
    if shared.process is not None:
        shared.stop()
    pid_file = shared.home / "pid"  # in a directory of root's
    shared.options = ["--pid-file", str(pid_file)]
    shared.start()
    assert pid_file.read_text() == f"{shared.process.pid}\n"
    assert notified("READY")["MAINPID"] == str(shared.process.pid)
    shared.reload()
    assert int(notified("RELOADING")["MONOTONIC_USEC"]) > 0
    assert notified("READY")
    assert notified("WATCHDOG")
    old = shared.master()
    strike(old)
    shared.next_master(old)
    assert pid_file.read_text() == f"{shared.process.pid}\n"
    shared.options = []
    assert shared.stop() == 0
    assert pid_file.read_text() == ""


@pytest.mark.long
def test_a_start_that_fails_has_one_line_and_its_exit_code_through_the_nanny(live):
    live.stop()
    with socket.create_server(("127.0.0.1", 25)):
        code, said = start_again(live)
    assert code == 71
    [line] = said
    assert line.startswith("metad: fatal: cannot listen on 127.0.0.1:25: Address already in use (")
    data = live.data
    os.chown(data, 54321, 54321)
    code, said = start_again(live)
    os.chown(data, find_user(USER).uid, find_user(USER).gid)
    assert code == 77
    assert len(said) == 1
    live.start()


def start_again(live: NannyHub) -> tuple[int, list[str]]:
    done = live.run("start", check=False)
    return done.returncode, done.stderr.splitlines()


def test_nothing_of_a_chrooted_hub_is_left_in_shared_memory_even_by_kill_9(live):
    before = {path for path in Path("/dev/shm").iterdir() if "metad" in path.name}
    owned = [path for path in before if path.stat().st_uid == find_user(USER).uid]
    mine = [path for path in owned if path.name.endswith(f"-{live.master()}")]
    assert mine == []


@pytest.mark.long
def test_with_a_readable_python_the_master_is_its_own_program(shared, monkeypatch):
    site = next(path for path in sys.path if path.endswith("site-packages"))
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{site}")
    command = [str(SYSTEM_PYTHON), "-c", "import sys; print(sys.version_info[:2])"]
    if run(command) != f"{sys.version_info[:2]}\n":
        pytest.skip("no Python of this version that everybody can read")
    if shared.process is not None:
        shared.stop()
    with ExecHub() as live:
        check_privileges(live)
        assert given_to_the_master(live) == [CAP_SYS_CHROOT]
        deliver(live, message(), "alice")
        old = live.master()
        strike(old)
        live.next_master(old)
        check_privileges(live)
        assert len(bodies(live, "alice")) == 1


@pytest.mark.long
def test_a_nanny_follows_the_log_to_its_new_file(live):
    """Regression: it kept the rotated file open, and with it its disk space."""
    live.stop()  # its ports are wanted
    hub = NannyHub()
    hub.config.write_text(hub.config.read_text().replace("chroot", "# chroot", 1))
    hub.config.chmod(0o644)  # SIGHUP reads it as the hub's user
    log = log_directory(hub) / "metad.log"
    hub.options = ["--log-file", str(log)]
    with hub:
        old = log.rename(log.with_name("metad.log.1"))
        os.kill(hub.process.pid, signal.SIGHUP)
        wait_released(hub, old)
        assert hub.process.pid in holders(hub, log)
        # A reload by command signals only the master: the nanny checks before it logs.
        newer = log.rename(log.with_name("metad.log.2"))
        hub.reload()
        master = hub.master()
        strike(master)
        hub.next_master(master)
        wait_released(hub, newer)
        assert "warning: the master died" in log.read_text()
    live.start()
