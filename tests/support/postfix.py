"""A Postfix of its own, unpacked or installed, in a directory of its own; its master needs root."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import smtplib
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.clients import SENDER
from tests.support.hub import DEADLINE, free_ports, watching

ROOT = Path(os.environ.get("METAD_TEST_ROOT") or Path(__file__).parents[2] / ".test" / "root")
OWNER, GROUP = "mail", "uucp"
SERVICES = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
smtp unix - - n - - smtp
lmtp unix - - n - - lmtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
tlsmgr unix - - n 1000? 1 tlsmgr
postlog unix-dgram n - n - 1 postlogd
"""
SETTINGS = """\
compatibility_level = 3.6
queue_directory = {home}/queue
data_directory = {home}/data
config_directory = {home}/etc
meta_directory = {root}/etc/postfix
command_directory = {root}/usr/sbin
daemon_directory = {root}/usr/lib/postfix/sbin
shlib_directory = {root}/usr/lib/postfix
mail_owner = {owner}
setgid_group = {group}
import_environment = LD_LIBRARY_PATH MAIL_CONFIG
export_environment = LD_LIBRARY_PATH MAIL_CONFIG
maillog_file = {home}/log
maillog_file_prefixes = {home}
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = relay.example.test
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
local_recipient_maps =
smtp_host_lookup = native
smtp_tls_security_level = may
smtpd_peername_lookup = no
address_verify_map =
address_verify_poll_delay = 1s
address_verify_poll_count = 20
{more}
"""


class Postfix:
    """`settings`: lines of main.cf, which take the place of equal ones that stand before."""

    def __init__(self, settings: str) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="metad-postfix-"))
        self.home.chmod(0o755)
        (self.port,) = free_ports(1)
        words = {
            "home": self.home, "root": ROOT, "owner": OWNER, "group": GROUP,
            "more": settings, "port": self.port,
        }  # fmt: skip
        self._directories()
        (self.home / "etc" / "main.cf").write_text(SETTINGS.format(**words))
        (self.home / "etc" / "master.cf").write_text(SERVICES.format(**words))

    def _directories(self) -> None:
        owned = "active bounce corrupt defer deferred flush hold incoming private saved trace"
        for name in ("etc", "queue", "queue/pid"):
            (self.home / name).mkdir()
        for name in ("data", *(f"queue/{one}" for one in (*owned.split(), "maildrop", "public"))):
            path = self.home / name
            path.mkdir(mode=0o700)
            shutil.chown(path, OWNER, GROUP)

    def __enter__(self) -> Postfix:
        libraries = [ROOT / "usr/lib/postfix", *(ROOT / "usr/lib").glob("*-linux-gnu")]
        environment = {
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "MAIL_CONFIG": str(self.home / "etc"),
            "PATH": os.defpath,
        }
        program = ROOT / "usr/lib/postfix/sbin/master"
        self.process = subprocess.Popen(
            [program, "-d", "-c", self.home / "etc"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return self

    def __exit__(self, *_: object) -> None:
        with watching([self.process.pid]) as gone:
            self.process.terminate()
            gone(DEADLINE)
        self.process.wait(DEADLINE)
        shutil.rmtree(self.home)

    def log(self) -> str:
        path = self.home / "log"
        return path.read_text() if path.exists() else "nothing in its log"

    def connected(self) -> smtplib.SMTP:
        """A client, once it listens."""
        deadline = time.monotonic() + DEADLINE
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                return smtplib.SMTP("127.0.0.1", self.port)
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()

    def send(self, octets: list[bytes], to: str) -> None:
        with self.connected() as client:
            for one in octets:
                client.sendmail(SENDER, [to], one, ["BODY=8BITMIME"])


def require() -> None:
    """Skip where it cannot run."""
    if not (ROOT / "usr/lib/postfix/sbin/master").exists():
        pytest.skip("Postfix is not here (sh tools/test --full brings it)")
    if os.geteuid() != 0:
        pytest.skip("Postfix's master starts only as root")
    for user in (OWNER, GROUP):
        with contextlib.suppress(KeyError):
            pwd.getpwnam(user)
            continue
        pytest.skip(f"there is no system user {user} here")
