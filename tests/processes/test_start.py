"""metad start: refused with one line and the right exit code, or ready; and who is notified."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.clients import bodies, deliver, message
from tests.support.hub import DEADLINE, METAD, Hub, lines_of, watching
from tests.support.live import LiveHub, strike

SHARED = Path("/dev/shm")


def refused(hub: Hub, *options: str) -> tuple[int, str]:
    """Exit code and the only line of a start that does not succeed; nothing of it is left."""
    before = set(SHARED.iterdir())
    done = hub.run("start", *options, check=False)
    assert done.stdout == ""
    mine = {path for path in set(SHARED.iterdir()) - before if f"-{os.getpid()}" in path.name}
    assert not mine
    return done.returncode, done.stderr


@contextmanager
def idle_hub(**given):
    """A hub that is neither started nor checked at its end."""
    hub = LiveHub(**given)
    try:
        yield hub
    finally:
        hub.__exit__(KeyError)


def test_a_second_hub_on_the_directory_is_refused_with_the_pid_of_the_first():
    with LiveHub() as live:
        code, said = refused(live)
        assert code == 69
        running = f"metad: fatal: {live.data}: a hub is already running, pid {live.process.pid}"
        assert said.startswith(f"{running} (")
        deliver(live, message(), "alice")


def test_a_port_in_use_is_refused_and_nothing_is_left():
    with idle_hub() as hub, socket.socket() as taken:
        taken.bind(("127.0.0.1", hub.smtp_port))
        taken.listen()
        code, said = refused(hub)
        assert code == 71
        where = f"127.0.0.1:{hub.smtp_port}"
        assert said.startswith(
            f"metad: fatal: cannot listen on {where}: Address already in use (ss "
        )
        assert_nothing_runs(hub)


def test_a_bad_configuration_is_refused():
    with idle_hub() as hub:
        hub.config.write_text(hub.config.read_text().replace("workers = 2", "workers = 0"))
        code, said = refused(hub)
        assert code == 78
        assert re.fullmatch(r"metad: fatal: .*metad.toml:\d+: store.workers: .*\n", said)


def test_a_data_directory_of_another_user_is_refused():
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    with idle_hub() as hub:
        os.chown(hub.data, 54321, 54321)
        code, said = refused(hub)
        assert code == 77
        assert said.startswith(f"metad: fatal: {hub.data}: belongs to a")


def test_a_data_directory_that_cannot_be_made_is_refused():
    with idle_hub() as hub:
        text = hub.config.read_text().replace(str(hub.data), "/proc/metad")
        hub.config.write_text(text)
        code, said = refused(hub)
        assert code in (71, 73)
        assert said.startswith("metad: fatal: /proc/metad: ")


def test_a_pid_file_that_cannot_be_written_is_refused():
    with idle_hub() as hub:
        assert refused(hub, "--pid-file", "/proc/metad.pid")[0] == 73


@pytest.mark.long
@pytest.mark.parametrize(
    ("flag", "code", "text"),
    [
        ("boot", 71, "sabotage: no room"),
        ("bug", 70, "KeyError: 'sabotage'"),
        ("crash", 70, "killed by SIGKILL"),
    ],
)
def test_a_worker_that_cannot_begin_stops_the_start_with_its_reason(sabotaged, flag, code, text):
    with idle_hub() as hub:
        (hub.data / flag).touch()
        done = hub_start(hub)
        assert done.returncode == code
        assert re.search(rf"^metad: fatal: worker [01] cannot start: {text} \(", done.stderr, re.M)
        assert done.stdout == ""
        (hub.data / flag).unlink()
        hub.start()
        deliver(hub, message(), "alice")
        hub.stop()


def hub_start(hub: Hub) -> subprocess.CompletedProcess[str]:
    """A start that should fail; tracebacks are allowed."""
    command = [METAD, "start", "--config", str(hub.config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


@pytest.mark.long
def test_a_recovery_that_a_bad_page_ends_is_begun_once_more(sabotaged):
    """Regression: it stopped the start, and the index was suspect for the next one."""
    with idle_hub() as hub:
        hub.start()
        sent = message()
        deliver(hub, sent, "alice")
        hub.kill()
        (hub.data / "bad-page").write_text("once")
        hub.start()
        log = hub.log.read_text()
        assert re.search(r"recovery \(pid \d+\) was killed by SIGBUS; rebuilding it", log)
        assert bodies(hub, "alice") == [sent]
        hub.stop()
        (hub.data / "bad-page").write_text("always")
        done = hub_start(hub)
        assert done.returncode == 70
        assert "fatal: recovery failed: killed by SIGBUS" in done.stderr


def test_a_recovery_that_fails_stops_the_start_with_its_reason():
    with idle_hub() as hub:
        hub.start().stop()
        logs = hub.data / "logs"
        logs.chmod(0)
        code, said = refused_with_log(hub)
        logs.chmod(0o700)
        assert code == 74
        assert said.startswith("metad: fatal: recovery failed: ")


def refused_with_log(hub: Hub) -> tuple[int, str]:
    done = hub.run("start", check=False)
    return done.returncode, done.stderr.splitlines()[-1]


def test_one_left_by_a_dead_hub_is_recovered_and_started():
    with LiveHub() as live:
        deliver(live, message(), "alice")
        live.kill()
        live.start()
        assert live.facts()["state"] == "serving"


# --- Detached, PID file ---------------------------------------------------------------------------


def test_a_detached_hub_is_ready_when_the_command_returns_and_its_pid_is_in_the_file():
    with idle_hub() as hub:
        pid_file, log = hub.home / "pid", hub.home / "log of it"
        hub.home.chmod(0o777)
        done = hub.run("start", "--detach", "--pid-file", str(pid_file), "--log-file", str(log))
        pid = int(pid_file.read_text())
        try:
            assert done.stdout.splitlines()[-1] == "metad: ready"
            deliver(hub, message(), "alice")
            assert os.getsid(pid) == pid
            assert hub.until(lambda _: "status=stored" in log.read_text(), "a line")["pid"] == pid
            with watching([pid]) as gone:
                hub.run("stop")
                gone(DEADLINE)
            assert not pid_file.exists() or pid_file.read_text() == ""
        finally:
            if hub.run("status", check=False).returncode == 0:
                hub.run("stop", "--now")


def test_a_detached_hub_takes_relative_paths():
    with idle_hub() as hub:
        hub.home.chmod(0o777)
        command = [METAD, "start", "--detach", "--pid-file", "pid", "--log-file", "here.log"]
        done = subprocess.run(
            [*command, "--config", "metad.toml"],
            cwd=hub.home, capture_output=True, text=True, timeout=DEADLINE, check=False,
        )  # fmt: skip
        try:
            assert done.returncode == 0, done.stderr
            assert int((hub.home / "pid").read_text()) == hub.facts()["pid"]
            assert (hub.home / "here.log").exists()
            (hub.home / "here.log").rename(hub.home / "here.log.1")
            hub.run("reload")
            assert "reloaded" in (hub.home / "here.log").read_text()
        finally:
            hub.run("stop", "--now", check=False)


class ShellHub(LiveHub):
    """Started by a shell that has a file open."""

    def wrapper(self) -> list[str]:
        return ["sh", "-c", 'exec 9>"$0"; exec "$@"', str(self.home / "secret")]


def test_no_process_of_a_hub_has_a_file_of_the_shell_that_started_it():
    with ShellHub() as live:
        files = [
            os.readlink(one)
            for pid in live.pids()
            for one in Path(f"/proc/{pid}/fd").iterdir()
            if one.is_symlink()
        ]
        assert any("log" in one for one in files)
        assert not any("secret" in one for one in files)


def test_a_detached_start_that_is_refused_says_why_and_has_the_exit_code():
    with LiveHub() as live:
        done = live.run("start", "--detach", check=False)
        assert done.returncode == 69
        assert f"a hub is already running, pid {live.process.pid}" in done.stderr


@pytest.mark.long
def test_a_detached_start_that_is_killed_before_it_is_ready_has_failed(sabotaged):
    with idle_hub() as hub:
        hub.config.write_text(f"landlock = false\n{hub.config.read_text()}")  # else it could not
        (hub.data / "murder").touch()
        assert hub.run("start", "--detach", check=False).returncode == 70
        # The dead hub could not remove its shared memory; the next one does.
        (hub.data / "murder").unlink()
        hub.start()
        hub.stop()


class CarelessHub(LiveHub):
    """Started by a parent that ignores its children and has no standard input and error."""

    def wrapper(self) -> list[str]:
        code = (
            "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
            "os.close(0); os.close(2); os.execv(sys.argv[1], sys.argv[1:])"
        )
        return [sys.executable, "-c", code]


def test_a_hub_does_not_take_over_what_a_careless_parent_left_it():
    """Log lines would go into a log of the store if it got descriptor number 2."""
    with CarelessHub() as live:
        for pid in live.pids():
            for fd in (0, 2):
                assert os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/null"
        victim = live.worker_pids()[0]
        strike(victim)
        live.whole(victim)
        deliver(live, message(), "alice")


def test_a_second_start_leaves_the_pid_file_of_the_first():
    with idle_hub() as hub:
        hub.home.chmod(0o777)
        pid_file = str(hub.home / "pid")
        hub.options = ["--pid-file", pid_file]
        hub.start()
        assert refused(hub, "--pid-file", pid_file)[0] == 69
        assert Path(pid_file).read_text() == f"{hub.process.pid}\n"
        for pid in hub.worker_pids():
            links = {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
            assert pid_file not in links
        hub.stop()
        assert not Path(pid_file).exists() or Path(pid_file).read_text() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_no_room_for_shared_memory_is_refused_and_no_bus_error_later():
    with idle_hub() as hub:
        small = "mount -t tmpfs -o size=64k tmpfs /dev/shm 2>&1 && exec"
        done = subprocess.run(
            [
                "unshare",
                "--mount",
                "sh",
                "-c",
                f'{small} "$0" start --config "$1"',
                METAD,
                hub.config,
            ],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        if "mount:" in done.stdout or "unshare:" in done.stderr:
            pytest.skip("no mounts here")
        assert done.returncode == 71
        assert done.stderr.splitlines()[-1].startswith(
            "metad: fatal: shared memory: [Errno 28] No space left on device ("
        )
        assert_nothing_runs(hub)


# --- systemd --------------------------------------------------------------------------------------


def test_systemd_is_told_of_ready_reload_watchdog_and_stop(notified):
    with LiveHub() as live:
        assert notified("READY")["MAINPID"] == str(live.process.pid)
        assert notified("WATCHDOG")["WATCHDOG"] == "1"
        live.run("reload")
        assert int(notified("RELOADING")["MONOTONIC_USEC"]) > 0
        assert notified("READY")["READY"] == "1"
        live.stop()
        assert notified("STOPPING")["STOPPING"] == "1"


def test_sockets_handed_over_by_name_and_by_address_are_served():
    """Like systemd: descriptors from 3 on, LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES."""
    with idle_hub() as hub:
        smtp, pop3 = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
        with smtp, pop3:
            old = (hub.smtp_port, hub.pop3_port)
            hub.smtp_port, hub.pop3_port = (one.getsockname()[1] for one in (smtp, pop3))
            text = hub.config.read_text().replace(f'"127.0.0.1:{old[0]}"', '"fd:smtp"')
            hub.config.write_text(text.replace(str(old[1]), str(hub.pop3_port)))
            with activated(hub, {"smtp": smtp, "other": pop3}) as process:
                smtp.close()
                pop3.close()
                said = read_until_ready(process)
                assert said[:2] == [
                    f"listening smtp 127.0.0.1:{hub.smtp_port}",
                    f"listening pop3 127.0.0.1:{hub.pop3_port}",
                ]
                deliver(hub, message(), "alice")
                hub.run("stop")
                assert process.wait(DEADLINE) == 0


def test_a_socket_that_no_table_wants_is_refused():
    with (
        idle_hub() as hub,
        socket.create_server(("127.0.0.1", 0)) as stray,
        activated(hub, {"stray": stray}) as process,
    ):
        assert process.wait(DEADLINE) == 78
        assert "no [[listen]] table matches the passed socket stray" in process.stderr.read()


@pytest.mark.long
def test_systemds_own_activator_hands_sockets_over_by_name():
    """It listens, and becomes the hub when the first client connects."""
    if (program := shutil.which("systemd-socket-activate")) is None:
        pytest.skip("systemd-socket-activate is not here")
    with idle_hub() as hub:
        text = hub.config.read_text()
        command = [program, "--fdname=smtp:pop3"]
        for name, port in (("smtp", hub.smtp_port), ("pop3", hub.pop3_port)):
            text = text.replace(f'"127.0.0.1:{port}"', f'"fd:{name}"')
            command += ["-l", f"127.0.0.1:{port}"]
        hub.config.write_text(text)
        with subprocess.Popen(
            [*command, METAD, "start", "--config", str(hub.config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                for line in lines_of(process.stderr.fileno(), DEADLINE):
                    if f":{hub.pop3_port}" in line:
                        break
                sent = message()
                deliver(hub, sent, "alice")
                assert read_until_ready(process) == [*hub.announced(), "metad: ready"]
                assert bodies(hub, "alice") == [sent]
                hub.run("stop")
                assert process.wait(DEADLINE) == 0
            finally:
                if process.poll() is None:
                    process.terminate()


@contextmanager
def activated(hub: Hub, sockets: dict[str, socket.socket]):
    """A start with sockets handed over; a shell sets the pid, which must be the hub's own."""
    moved = " ".join(
        f"{number}<&{sock.fileno()}" for number, sock in enumerate(sockets.values(), 3)
    )
    process = subprocess.Popen(
        ["bash", "-c", f'LISTEN_PID=$$ exec "$0" start --config "$1" {moved}', METAD, hub.config],
        env={**os.environ, "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": ":".join(sockets)},
        pass_fds=[sock.fileno() for sock in sockets.values()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(DEADLINE)


def read_until_ready(process: subprocess.Popen[str]) -> list[str]:
    said = []
    for line in lines_of(process.stdout.fileno(), DEADLINE):
        said.append(line)
        if line == "metad: ready":
            return said
    raise AssertionError(f"{said} {process.stderr.read()}")


# --- Stopping -------------------------------------------------------------------------------------


def test_stop_now_does_not_wait_and_loses_nothing():
    from tests.support.clients import SmtpLine

    with LiveHub() as live:
        sent = message()
        deliver(live, sent, "alice")
        with SmtpLine(live) as smtp:
            smtp.say("MAIL FROM:<a@example.test>")
            with watching([live.process.pid]) as gone:
                live.run("stop", "--now")
                gone(DEADLINE)
        assert live.finished() == 0
        live.start()
        assert bodies(live, "alice") == [sent]


@pytest.mark.long
def test_a_stop_during_the_start_leaves_nothing():
    with idle_hub() as hub:
        for sign in ("segment", "control", "segment"):
            process = subprocess.Popen(
                [METAD, "start", "--config", str(hub.config)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            with process:
                while not (hub.data / "run" / sign).exists() and process.poll() is None:
                    select.select([], [], [], 0.005)
                process.send_signal(signal.SIGTERM)
                assert process.wait(DEADLINE) == 0, process.stderr.read()
                assert_nothing_runs(hub)
                with socket.socket() as sock:
                    sock.bind(("127.0.0.1", hub.smtp_port))


def assert_nothing_runs(hub: Hub) -> None:
    assert not (hub.data / "run" / "control").exists()
    assert not (hub.data / "run" / "segment").exists()
