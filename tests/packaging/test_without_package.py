"""docs/install.md without the Debian package: every line run in a booted Debian, for the system and
for one user.

pip and pipx find their wheels in a directory instead of an index; nothing else differs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import Debian, need_tree
from tests.support.guest import Guest, exposure, fetched, serve, status, wait_until
from tests.support.install_page import commands
from tests.support.machine import prepare
from tests.support.namespace import Namespace, need_namespaces
from tests.support.packages import Built, checkout, wheels_to_build

MOST_EXPOSURE = 2.0
OFFLINE = "export PIP_NO_INDEX=1 PIP_FIND_LINKS=/opt/wheels PIP_DISABLE_PIP_VERSION_CHECK=1"
# An ordinary user, with pipx as Debian's package or a pip of its own gives it.
USER = """
useradd --create-home --shell /bin/sh carol
python3 -m venv /opt/pipx
/opt/pipx/bin/pip install pipx
ln -s /opt/pipx/bin/pipx /usr/bin/pipx
cp -r /opt/source /home/carol/metad
chown -R carol /home/carol/metad
"""
SEND = """
import poplib, smtplib
with smtplib.SMTP("127.0.0.1", 2525) as client:
    client.sendmail("a@b.example", ["carol@example.org"], "Subject: hers\\r\\n\\r\\n")
box = poplib.POP3("127.0.0.1", 1110)
box.user("carol@example.org")
box.pass_("secret")
print(*box.retr(1)[1])
"""


@pytest.fixture(scope="module")
def guest(packages: Built) -> Iterator[Guest]:
    """Booted, with a checkout in /opt/source."""
    need_tree()
    need_namespaces()
    with tempfile.TemporaryDirectory(prefix="metad without ") as directory:
        debian = Debian(Path(directory))
        checkout(debian.hand / "source")
        wheels_to_build(packages, debian.hand / "wheels", "pip", "pipx")
        prepare(debian, with_agent=False)
        debian.run("cp -r /mnt/source /mnt/wheels /opt/; echo mx1.example.org >/etc/hostname")
        machine = Namespace(debian)
        try:
            machine.boot()
            yield machine
        finally:
            machine.close()


def as_carol(guest: Guest, script: str) -> str:
    guest.run(f"cat >/home/carol/script <<'EOF'\n{script}\nEOF")
    return guest.run("su - carol -c 'sh -e script'", seconds=300)


def test_the_pages_commands_make_a_hub_of_ones_own(guest: Guest) -> None:
    guest.run(f"{OFFLINE}; {USER}", seconds=300)
    install, start = commands("For yourself, without root")
    as_carol(guest, f"{OFFLINE}; cd metad; {install}")
    path = "PATH=$HOME/.local/bin:$PATH"
    as_carol(guest, f"{path}; echo secret | metad user add carol@example.org --password-stdin")
    as_carol(guest, f"{path}; setsid {start} >hub.log 2>&1 &")
    wait_until(guest, "su - carol -c '.local/bin/metad status'")
    assert "Subject: hers" in guest.run(f"python3 - <<'EOF'\n{SEND}\nEOF")
    guest.run("test -d /home/carol/.local/state/metad/logs")
    python = "$HOME/.local/share/pipx/venvs/metad/bin/python"
    version = as_carol(guest, f"{path}; metad --version")
    assert as_carol(guest, f"{python} -m metad --version") == version
    as_carol(guest, f"{path}; metad stop")


def test_the_pages_commands_make_a_service_of_the_system(guest: Guest) -> None:
    lines = commands("Any Linux with systemd, without a package")
    assert len(lines) == 7
    for line in lines:
        guest.run(f"{OFFLINE}; cd /opt/source; {line}", seconds=300)
    serve(guest)
    assert status(guest)["data"] == "/var/lib/metad"
    assert exposure(guest) < MOST_EXPOSURE
    guest.run("systemctl restart metad")
    assert fetched(guest) == {"<first@test>"}
    guest.run("systemctl stop metad")
