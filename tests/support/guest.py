"""What tests do to a booted Debian with the package in it: a virtual machine or namespaces."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from tests.support.install_page import SERVER


class Guest(Protocol):
    """See `tests/support/namespace.py` and `tests/support/machine.py`."""

    patience: float  # how many times as long everything may take

    def boot(self) -> None: ...
    def run(self, script: str, *, code: int | None = 0, seconds: float = ...) -> str: ...
    def reboot(self, *, cut: bool = False) -> None: ...
    def close(self) -> None: ...


PASSWORD = "a long password"
CONFIG = "/etc/metad/metad.toml"
DROP_IN = "/etc/systemd/system/metad.service.d"
# Every Message-ID in alice's mailbox, by POP3 over TLS.
FETCH = f"""
import poplib, re, ssl
box = poplib.POP3_SSL("127.0.0.1", 995, context=ssl._create_unverified_context())
box.user("alice@example.org")
box.pass_({PASSWORD!r})
for number in range(1, box.stat()[0] + 1):
    lines = box.top(number, 0)[1]
    print(*(line.split()[1].decode() for line in lines if line.startswith(b"Message-ID:")))
box.quit()
"""
# A command that asks for a password, and again, on a terminal of its own.
ON_A_TERMINAL = """
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execvp({command!r}[0], {command!r})
seen = b""
while True:
    try:
        data = os.read(terminal, 1024)
    except OSError:
        break
    seen += data
    if data.endswith(b": "):
        os.write(terminal, {password!r}.encode() + b"\\n")
print(seen.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
SEND = """
import smtplib, ssl
with smtplib.SMTP("127.0.0.1", 25, timeout=60) as client:
    client.starttls(context=ssl._create_unverified_context())
    for name in {names!r}:
        text = f"Message-ID: <{{name}}>\\r\\n\\r\\nbody\\r\\n"
        client.sendmail("a@b.example", ["alice@example.org"], text)
"""


def python(machine: Guest, code: str) -> str:
    return machine.run(f"python3 - <<'EOF'\n{code}\nEOF")


def fetched(machine: Guest) -> set[str]:
    return set(python(machine, FETCH).split())


def send(machine: Guest, *names: str) -> None:
    python(machine, SEND.format(names=names))


def shown(machine: Guest, *names: str) -> dict[str, str]:
    said = machine.run(f"systemctl show metad.service -p {','.join(names)}")
    return dict(line.split("=", 1) for line in said.splitlines())


def status(machine: Guest) -> dict[str, Any]:
    return json.loads(machine.run("metad status --json"))


def drop_in(machine: Guest, *lines: str) -> None:
    """Settings of the unit, in place of those of the test before."""
    machine.run(f"mkdir -p {DROP_IN}; rm -f {DROP_IN}/*")
    if lines:
        text = "\n".join(("[Service]", *lines))
        machine.run(f"cat >{DROP_IN}/test.conf <<'EOF'\n{text}\nEOF")
    machine.run("systemctl daemon-reload")


def wait_until(machine: Guest, condition: str, seconds: float = 60) -> None:
    """Until a shell condition of the guest is true; the guest looks, every tenth of a second."""
    seconds *= machine.patience
    script = f"until {condition}; do sleep 0.1; done"
    machine.run(f"timeout {seconds} sh -s <<'EOF'\n{script}\nEOF", seconds=seconds + 10)


@contextmanager
def load(machine: Guest) -> Iterator[Callable[[], dict[str, Any]]]:
    """Mail comes without a pause; what is given ends it and tells what became of it."""
    machine.run("rm -f /run/stop /run/load.json; systemctl stop load 2>/dev/null || :")
    machine.run(
        "systemd-run -q --collect --unit=load python3 /opt/load.py /run/load.json /run/stop"
    )
    wait_until(machine, "journalctl -q -u metad --since=-2s | grep -q load.example")

    def end() -> dict[str, Any]:
        machine.run("touch /run/stop")
        wait_until(machine, "[ -e /run/load.json ]", 90)
        return json.loads(machine.run("cat /run/load.json"))

    try:
        yield end
    finally:
        machine.run("touch /run/stop")


@contextmanager
def changed(machine: Guest) -> Iterator[None]:
    """What is done to the configuration and the unit within is undone, whatever happens."""
    machine.run(f"cp {CONFIG} /run/kept")
    try:
        yield
    finally:
        machine.run("systemctl disable --now metad-smtp.socket metad-pop3.socket")
        machine.run(
            f"cp /run/kept {CONFIG}; systemctl stop metad; systemctl reset-failed metad || :"
        )
        drop_in(machine)
        machine.run("systemctl start metad")


def serve(machine: Guest) -> None:
    """The page's commands after the installation; then there is a hub with TLS on three ports."""
    certificate, user, start = SERVER[3:]
    machine.run(certificate)
    python(machine, ON_A_TERMINAL.format(command=user.split(), password=PASSWORD))
    machine.run(start)
    send(machine, "first@test")
    assert fetched(machine) == {"<first@test>"}
    assert "STLS" in python(machine, 'import poplib; print(poplib.POP3("127.0.0.1", 110).capa())')
    addresses = [(one["protocol"], one["address"]) for one in status(machine)["listen"]]
    assert addresses == [
        ("smtp", "0.0.0.0:25"), ("pop3", "0.0.0.0:110"), ("pop3", "0.0.0.0:995"),
    ]  # fmt: skip
    assert "220 mx1.example.org" in python(
        machine,
        'import socket; print(socket.create_connection(("127.0.0.1", 25)).recv(99).decode())',
    )


def exposure(machine: Guest) -> float:
    """How exposed systemd rates the service, from 0 to 10."""
    printed = machine.run("systemd-analyze security --no-pager metad.service")
    found = re.search(r"Overall exposure level.*: ([\d.]+)", printed)
    assert found
    return float(found[1])
