"""The tests' hubs are forks of a process that has imported metad: as if they had been executed."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.hub import DEADLINE, Hub
from tests.support.prepared import RIGHTS, SPACES, Started, prepared


class ExecutedHub(Hub):
    def wrapper(self) -> list[str]:
        return ["env"]


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found[int(one.name)] = os.readlink(one)
    return found


def inherited(hub: Hub) -> dict[str, object]:
    """What the master of a hub has from the process that started it."""
    assert hub.process is not None
    this = Path(f"/proc/{hub.process.pid}")
    lines = (this / "status").read_text().splitlines()
    links = descriptors(hub.process.pid)
    ours = {*descriptors(os.getpid()).values(), *descriptors(prepared().pid).values()}
    return {
        "rights": [line for line in lines if line.startswith(RIGHTS)],
        "limits": (this / "limits").read_text(),
        "spaces": [os.readlink(this / "ns" / name) for name in SPACES],
        "directory": os.readlink(this / "cwd"),
        "session": int((this / "stat").read_text().rpartition(")")[2].split()[3]) - hub.process.pid,
        "of the tests": [links[number] for number in links if number > 2 and links[number] in ours],
        "standard": [re.sub(r"\d+|.*/", "", links[number]) for number in (0, 1, 2)],
    }


def test_a_forked_hub_has_what_an_executed_one_has() -> None:
    with Hub() as forked:
        assert isinstance(forked.process, Started)
        found = inherited(forked)
    with ExecutedHub() as executed:
        assert isinstance(executed.process, subprocess.Popen)
        assert found == inherited(executed)
    assert found["standard"] == ["null", "pipe:[]", "log"]
    assert found["of the tests"] == []
    assert found["session"] == 0


def test_a_forked_hub_has_todays_directory_and_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"metad-test-notify-{os.getpid()}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(DEADLINE)
        systemd.bind(f"\0{name}")
        with Hub() as hub:
            assert isinstance(hub.process, Started)
            assert inherited(hub)["directory"] == str(tmp_path)
            assert systemd.recv(1000)


def test_its_exit_status_and_its_end() -> None:
    with Hub() as hub:
        process = hub.process
        assert isinstance(process, Started)
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.001)
        hub.kill_master()
        assert process.returncode == process.wait() == -9
        process.kill()  # nothing: its number may be another one's


def test_a_test_with_other_limits_or_variables_gets_an_executed_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Hub() as hub:
        assert isinstance(hub.process, Started)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        with Hub() as hub:
            assert isinstance(hub.process, subprocess.Popen)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setenv("PYTHONNODEBUGRANGES", "1")
    with Hub() as hub:
        assert isinstance(hub.process, subprocess.Popen)
