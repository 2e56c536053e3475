"""A Dovecot on free ports of the loopback: the installed one, or the packages that were unpacked
for the tests, laid over /usr in a mount namespace of its own (its paths are compiled in).

One process tree, serving mail as the user that owns it; it ends with the `with`.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import DEADLINE, USER, free_ports, session_pids, watching

PROGRAM = Path("/usr/sbin/dovecot")
PASSWORD = "secret"
MASTER = "master"
MASTER_PASSWORD = "master secret"


class Dovecot:
    """Users with any name and PASSWORD, mail where `location` says (a mail_location)."""

    def __init__(self, location: str, protocols: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="metad-dovecot-"))
        self.home.chmod(0o755)
        self.imap_port, self.pop3_port = free_ports(2)
        self.user = pwd.getpwnam(USER) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.log = self.home / "log"
        self._configure(location, protocols)
        self.process = subprocess.Popen(
            [*_in_namespace(), str(PROGRAM), "-F", "-c", str(self.home / "dovecot.conf")],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip

    def _configure(self, location: str, protocols: str) -> None:
        run = self.home / "run"
        run.mkdir()
        master = self.home / "masters"
        master.write_text(f"{MASTER}:{{PLAIN}}{MASTER_PASSWORD}\n")
        owner, group = self.user.pw_name, _group(self.user.pw_gid)
        (self.home / "dovecot.conf").write_text(f"""
protocols = {protocols}
listen = 127.0.0.1
base_dir = {run}
state_dir = {run}
instance_name = test
log_path = {self.log}
default_internal_user = {owner}
default_internal_group = {group}
default_login_user = {owner}
first_valid_uid = 1
first_valid_gid = 1
ssl = no
disable_plaintext_auth = no
mail_location = {location}
auth_mechanisms = plain
auth_master_user_separator = *
passdb {{
  driver = passwd-file
  args = {master}
  master = yes
}}
passdb {{
  driver = static
  args = password={PASSWORD}
}}
userdb {{
  driver = static
  args = uid={self.user.pw_uid} gid={self.user.pw_gid} home={self.home}/%u
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {self.imap_port}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service pop3-login {{
  chroot =
  inet_listener pop3 {{
    port = {self.pop3_port}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service anvil {{
  chroot =
}}
service stats {{
  chroot =
}}
namespace inbox {{
  inbox = yes
}}
""")

    def wait(self, port: int, greeting: bytes) -> None:
        """Until it answers."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError), _connected(port) as one:
                if select.select([one], [], [], 5)[0] and one.recv(4096).startswith(greeting):
                    return
        log = self.log.read_text() if self.log.exists() else "no log"
        raise AssertionError(f"Dovecot does not answer: {log}")

    def close(self) -> None:
        with watching(session_pids(self.process.pid)) as gone:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            gone(DEADLINE)
        self.process.wait(DEADLINE)
        shutil.rmtree(self.home)


@contextlib.contextmanager
def dovecot(location: str, protocol: str) -> Iterator[Dovecot]:
    """Serves `protocol` ("imap" or "pop3"), or skips the test with a reason."""
    if not _has(protocol):
        pytest.skip(f"no Dovecot with {protocol.upper()} here (sh tools/test --full brings it)")
    server = Dovecot(location, protocol)
    try:
        port = server.imap_port if protocol == "imap" else server.pop3_port
        server.wait(port, b"* OK" if protocol == "imap" else b"+OK")
        yield server
    finally:
        server.close()


def _has(protocol: str) -> bool:
    """Each protocol is a package of its own; an installed Dovecot may lack one."""
    part = f"usr/lib/dovecot/{protocol}-login"
    if PROGRAM.exists():
        return (Path("/") / part).exists()
    return (_root() / part).exists() and _can_overlay()


def _connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 5)


def _root() -> Path:
    return Path(os.environ.get("METAD_TEST_ROOT", Path(__file__).parents[2] / ".test" / "root"))


def _in_namespace() -> list[str]:
    """What runs a program with the unpacked packages laid over /usr."""
    if PROGRAM.exists():
        return []
    mount = f'mount -t overlay overlay -o "lowerdir={_root()}/usr:/usr" /usr && exec "$@"'
    return ["unshare", "-m", "sh", "-c", mount, "sh"]


def _can_overlay() -> bool:
    done = subprocess.run([*_in_namespace(), "true"], capture_output=True, check=False)
    return done.returncode == 0


def _group(number: int) -> str:
    return grp.getgrgid(number).gr_name
