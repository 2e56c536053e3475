"""docs/spam.md is followed on a bare Debian: its files and its command lines, as they stand there.

Rules of this file:

* apt-get needs the network; what runs after it has none but its own loopback, so Redis, rspamd and
  the hub have the ports of their packages.
* No init system runs in a chroot: Debian's package systemctl starts units without systemd.  It
  makes no RuntimeDirectory of theirs, so the test does.
"""

from __future__ import annotations

import shlex
import shutil

import pytest

from tests.support.debian import Debian
from tests.support.packages import Built
from tests.support.pages import command_lines, files

PAGE = "spam.md"
# The units' programs answer: rspamd compiles for some seconds first.
ANSWERS = """
import socket, sys, time
def answers():
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect("/run/rspamd/worker.sock")
            client.sendall(b"GET /ping HTTP/1.0\\r\\n\\r\\n")
            return b"pong" in client.recv(4096)
        except OSError:
            return False
end = time.monotonic() + 200
while not answers():
    time.sleep(0.1) if time.monotonic() < end else sys.exit("rspamd does not answer")
"""
# What systemd makes for the two units.
DIRECTORIES = (("redis", "2755", "/run/redis"), ("_rspamd", "755", "/run/rspamd"))
# The loopback of a new network namespace is down; ioctl 0x8914 sets the flags UP and RUNNING.
LOOPBACK = (
    "import fcntl, socket, struct;"
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh14x', b'lo', 0x41))"
)
MESSAGE = (
    'import smtplib; smtplib.SMTP("127.0.0.1").sendmail("a@example.net", "alice@example.org",'
    ' "Subject: lunch\\nFrom: a@example.net\\n\\nAt noon?\\n")'
)


def appended(path: str, text: str) -> str:
    """A shell command that makes a file of the page, or adds to one that is there."""
    name, _, note = path.partition(" ")
    assert note in ("", "(at its end)")
    return f"{'test -f ' + name + ' && ' if note else ''}printf %s {shlex.quote(text)} >>{name}"


@pytest.fixture
def system(debian: Debian, packages: Built) -> Debian:
    """The hub as install.md installs it, and a systemctl that needs no systemd."""
    shutil.copy(packages.deb, debian.hand / "metad.deb")
    known = "apt-cache show rspamd redis-server systemctl >/dev/null 2>&1 && echo all || :"
    if not debian.run(f"apt-get -q update; {known}").endswith("all\n"):
        pytest.skip("apt-get reaches no mirror")
    debian.run("apt-get -q install -y /mnt/metad.deb systemctl")
    return debian


def test_the_page_is_followed_from_the_packages_to_a_refusal(system: Debian) -> None:
    lines = command_lines(PAGE)
    assert [line.split()[0] for line in lines] == [
        "apt-get", "usermod", "systemctl", "metad", "metad", "python3",
    ]  # fmt: skip
    gtube = lines.pop()
    system.run(lines[0])
    shown = files(PAGE)
    assert len(shown) == 5
    steps = [
        f"python3 -c {shlex.quote(LOOPBACK)}",
        "metad tls self-signed mx1.example.org",
        "echo secret | metad user add alice@example.org --password-stdin",
        "metad start --detach",
        *(appended(path, text) for path, text in shown.items()),
        *(f"install -d -o {user} -g {user} -m {mode} {path}" for user, mode, path in DIRECTORIES),
        *lines[1:],
        f"python3 -c {shlex.quote(ANSWERS)}",
        f"! {gtube} >/tmp/refused 2>&1",
        "tail -n 1 /tmp/refused",
        f"python3 -c {shlex.quote(MESSAGE)}",
        "metad mail show alice@example.org 1",
        "! metad mail show alice@example.org 2",  # the refused one is not there
        "metad stop",
    ]
    found = system.alone("\n".join(steps))
    assert "(550, b'5.7.1 Gtube pattern')" in found
    assert "\nX-Spam-Score: " in found
    assert "X-Metad-Filter" not in found
    assert "\nSubject: lunch" in found
