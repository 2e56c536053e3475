"""Servers to measure (a hub in its own directory, Postfix's smtp-sink), their CPU, this machine.

Rules of this file:

* Everything started here is stopped here, by its process id; everything made is in one directory.
* A server's CPU is that of its process and all its living descendants, from /proc/PID/stat.
"""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
SLOW = TOP / "perf" / "slow_disk"
PASSWORD = "perf"  # of every user of a hub started here
STARTS_WITHIN = 30.0
STOPS_WITHIN = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class HarnessError(Exception):
    """A server did not start or a program is missing; `str()` is for a terminal."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program and the environment it needs."""

    path: str
    environment: dict[str, str]


def find_tool(name: str, root: Path | None = None) -> Tool | None:
    """On PATH; else below `root` or METAD_TEST_ROOT, a tree of packages unpacked by dpkg -x."""
    on_path = shutil.which(name)
    if on_path:
        return Tool(on_path, dict(os.environ))
    root = root or Path(os.environ.get("METAD_TEST_ROOT", TOP / ".test" / "root"))
    for directory in ("usr/sbin", "usr/bin", "sbin", "bin"):
        path = root / directory / name
        if path.is_file():
            libraries = sorted({str(p.parent) for p in (root / "usr" / "lib").rglob("*.so*")})
            return Tool(str(path), os.environ | {"LD_LIBRARY_PATH": ":".join(libraries)})
    return None


def end_in_order() -> None:
    """SIGTERM ends the program as an error does: all that it started is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in made]


@contextlib.contextmanager
def delayed(milliseconds: float) -> Iterator[None]:
    """Hubs started inside this context have a slower disk: each sync takes that much longer."""
    before = os.environ.get("PYTHONPATH")
    if milliseconds:
        os.environ["PYTHONPATH"] = str(SLOW)
        os.environ["METAD_PERF_SYNC_MS"] = str(milliseconds)
    try:
        yield
    finally:
        os.environ.pop("METAD_PERF_SYNC_MS", None)
        os.environ.pop("PYTHONPATH", None)
        if before is not None:
            os.environ["PYTHONPATH"] = before


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.  `pop3`: 0 if it has none."""

    pid: int
    smtp: int
    pop3: int = 0

    def family(self) -> list[int]:
        """Its process and all living descendants."""
        processes = _processes()
        family = [self.pid]
        for pid in family:
            family += [child for child, (parent, _) in processes.items() if parent == pid]
        return [pid for pid in family if pid in processes]

    def cpu(self) -> float:
        """Seconds of user and system time so far, of all its processes."""
        processes = _processes()
        return sum(processes[pid][1] for pid in self.family() if pid in processes)


def _processes() -> dict[int, tuple[int, float]]:
    """pid: (parent, CPU seconds), of all processes."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The name, in parentheses, may hold anything; fields are counted behind it.
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                found[int(entry)] = (int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS)
    return found


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOPS_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_greeting(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the port greets; a server that ended or is silent too long is an error."""
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as s:
            s.settimeout(STARTS_WITHIN)
            if s.recv(512):
                return
        time.sleep(0.02)
    said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
    raise HarnessError(f"the server on port {port} did not start (exit {process.poll()}):\n{said}")


@contextlib.contextmanager
def _running(
    command: Sequence[str], environment: dict[str, str], ports: Sequence[int], log: Path
) -> Iterator[int]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=TOP)
        try:
            for port in ports:
                _await_greeting(port, process, log)
            yield process.pid
        finally:
            _stop(process)


@contextlib.contextmanager
def directory(parent: str | None = None) -> Iterator[Path]:
    """A temporary directory that another user's hub can get into."""
    with tempfile.TemporaryDirectory(prefix="metad-perf-", dir=parent) as name:
        os.chmod(name, 0o755)
        yield Path(name)


@contextlib.contextmanager
def sink(tool: Tool, where: Path) -> Iterator[Server]:
    """Postfix's smtp-sink, which accepts mail and discards it."""
    (port,) = free_ports(1)
    as_user = ["-u", user_name()] if os.geteuid() == 0 else []
    command = [tool.path, *as_user, f"127.0.0.1:{port}", "4096"]
    with _running(command, tool.environment, [port], where / "sink.log") as pid:
        yield Server(pid, port)


@dataclass(frozen=True, slots=True)
class HubOptions:
    workers: int = 2
    layer: str = "log"
    users: tuple[str, ...] = ()
    log_size: str = "128MiB"
    more: str = ""  # lines behind the table [store]
    commands: tuple[tuple[str, ...], ...] = ()  # `metad ...`, before it starts
    tls: bool = False  # a certificate is made for it


@contextlib.contextmanager
def hub(where: Path, options: HubOptions) -> Iterator[Server]:
    """A hub of the installed metad in `where`, with these users."""
    smtp, pop3 = free_ports(2)
    config = where / "metad.toml"
    config.write_text(hub_config(smtp, pop3, options))
    command = [sys.executable, "-c", "import sys; from metad.cli import main; sys.exit(main())"]
    place = ["--data", str(where / "data"), "--config", str(config)]
    if options.users:
        listed = where / "passwd"
        listed.write_text("".join(f"{user}:{{PLAIN}}{PASSWORD}\n" for user in options.users))
        add = [*command, "user", "import", *place, "--format", "dovecot", str(listed)]
        done = subprocess.run(add, capture_output=True, cwd=TOP, check=False)
        if done.returncode:
            raise HarnessError(f"user import: {done.stderr.decode(errors='replace')}")
    if options.tls:
        made = [*command, "tls", "self-signed", *place]
        done = subprocess.run(made, capture_output=True, cwd=TOP, check=False)
        if done.returncode:
            raise HarnessError(f"tls self-signed: {done.stderr.decode(errors='replace')}")
    for words in options.commands:
        metad(where, *words)
    log = where / "hub.log"
    with _running([*command, "start", *place], dict(os.environ), [smtp, pop3], log) as pid:
        yield Server(pid, smtp, pop3)


def metad(where: Path, *words: str) -> str:
    """What a command prints about the hub in `where`."""
    command = [sys.executable, "-c", "import sys; from metad.cli import main; sys.exit(main())"]
    place = ["--data", str(where / "data"), "--config", str(where / "metad.toml")]
    done = subprocess.run(
        [*command, *words, *place], capture_output=True, text=True, cwd=TOP, check=False
    )
    if done.returncode:
        raise HarnessError(f"metad {' '.join(words)}: {done.stderr or done.stdout}")
    return done.stdout


def user_name() -> str:
    """The user of the servers when this runs as root: METAD_PERF_USER, or the user nobody."""
    return pwd.getpwnam(os.environ.get("METAD_PERF_USER", "nobody")).pw_name


def hub_config(smtp: int, pop3: int, options: HubOptions) -> str:
    as_user = f'user = "{user_name()}"\n' if os.geteuid() == 0 else ""
    return f"""hostname = "mx.perf.example"
{as_user}
[[listen]]
protocol = "smtp"
address = "127.0.0.1:{smtp}"

[[listen]]
protocol = "pop3"
address = "127.0.0.1:{pop3}"

[store]
layer = "{options.layer}"
workers = {options.workers}
log_size = "{options.log_size}"
{options.more}"""


def machine(where: Path) -> dict[str, Any]:
    """Facts without which a figure means nothing."""
    model = "unknown"
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().split("\n")
        model = next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "filesystem": filesystem(where),
        "load": load(),
        "command": _command(),
    }


def load() -> list[float]:
    """The load averages, before the first of several programs that run one after another."""
    first = os.environ.get("PERF_LOAD")
    return [float(one) for one in first.split()] if first else list(os.getloadavg())


def _command() -> list[str]:
    """The command as typed (tools/perf sets PERF_PROGRAM), without directories of this machine."""
    program = os.environ.get("PERF_PROGRAM")
    words = [os.path.basename(word) if "/" in word else word for word in sys.argv]
    return ["sh", "tools/perf", program, *words[1:]] if program else words


def conditions(facts: dict[str, Any]) -> str:
    """The machine in a sentence or two, for the top of a table."""
    load, cores = facts["load"][0], facts["cores"]
    text = (
        f"{facts['cpu']}, {cores} cores, Linux {facts['kernel']}, {facts['filesystem']}, "
        f"Python {facts['python']}, {facts['date']}, load {load:.1f} at the start: "
        f"`{' '.join(facts['command'])}`."
    )
    if load > cores / 4:
        text += (
            " The machine was not quiet: only ratios count, and those with a large spread little."
        )
    return text


def filesystem(where: Path) -> str:
    """The type of the file system that holds `where`; durable figures mean nothing on tmpfs."""
    best, kind = "", "unknown"
    target = str(where.resolve())
    for line in Path("/proc/mounts").read_text().split("\n"):
        fields = line.split()
        if len(fields) > 2 and len(fields[1]) >= len(best):
            mount = fields[1].rstrip("/") + "/"
            if (target + "/").startswith(mount):
                best, kind = fields[1], fields[2]
    return kind


def reached_device(where: Path) -> int:
    """Octets written so far to the block device of `where`, after a sync.  0: it has none."""
    os.sync()
    device = os.stat(where).st_dev
    name = f"{os.major(device)} {os.minor(device)}"
    for line in Path("/proc/diskstats").read_text().split("\n"):
        fields = line.split()
        if " ".join(fields[:2]) == name:
            return int(fields[9]) * 512
    return 0
