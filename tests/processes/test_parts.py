"""Small parts: Landlock, sd_notify, the PID file, the nanny's specification, messages of
children."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metad.errors import CannotCreateError, ConfigError, OsError
from metad.master.children import ChildSpec, ChildTable
from metad.master.datadir import take_lock
from metad.system import landlock, privileges, shared_memory, systemd
from metad.system.pidfile import PidFile
from metad.system.privileges import Identity
from metad.system.shared_memory import Role, SharedArea
from metad.system.systemd import Notifier, passed_sockets
from metad.workers.child import EXIT_BOOT, ChildHandle, describe


def in_child(action: Callable[[], object]) -> str:
    """What `action` returns or raises in a separate process, as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = repr(action())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


# --- Landlock -------------------------------------------------------------------------------------


@pytest.fixture
def confined(tmp_path):
    """Runs something in a process confined to `tmp_path`/mine."""
    if not landlock.version():
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").write_text("x")

    def run(action: Callable[[], object]) -> str:
        def inside() -> object:
            privileges.no_new_privileges()
            landlock.confine([tmp_path / "mine"])
            return action()

        return in_child(inside)

    return run


def test_below_the_directory_everything_goes_on(confined, tmp_path):
    def work() -> str:
        path = tmp_path / "mine" / "a"
        path.write_text("text")
        path.rename(tmp_path / "mine" / "b")
        os.truncate(tmp_path / "mine" / "b", 2)
        os.close(os.open(tmp_path / "mine", os.O_TMPFILE | os.O_RDWR))
        return (tmp_path / "mine" / "b").read_text()

    assert confined(work) == "'te'"


@pytest.mark.parametrize("connects", [False, True])
def test_a_connection_is_made_only_by_who_may(tmp_path, connects):
    if landlock.version() < 4:
        pytest.skip("this kernel has no Landlock for TCP")

    def inside() -> str:
        privileges.no_new_privileges()
        landlock.confine([tmp_path], connects=connects)
        with socket.socket() as client:
            return os.strerror(client.connect_ex(listener.getsockname()))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        said = in_child(inside)
    assert said == repr("Success" if connects else "Permission denied")


def test_a_file_that_is_named_can_be_read_and_no_more(tmp_path):
    if not landlock.version():
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "file").write_text("x")

    def inside() -> str:
        privileges.no_new_privileges()
        landlock.confine([tmp_path / "file"])
        with pytest.raises(PermissionError):
            (tmp_path / "file").write_text("y")
        return (tmp_path / "file").read_text()

    assert in_child(inside) == "'x'"


@pytest.mark.parametrize("path", ["other", "/etc/passwd"])
def test_elsewhere_nothing_can_be_opened(confined, tmp_path, path):
    assert "PermissionError" in confined((tmp_path / path).read_bytes)


def test_no_connection_and_no_listener_can_be_made(confined):
    if landlock.version() < 4:
        pytest.skip("this kernel's Landlock knows no network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        sock = socket.socket()
        assert "PermissionError" in confined(lambda: sock.connect(address))
        assert "PermissionError" in confined(lambda: sock.bind(("127.0.0.1", 0)))
        sock.close()


# --- systemd --------------------------------------------------------------------------------------


def test_without_a_service_manager_nothing_is_sent():
    notifier = Notifier({})
    notifier.ready("x", 1)
    notifier.watchdog(1e9)
    assert not notifier.present


def test_a_manager_in_the_abstract_namespace_is_told(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"metad-test-{os.getpid()}"
        sock.bind("\0" + name)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "2000000"})
        notifier.ready("serving", 4711)
        assert sock.recv(999).split(b"\n")[:2] == [b"READY=1", b"MAINPID=4711"]
        for now, said in ((10.0, 1), (10.5, 0), (11.0, 1)):
            notifier.watchdog(now)
            if said:
                assert sock.recv(99) == b"WATCHDOG=1"
        notifier.extend(2)
        assert sock.recv(99) == b"EXTEND_TIMEOUT_USEC=2000000"
        notifier.close()


def test_the_watchdog_of_another_process_is_not_ours():
    environ = {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}
    assert systemd._watchdog_seconds(environ, {os.getpid(), 0}) == 0.0


def test_the_watchdog_of_the_nanny_above_is_ours():
    environ = {"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "4711"}
    assert systemd._watchdog_seconds(environ, {os.getpid(), 4711}) == 1.0


MOUNTED = """
mount -t tmpfs none "$1"
[ -z "$2" ] || mkdir "$2"
mount -o remount,ro "$1"
exec "$3" -c "$4"
"""
PREPARED = """
import sys
from pathlib import Path
from metad.errors import MetadError
from metad.master.datadir import prepare_data
try:
    prepare_data(Path({!r}))
except MetadError as error:
    print(error.exit_code, error.line)
"""


@pytest.mark.parametrize("made", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_a_read_only_data_directory_names_the_setting_of_the_unit(tmp_path, made, unit):
    if os.geteuid() != 0:
        pytest.skip("not root: nothing can be mounted")
    data = tmp_path / "data"
    code = PREPARED.format(str(data))
    script = ["sh", "-ec", MOUNTED, "sh", str(tmp_path), str(data) if made else "", sys.executable]
    environ = {key: value for key, value in os.environ.items() if key != "INVOCATION_ID"}
    done = subprocess.run(
        ["unshare", "--mount", *script, code],
        env=environ | ({"INVOCATION_ID": "0"} if unit else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    edit = f"add ReadWritePaths={data} to the unit: systemctl edit metad"
    remedy = edit if unit else "mount it for writing"
    assert done.stdout == f"73 {data}: Read-only file system ({remedy})\n", done.stderr


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "+1"},
    ],
)
def test_sockets_meant_for_another_process_are_not_taken(environ):
    assert passed_sockets(environ) == []
    assert "LISTEN_FDS" not in environ


def test_a_descriptor_that_is_no_socket_is_refused():
    def take() -> object:
        os.dup2(os.open("/dev/null", os.O_RDONLY), 3)
        return passed_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})

    assert "ValueError: descriptor 3 (unknown): " in in_child(take)


# --- The rest -------------------------------------------------------------------------------------


def test_a_pid_file_is_written_when_told_and_gone_at_the_end(tmp_path):
    path = tmp_path / "pid"
    path.write_text("another")
    pid_file = PidFile(path)
    assert path.read_text() == "another"
    pid_file.write(4711)
    assert path.read_text() == "4711\n"
    pid_file.remove()
    pid_file.remove()
    assert not path.exists()


def test_a_pid_file_that_was_never_ours_is_left_as_it_was(tmp_path):
    """A refused second start must not erase the first one's."""
    path = tmp_path / "pid"
    path.write_text("4711\n")
    PidFile(path).remove()
    assert path.read_text() == "4711\n"
    path.unlink()
    PidFile(path).remove()
    assert not path.exists()


def test_a_pid_file_that_was_handed_over_is_emptied_and_stays(tmp_path):
    path = tmp_path / "pid"
    pid_file = PidFile(fd=os.open(path, os.O_RDWR | os.O_CREAT))
    pid_file.write(4711)
    assert path.read_text() == "4711\n"
    pid_file.remove()
    assert path.read_text() == ""


def test_a_pid_file_with_a_second_name_or_a_pipe_is_refused(tmp_path):
    """Regression: root would have truncated the file that another user had linked there."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    os.link(victim, tmp_path / "pid")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pid", "pipe"):
        with pytest.raises(CannotCreateError, match="single name"):
            PidFile(tmp_path / name)
    assert victim.read_text() == "precious"


def test_a_pid_file_is_not_written_through_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(CannotCreateError):
        PidFile(tmp_path / "link")
    assert not (tmp_path / "target").exists()


def test_a_hub_does_not_become_root_or_nobody_at_all():
    with pytest.raises(ConfigError, match="must not be root"):
        privileges.find_user("root")
    with pytest.raises(ConfigError, match="no such system user"):
        privileges.find_user("no-such-user")


def test_the_reason_of_a_child_is_logged_once():
    reader, writer = os.pipe()
    handle = ChildHandle(0, lambda: None, writer)
    handle.fail(OsError("no room"), 71)
    handle.ready()
    with open(reader) as file:
        assert file.read() == "E71 no room (metad doctor examines the machine)"


@pytest.mark.parametrize("word", [b"E", b"E\xff", b"E+1", b"Ex y", b"x", b"E71"])
def test_a_word_that_makes_no_sense_does_not_end_the_master(word):
    """A child may be faulty or compromised."""

    def main(row: object, handle: ChildHandle) -> int:
        os.write(handle.word_fd, word)
        return 0

    name = f"/metad-test-{os.getpid()}"
    area = SharedArea.create(name)
    shared_memory.unlink(name)
    family = ChildTable(area, lambda: None)
    child = family.fork(ChildSpec(Role.WORKER, 0, main))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert list(family.reap()) == [(child, 0)]
    assert not child.ready
    assert child.boot_error
    assert child.boot_error_code in (70, 71)


def test_a_row_counts_as_used_before_its_child_runs():
    name = f"/metad-test-{os.getpid()}"
    area = SharedArea.create(name)
    shared_memory.unlink(name)
    family = ChildTable(area, lambda: None)
    specs = [
        ChildSpec(Role.WORKER, slot, lambda row, _: int(area.rows_used > row.index))
        for slot in range(3)
    ]
    children = [family.fork(spec) for spec in specs]
    assert area.rows_used == 1 + max(child.row.index for child in children)
    for child in children:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert sorted(code for _, code in family.reap()) == [1, 1, 1]


def test_a_lock_is_taken_even_where_no_pid_can_be_written(tmp_path):
    """As on a full disk: existing mail is served."""

    def take() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        return take_lock(tmp_path) > 0

    assert in_child(take) == "True"


def test_exit_codes_are_described_for_people():
    assert describe(-9) == "killed by SIGKILL"
    assert describe(EXIT_BOOT) == "exit code 3 (cannot start)"
    assert describe(55) == "exit code 55 (see the log)"


def test_the_hub_is_preloaded_and_no_command_line_with_it():
    code = (
        "import sys; from metad.master.preload import preload; preload(); "
        "print('metad.workers.worker' in sys.modules, 'metad.cli' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_giving_a_directory_away_does_not_follow_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OsError):
        privileges.give_data_to(Path(tmp_path / "link"), Identity("x", os.getuid() + 1, 1, (1,)))
