"""rspamd and Redis themselves, with the configuration of docs/spam.md and DNS from memory.

Rules of this file:

* Nothing of this machine is read or written: the packages lie in .test/root or are installed, the
  rest is a directory of the test's.
* The files of docs/spam.md are used as they stand there, but for the paths below /run.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.support.pages import files

TOP = Path(__file__).parents[2]
PAGE = "spam.md"
DEADLINE = 120.0
# What asks servers elsewhere.
_OFF = ("rbl", "fuzzy_check", "surbl", "phishing", "asn", "mx_check")
_LOCAL = "/etc/rspamd/local.d/"
# Its own list has thousands, which take half a minute of a processor to compile.
_SUFFIXES = ("com", "net", "org")
_OPTIONS = """
control_socket = "{run}/control.sock mode=0600";
url_tld = "{run}/suffixes";
dns {{
  timeout = 0.1s;
  retransmits = 1;
  nameserver = ["127.0.0.1:9"];
  fake_records = [{records}];
}}
"""


def root() -> Path | None:
    """Where rspamd's files are: unpacked beside the checkout, or installed."""
    unpacked = TOP / ".test" / "root"
    for one in (unpacked, Path("/")):
        if (one / "etc/rspamd/rspamd.conf").exists() and shutil.which("rspamd"):
            return one
    return None


# On a busy machine Redis answers late; by default rspamd then goes on without it after a second,
# and after eight without the rest of its rules: the message would be accepted, not greylisted.
_PATIENT = {"redis.conf": "timeout = 15s;\n", "worker-normal.inc": "task_timeout = 18s;\n"}


class RealRspamd:
    """`records`: of DNS; name, type and value ("": there is no such name).

    `more`: further files of local.d.
    """

    def __init__(
        self, base: Path, records: list[tuple[str, str, str]], more: Mapping[str, str] | None = None
    ) -> None:
        self._base = base
        self.home = Path(tempfile.mkdtemp(prefix="rspamd-"))
        self.home.chmod(0o755)
        self._processes: list[subprocess.Popen[bytes]] = []
        for name in ("local.d", "db", "log", "rspamd", "redis"):
            (self.home / name).mkdir()
        self._configure(records)
        for name, text in (more or {}).items():
            (self.home / "local.d" / name).write_text(text)

    @property
    def address(self) -> str:
        return f"unix:{self.home}/rspamd/worker.sock"

    @property
    def controller(self) -> str:
        return f"unix:{self.home}/rspamd/controller.sock"

    def _configure(self, records: list[tuple[str, str, str]]) -> None:
        local = self.home / "local.d"
        shown = {path: text for path, text in files(PAGE).items() if path.startswith(_LOCAL)}
        assert len(shown) == 3
        for path, text in shown.items():
            name = path.removeprefix(_LOCAL)
            more = _PATIENT.get(name, "")
            (local / name).write_text(text.replace("/run/", f"{self.home}/") + more)
        for name in _OFF:
            (local / f"{name}.conf").write_text("enabled = false;\n")
        (local / "worker-controller.inc").write_text(
            f'bind_socket = "{self.home}/rspamd/controller.sock mode=0666";\n'
        )
        (local / "worker-proxy.inc").write_text("enabled = false;\n")
        fake = ", ".join(
            f'{{name = "{name}", type = {kind}, '
            + (f'replies = ["{text}"]}}' if text else 'rcode = "nxdomain"}')
            for name, kind, text in records
        )
        run = self.home / "rspamd"
        (run / "suffixes").write_text("\n".join(_SUFFIXES))
        (local / "options.inc").write_text(_OPTIONS.format(run=run, records=fake))

    def kill_workers(self) -> int:
        """SIGKILL for every process that checks mail, of which rspamd starts new ones."""
        main = self._processes[-1].pid
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        for pid in children:
            os.kill(int(pid), signal.SIGKILL)
        return len(children)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for one in reversed(self._processes):
            one.terminate()
            try:
                one.wait(20)
            except subprocess.TimeoutExpired:
                one.kill()
                one.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    def _start(self) -> None:
        redis = self.home / "redis"
        config = self.home / "redis.conf"
        shown = files(PAGE)["/etc/redis/redis.conf (at its end)"]
        config.write_text(
            f'port 0\nsave ""\ndir {redis}\n{shown}'.replace("/run/", f"{self.home}/")
        )
        self._run("redis-server", str(config))
        base, share = self._base, self._base / "usr/share/rspamd"
        places = {
            "CONFDIR": base / "etc/rspamd", "LOCAL_CONFDIR": self.home, "DBDIR": self.home / "db",
            "RUNDIR": self.home / "rspamd", "LOGDIR": self.home / "log",
            "RULESDIR": share / "rules", "LUALIBDIR": share / "lualib",
            "PLUGINSDIR": share / "plugins", "SHAREDIR": share,
            "WWWDIR": share / "www",
        }  # fmt: skip
        insecure = ["-i"] if os.geteuid() == 0 else []
        self._run(
            "rspamd", "-f", *insecure, "-c", str(base / "etc/rspamd/rspamd.conf"),
            *(f"--var={name}={path}" for name, path in places.items()),
        )  # fmt: skip
        self._wait_until_ready()

    def _run(self, *command: str) -> None:
        with (self.home / "log" / f"{command[0]}.out").open("wb") as out:
            self._processes.append(
                subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
            )

    def _wait_until_ready(self) -> None:
        """Until it answers.  It compiles its rules first: seconds of CPU, minutes beside others."""
        deadline = time.monotonic() + 5 * DEADLINE
        rspamd = self._processes[-1]
        while not self._answers():
            assert rspamd.poll() is None, (self.home / "log" / "rspamd.out").read_text()
            assert time.monotonic() < deadline, (self.home / "log" / "rspamd.log").read_text()
            descriptor = os.pidfd_open(rspamd.pid)
            try:
                select.select([descriptor], [], [], 0.1)  # it would have ended
            finally:
                os.close(descriptor)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            try:
                client.connect(self.address.removeprefix("unix:"))
                client.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
                return b"pong" in client.recv(4096)
            except OSError:
                return False
