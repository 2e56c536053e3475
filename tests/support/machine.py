"""A virtual machine that runs a `Debian` with systemd as its first process.

    the test -> qemu's virtio port -> guest_agent.py, a service in the machine -> a shell

Rules of this file:

* The processor is emulated (TCG): ten times slower or more, and the same wherever qemu runs.  So
  it is for what needs a kernel of its own: a kill for want of memory, and a power cut.
* The machine has no network device: what serves in it serves on its own loopback.
* The agent runs one command at a time; a script that is to run beside others becomes a unit of its
  own (`systemd-run`).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.debian import ROOT, Debian

SIZE = "4G"
MEMORY = "1024"
BOOT_SECONDS = 900.0
COMMAND_SECONDS = 900.0
AGENT = Path(__file__).with_name("guest_agent.py")
UNIT = """[Unit]
Description=runs a test's commands
[Service]
ExecStart=/usr/bin/python3 /opt/guest_agent.py
Restart=always
[Install]
WantedBy=multi-user.target
"""
# What a machine for a test does without.
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "getty@tty1.service",
          "fstrim.timer", "systemd-timesyncd.service", "dpkg-db-backup.timer",
          "e2scrub_reap.service", "serial-getty@ttyS0.service")  # fmt: skip


def need_qemu() -> None:
    for program in ("qemu-system-x86_64", "mke2fs"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not here")


def prepare(debian: Debian, *, with_agent: bool = True) -> None:
    """Turn off what a test does without, and put the agent into the tree."""
    masks = " ".join(MASKED)
    debian.run(
        f"systemctl mask {masks}\n"
        "echo metad-machine >/etc/hostname; echo '127.0.0.1 localhost metad-machine' >/etc/hosts\n"
    )
    if not with_agent:
        return
    (debian.hand / "guest_agent.py").write_bytes(AGENT.read_bytes())
    (debian.hand / "guest-agent.service").write_text(UNIT)
    debian.run(
        "install -m 644 -t /opt /mnt/guest_agent.py\n"
        "install -m 644 -t /etc/systemd/system /mnt/guest-agent.service\n"
        "systemctl enable guest-agent.service\n"
        # A start that takes seconds takes minutes here.
        "mkdir -p /etc/systemd/system/service.d\n"
        "printf '[Service]\\nTimeoutStartSec=15min\\n' >/etc/systemd/system/service.d/slow.conf\n"
    )


class Machine:
    """One machine, from `boot` to `close`."""

    patience = 10.0

    def __init__(self, debian: Debian) -> None:
        self._directory = debian.directory
        self._image = debian.directory / "disk"
        self._console = debian.directory / "console"
        done = debian.outside(
            'cp "$(ls "$merged"/boot/vmlinuz-* | tail -n 1)" "$1/kernel"\n'
            'cp "$(ls "$merged"/boot/initrd.img-* | tail -n 1)" "$1/initrd"\n'
            'umount "$merged/proc" "$merged/dev/shm" "$merged/mnt"\n'
            f'mke2fs -q -F -t ext4 -d "$merged" "$2" {SIZE}',
            str(self._directory),
            str(self._image),
        )
        assert done.returncode == 0, done.stderr
        self._output = (debian.directory / "qemu").open("wb")
        self._process: subprocess.Popen[bytes] | None = None
        self._agent: socket.socket | None = None
        self._monitor: socket.socket | None = None
        self._rest = b""
        self._sent = 0

    def boot(self) -> None:
        """Start it, and wait for its agent."""
        agent, agent_end = _listen(self._directory / "agent")
        monitor, monitor_end = _listen(self._directory / "monitor")
        qemu = shutil.which("qemu-system-x86_64")
        self._process = subprocess.Popen(
            [
                str(qemu), *_firmware(), "-machine", "q35", "-accel", "tcg,thread=multi",
                "-cpu", "max", "-smp", "2", "-m", MEMORY, "-nodefaults", "-display", "none",
                "-serial", f"file:{_escaped(self._console)}",
                "-kernel", str(self._directory / "kernel"),
                "-initrd", str(self._directory / "initrd"),
                "-append", "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=1 panic=-1",
                "-drive", f"file={_escaped(self._image)},if=virtio,format=raw,cache=unsafe",
                "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
                "-chardev", f"socket,id=agent,path={_escaped(agent_end)}",
                "-device", "virtserialport,chardev=agent,name=test.agent",
                "-chardev", f"socket,id=monitor,path={_escaped(monitor_end)}",
                "-mon", "chardev=monitor,mode=control",
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._agent, self._monitor = _accept(agent), _accept(monitor)
        self.monitor("qmp_capabilities")
        self.wait_for_boot()

    def wait_for_boot(self) -> None:
        """Until the agent of this boot greets."""
        while self._line(BOOT_SECONDS) != {"hello": True}:
            pass

    def run(self, script: str, *, code: int | None = 0, seconds: float = COMMAND_SECONDS) -> str:
        """Run a shell script as root; what it printed.  `code`: the exit code it must have."""
        self._send(script, seconds)
        answer = self._answer(seconds + 60)
        assert code is None or answer["code"] == code, f"{script}: {answer}\n{self.journal()}"
        return str(answer["out"])

    def journal(self) -> str:
        """The end of metad's own."""
        self._send("journalctl -u metad --no-pager -n 40; systemctl status --no-pager metad", 30)
        answer = self._answer(60)
        return str(answer["out"])

    def reboot(self, *, cut: bool = False) -> None:
        """Reboot by systemd, or as by a power cut."""
        if cut:
            self.monitor("system_reset")
        else:
            self._send("systemctl --no-block reboot", 30)
        self.wait_for_boot()

    def monitor(self, command: str) -> None:
        assert self._monitor is not None
        self._monitor.sendall(json.dumps({"execute": command}).encode() + b"\n")

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._output.close()
        for sock in (self._agent, self._monitor):
            if sock is not None:
                sock.close()

    def _answer(self, seconds: float) -> dict[str, object]:
        """To the last script: one that came too late for another is dropped."""
        while (answer := self._line(seconds)).get("id") != self._sent:
            pass
        return answer

    def _send(self, script: str, seconds: float) -> None:
        assert self._agent is not None
        self._sent += 1
        given = {"id": self._sent, "script": script, "seconds": seconds}
        self._agent.sendall(json.dumps(given).encode() + b"\n")

    def _line(self, seconds: float) -> dict[str, object]:
        assert self._agent is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            self._agent.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                data = self._agent.recv(65536)
            except TimeoutError:
                data = b""
            if not data:
                console = self._console.read_text(errors="replace")[-3000:]
                errors = (self._directory / "qemu").read_text(errors="replace")
                raise AssertionError(f"no answer from the machine: {errors}\n{console}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            found = json.loads(line)
        except ValueError:  # half a line of the boot before
            found = {}
        return found if isinstance(found, dict) else {}


def _firmware() -> Sequence[str]:
    """Where the firmware lies that tools/packages unpacked beside qemu."""
    share = Path(os.environ.get("METAD_TEST_ROOT", ROOT / ".test" / "root")) / "usr" / "share"
    places = [share / name for name in ("seabios", "qemu") if (share / name).is_dir()]
    return [part for place in places for part in ("-L", str(place))]


def _escaped(path: Path) -> str:
    return str(path).replace(",", ",,")


def _listen(path: Path) -> tuple[socket.socket, Path]:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(1)
    sock.settimeout(30)
    return sock, path


def _accept(listener: socket.socket) -> socket.socket:
    with listener:
        return listener.accept()[0]
