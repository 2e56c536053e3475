"""The hub on a real machine: docs/install.md is followed, and systemd starts, watches and ends it.

One machine for the whole file: the tests are in the order in which they leave it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.debian import ROOT, Debian, need_tree
from tests.support.machine import Machine, need_qemu, prepare
from tests.support.packages import LATER, Built
from tests.support.sizes import noted

# These have not been seen to pass as a whole: an emulated machine on a busy one is too slow for
# their deadlines.  METAD_TEST_MACHINE=all runs them.
on_request = pytest.mark.skipif(
    os.environ.get("METAD_TEST_MACHINE") != "all", reason="METAD_TEST_MACHINE=all is not set"
)
PAGE = ROOT / "docs" / "install.md"
MOST_EXPOSURE = 2.0
PASSWORD = "a long password"
LOAD = Path(__file__).parents[1] / "support" / "guest_load.py"
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


def commands(title: str) -> list[str]:
    """Those of the first block of shell below a title of the page."""
    text = PAGE.read_text()
    section = text[text.index(f"# {title}\n") :]
    block = re.search(r"^ *```sh\n(.*?)^ *```$", section, re.MULTILINE | re.DOTALL)
    assert block
    return [line.strip() for line in block[1].splitlines()]


SERVER = commands("A server, with the Debian package")


@pytest.fixture(scope="module")
def machine(packages: Built) -> Iterator[Machine]:
    """A machine on which the page has been followed as far as the package's installation."""
    need_tree()
    need_qemu()
    with tempfile.TemporaryDirectory(prefix="metad machine ") as directory:
        debian = Debian(Path(directory))
        install(debian, packages)
        machine = Machine(debian)
        try:
            machine.boot()
            yield machine
        finally:
            machine.close()


def install(debian: Debian, packages: Built) -> None:
    """The page's commands up to the installation, in a checkout; without an index of packages."""
    shutil.copytree(packages.wheels, debian.hand / "wheels")
    shutil.copy(packages.later, debian.hand / "later.deb")
    shutil.copy(LOAD, debian.hand / "load.py")
    source = debian.hand / "metad"
    source.mkdir()
    for name in ("tools", "packaging"):
        shutil.copytree(ROOT / name, source / name)
    shutil.copy(ROOT / "LICENSE", source)
    prepare(debian)
    debian.run("echo mx1.example.org >/etc/hostname; cp /mnt/later.deb /mnt/load.py /opt/")
    debian.run(
        "cd /mnt/metad; export WHEELS=/mnt/wheels COMPRESSION=none\n" + "\n".join(SERVER[:3])
    )


@pytest.fixture(autouse=True)
def timed(machine: Machine, request: pytest.FixtureRequest) -> Iterator[None]:
    """What a machine of emulated processors takes for each."""
    started = time.monotonic()
    yield
    noted(f"machine: {request.node.name}", f"{time.monotonic() - started:.1f} s")


# --- What the tests do to it ----------------------------------------------------------------------


def python(machine: Machine, code: str) -> str:
    return machine.run(f"python3 - <<'EOF'\n{code}\nEOF")


def fetched(machine: Machine) -> set[str]:
    return set(python(machine, FETCH).split())


def send(machine: Machine, *names: str) -> None:
    python(machine, SEND.format(names=names))


def shown(machine: Machine, *names: str) -> dict[str, str]:
    said = machine.run(f"systemctl show metad.service -p {','.join(names)}")
    return dict(line.split("=", 1) for line in said.splitlines())


def status(machine: Machine) -> dict:
    return json.loads(machine.run("metad status --json"))


def drop_in(machine: Machine, *lines: str) -> None:
    """Settings of the unit, in place of those of the test before."""
    machine.run(f"mkdir -p {DROP_IN}; rm -f {DROP_IN}/*")
    if lines:
        text = "\n".join(("[Service]", *lines))
        machine.run(f"cat >{DROP_IN}/test.conf <<'EOF'\n{text}\nEOF")
    machine.run("systemctl daemon-reload")


def wait_until(machine: Machine, condition: str, seconds: float = 60) -> None:
    """Until a shell condition of the guest is true; the guest looks, every tenth of a second."""
    script = f"until {condition}; do sleep 0.1; done"
    machine.run(f"timeout {seconds} sh -s <<'EOF'\n{script}\nEOF", seconds=seconds + 10)


@contextmanager
def load(machine: Machine) -> Iterator[Callable[[], dict]]:
    """Mail comes without a pause; what is given ends it and tells what became of it."""
    machine.run("rm -f /run/stop /run/load.json; systemctl stop load 2>/dev/null || :")
    machine.run(
        "systemd-run -q --collect --unit=load python3 /opt/load.py /run/load.json /run/stop"
    )
    wait_until(machine, "journalctl -q -u metad --since=-2s | grep -q load.example")

    def end() -> dict:
        machine.run("touch /run/stop")
        wait_until(machine, "[ -e /run/load.json ]", 90)
        return json.loads(machine.run("cat /run/load.json"))

    try:
        yield end
    finally:
        machine.run("touch /run/stop")


# --- The tests ------------------------------------------------------------------------------------


def test_the_page_takes_six_commands():
    assert len(SERVER) == 6


def test_the_pages_commands_make_a_hub_on_25_110_and_995_with_tls(machine):
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


def test_systemd_rates_the_service_as_hardly_exposed(machine):
    said = machine.run("systemd-analyze security --no-pager metad.service")
    exposure = float(re.search(r"Overall exposure level.*: ([\d.]+)", said)[1])
    assert exposure < MOST_EXPOSURE
    noted("machine: systemd-analyze security", f"{exposure}")


def test_the_unit_waits_for_the_clock_and_survives_an_out_of_memory_kill(machine):
    found = shown(machine, "After", "Wants", "OOMPolicy", "MainPID")
    assert "time-sync.target" in found["After"].split() and "time-sync.target" in found["Wants"]
    assert found["OOMPolicy"] == "continue"
    machine.run("systemctl set-property --runtime metad.service MemoryMax=400M MemorySwapMax=0")
    group = "/sys/fs/cgroup/system.slice/metad.service/cgroup.procs"
    # A process of the unit's that takes all the memory: the kernel kills it, and systemd notices.
    hog = f"echo $$ >{group}; exec python3 -c 'print(len(b\"x\" * (500 << 20)))'"
    machine.run(f"sh -s <<'EOF' || [ $? = 137 ]\n{hog}\nEOF")
    wait_until(machine, "journalctl -u metad | grep -q -i oom")
    assert shown(machine, "MainPID", "ActiveState") == {
        "MainPID": found["MainPID"], "ActiveState": "active",
    }  # fmt: skip
    machine.run("systemctl set-property --runtime metad.service MemoryMax=infinity")


def test_the_unit_and_roots_commands_agree_on_the_directory_without_a_configuration_of_it(machine):
    machine.run("sed -i.old '/^data = /d' /etc/metad/metad.toml; systemctl restart metad")
    assert "alice@example.org" in machine.run("metad user list")
    assert status(machine)["data"] == "/var/lib/metad"
    send(machine, "agreed@test")
    assert "<agreed@test>" in fetched(machine)
    machine.run("mv /etc/metad/metad.toml.old /etc/metad/metad.toml; systemctl restart metad")


@on_request
def test_warnings_carry_their_priority_and_no_line_is_dropped(machine):
    machine.run("mkdir -p /run/systemd/journald.conf.d")
    limit = "[Journal]\nRateLimitIntervalSec=60\nRateLimitBurst=20\n"
    machine.run(f"printf '{limit}' >/run/systemd/journald.conf.d/test.conf")
    machine.run("systemctl restart systemd-journald systemd-logind; systemctl restart metad")
    names = [f"n{number}@test" for number in range(100)]
    send(machine, *names)
    stored = "journalctl --sync; journalctl -u metad -o cat | grep -c 'from=<a@b.example>'"
    wait_until(machine, f'[ "$({stored})" -ge {len(names)} ]')
    config = "/etc/metad/metad.toml"
    machine.run(f"cp {config} /run/kept; printf '[store]\\nworkers = 3\\n' >>{config}")
    machine.run("systemctl reload metad")
    assert "store.workers needs a restart" in machine.run("journalctl -u metad -p warning -o cat")
    assert "<4>" not in machine.run("journalctl -u metad -o cat")
    machine.run(f"cp /run/kept {config}; systemctl reload metad")
    machine.run("rm -r /run/systemd/journald.conf.d; systemctl restart systemd-journald")


@on_request
def test_a_bad_configuration_is_refused_to_the_caller_of_a_reload(machine):
    machine.run("echo 'nonsense = 1' >>/etc/metad/metad.toml")
    machine.run("systemctl reload metad", code=1)
    assert shown(machine, "ActiveState")["ActiveState"] == "active"
    machine.run("sed -i '$d' /etc/metad/metad.toml; systemctl reload metad")


@on_request
def test_a_reload_under_load_refuses_no_client(machine):
    with load(machine) as end:
        for _ in range(3):
            machine.run("systemctl reload metad")
        tally = end()
    assert tally["errors"] == {}
    assert set(tally["acknowledged"]) <= fetched(machine)
    noted("machine: messages over three reloads", f"{len(tally['acknowledged'])}")


@on_request
@pytest.mark.parametrize("victim", ["worker", "collector", "master"])
def test_whatever_process_is_killed_is_replaced_and_no_mail_is_lost(machine, victim):
    found = status(machine)
    pids = {"master": found["pid"], "worker": found["workers"][0]["pid"]}
    pids |= {one["role"]: one["pid"] for one in found["processes"]}
    with load(machine) as end:
        machine.run(f"kill -9 {pids[victim]}")
        gone = f"! [ -e /proc/{pids[victim]} ]"
        wait_until(machine, f"metad status --json | grep -q 'state.*serving' && {gone}")
        tally = end()
    assert tally["acknowledged"]
    assert set(tally["acknowledged"]) <= fetched(machine)
    restarts = int(shown(machine, "NRestarts")["NRestarts"])
    assert restarts == (1 if victim == "master" else 0)


@on_request
def test_a_master_that_hangs_is_ended_by_systemds_watchdog(machine):
    drop_in(machine, "WatchdogSec=4", "TimeoutAbortSec=2")
    machine.run("systemctl restart metad")
    before = shown(machine, "MainPID")["MainPID"]
    machine.run("sleep 6")
    assert shown(machine, "MainPID")["MainPID"] == before  # it does keep the watchdog quiet
    machine.run(f"kill -STOP {before}")
    wait_until(machine, f'[ "$(systemctl show -P MainPID metad)" != {before} ] && metad status')
    assert "Watchdog timeout" in machine.run("journalctl -u metad -o cat")
    send(machine, "watched@test")
    assert "<watched@test>" in fetched(machine)


@on_request
def test_below_a_nanny_the_watchdog_is_kept_and_bites_too(machine):
    """Root's start, with the nanny as the unit's main process."""
    drop_in(
        machine, "User=root", "Group=root", "AmbientCapabilities=", "NotifyAccess=all",
        "CapabilityBoundingSet=~", "CapabilityBoundingSet=CAP_SETUID CAP_SETGID CAP_SETPCAP"
        " CAP_NET_BIND_SERVICE CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_KILL CAP_SYS_CHROOT",
        "StateDirectory=", "ReadWritePaths=/var/lib/metad", "SystemCallFilter=",
        "WatchdogSec=4", "TimeoutAbortSec=2",
    )  # fmt: skip
    machine.run("systemctl restart metad")
    nanny = shown(machine, "MainPID")["MainPID"]
    master = status(machine)["pid"]
    assert int(nanny) != master
    machine.run("sleep 6")
    assert shown(machine, "MainPID")["MainPID"] == nanny
    machine.run(f"kill -STOP {master}")
    wait_until(machine, f'[ "$(systemctl show -P MainPID metad)" != {nanny} ] && metad status')
    drop_in(machine)
    machine.run("systemctl restart metad")


@on_request
def test_a_directory_that_is_read_only_is_explained_and_not_tried_again(machine):
    config = "/etc/metad/metad.toml"
    machine.run("cp /etc/metad/metad.toml /run/kept")
    machine.run(f"sed -i 's|^data = .*|data = \"/srv/mail\"|' {config}")
    machine.run("systemctl restart metad", code=1)
    found = shown(machine, "ExecMainStatus", "NRestarts", "ActiveState")
    assert found == {"ExecMainStatus": "73", "NRestarts": "0", "ActiveState": "failed"}
    errors = machine.run("journalctl -u metad -p err -o cat -n 3")
    assert "Read-only file system: add ReadWritePaths=/srv/mail to the unit" in errors
    for command in commands("A data directory elsewhere"):
        machine.run(command)
    machine.run("metad tls self-signed mx1.example.org; systemctl reset-failed metad")
    machine.run("systemctl start metad")
    assert status(machine)["data"] == "/srv/mail"
    machine.run(f"systemctl stop metad; cp /run/kept {config}")
    drop_in(machine)
    machine.run("systemctl start metad")


@on_request
def test_sockets_of_systemd_come_with_the_service_and_need_no_capability(machine):
    config = "/etc/metad/metad.toml"
    machine.run(f"cp {config} /run/kept")
    machine.run(f"sed -i 's|0.0.0.0:25|fd:smtp|; s|0.0.0.0:110|fd:pop3|; s|:995|:1995|' {config}")
    machine.run("systemctl stop metad")
    for command in commands("Socket activation"):
        machine.run(command)
    machine.run("systemctl is-active metad-smtp.socket metad-pop3.socket")
    pid = shown(machine, "MainPID")["MainPID"]
    rights = machine.run(f"grep -h ^Cap /proc/{pid}/status").split()[1::2]
    assert set(rights) == {"0" * 16}
    # And the other way round: a client starts the service.
    machine.run("systemctl stop metad")
    assert shown(machine, "ActiveState")["ActiveState"] == "inactive"
    send(machine, "activated@test")
    assert shown(machine, "ActiveState")["ActiveState"] == "active"
    machine.run("systemctl disable --now metad-smtp.socket metad-pop3.socket; systemctl stop metad")
    machine.run(f"cp /run/kept {config}")
    drop_in(machine)
    machine.run("systemctl start metad")
    assert "<activated@test>" in fetched(machine)


@on_request
@pytest.mark.parametrize("cut", [False, True], ids=["reboot", "power cut"])
def test_mail_outlives_the_machines_end_under_load(machine, cut):
    with load(machine):
        machine.run("sleep 2")
        before = fetched(machine)
        machine.reboot(cut=cut)
        wait_until(machine, "metad status")
    assert before
    assert before <= fetched(machine)


@on_request
def test_a_package_of_a_later_release_takes_over_without_refusing_a_connection(machine):
    with load(machine) as end:
        pid = shown(machine, "MainPID")["MainPID"]
        said = machine.run("apt-get -q -y install /opt/later.deb", seconds=300)
        wait_until(machine, f'metad status --json | grep -q \'"version": "{LATER}"\'')
        tally = end()
    assert "rror" not in said
    assert shown(machine, "MainPID", "NRestarts") == {"MainPID": pid, "NRestarts": "0"}
    assert not [kind for kind in tally["errors"] if kind not in ("session 421",)]
    assert set(tally["acknowledged"]) <= fetched(machine)
