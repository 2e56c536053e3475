"""The hub under systemd: docs/install.md is followed, and systemd starts, watches and ends it.

One booted Debian for the whole file: the tests are in the order in which they leave it.  It runs in
namespaces.  With METAD_TEST_MACHINE=vm it is a virtual machine, for the tests that need one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import Debian, need_tree
from tests.support.guest import (
    CONFIG,
    FETCH,
    Guest,
    changed,
    drop_in,
    exposure,
    fetched,
    load,
    python,
    send,
    serve,
    shown,
    status,
    wait_until,
)
from tests.support.install_page import LOAD, SERVER, commands, install
from tests.support.machine import Machine, need_qemu, prepare
from tests.support.namespace import Namespace, need_namespaces
from tests.support.packages import LATER, Built
from tests.support.sizes import noted

VIRTUAL = os.environ.get("METAD_TEST_MACHINE") == "vm"
MOST_EXPOSURE = 2.0
# What an emulated machine shows and namespaces do not, and what that needs to be there.
OF_MACHINE = {
    "test_the_pages_commands_make_a_hub_on_25_110_and_995_with_tls",
    "test_the_unit_waits_for_the_clock_and_survives_an_out_of_memory_kill",
    "test_mail_outlives_the_machines_end_under_load",
}
# The last message of alice's mailbox, deleted by POP3.
DELETE_LAST = FETCH.replace("box.quit()", "box.dele(box.stat()[0]); box.quit()")
CUT = "power cut" if VIRTUAL else "all killed at once"


@pytest.fixture(scope="module")
def machine(packages: Built) -> Iterator[Guest]:
    """A Debian on which the page has been followed as far as the package's installation."""
    need_tree()
    if VIRTUAL:
        need_qemu()
    else:
        need_namespaces()
    with tempfile.TemporaryDirectory(prefix="metad machine ") as directory:
        debian = Debian(Path(directory))
        shutil.copy(packages.later, debian.hand / "later.deb")
        shutil.copy(LOAD, debian.hand / "load.py")
        prepare(debian, with_agent=VIRTUAL)
        debian.run("cp /mnt/later.deb /mnt/load.py /opt/")
        install(debian, packages.wheels)
        machine: Guest = Machine(debian) if VIRTUAL else Namespace(debian)
        try:
            machine.boot()
            yield machine
        finally:
            machine.close()


@pytest.fixture(autouse=True)
def timed(machine: Guest, request: pytest.FixtureRequest) -> Iterator[None]:
    """What each takes."""
    if VIRTUAL and request.function.__name__ not in OF_MACHINE:
        pytest.skip("the namespaces show this")
    started = time.monotonic()
    yield
    noted(f"machine: {request.node.name}", f"{time.monotonic() - started:.1f} s")


def test_the_page_takes_six_commands():
    assert len(SERVER) == 6


def test_the_pages_commands_make_a_hub_on_25_110_and_995_with_tls(machine):
    serve(machine)


def test_systemd_rates_the_service_as_hardly_exposed(machine):
    found = exposure(machine)
    assert found < MOST_EXPOSURE
    noted("machine: systemd-analyze security", f"{found}")


def test_the_unit_waits_for_the_clock_and_survives_an_out_of_memory_kill(machine):
    found = shown(machine, "After", "Wants", "OOMPolicy", "MainPID")
    assert "time-sync.target" in found["After"].split() and "time-sync.target" in found["Wants"]
    assert found["OOMPolicy"] == "continue"
    if "memory" not in machine.run("cat /sys/fs/cgroup/cgroup.controllers").split():
        pytest.skip("no memory controller in these namespaces: the kill is for the machine")
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


def test_the_trace_of_a_message_shows_the_session_that_deleted_it_from_the_journal(machine):
    send(machine, "traced@test")
    found = json.loads(machine.run("metad mail trace '<traced@test>' --json"))[0]["id"]
    python(machine, DELETE_LAST)
    session = rf"metad/pop3\[\d+\]: deleted: client=127.0.0.1, .*{found}"
    assert re.search(session, machine.run(f"metad mail trace {found}"))


def test_a_hub_that_logs_to_syslog_logs_with_facility_mail(machine):
    start = machine.run("systemctl cat metad | sed -n 's/^ExecStart=//p'").strip()
    drop_in(machine, "ExecStart=", f"ExecStart={start} --log-file /dev/log")
    machine.run("systemctl restart metad")
    send(machine, "syslog@test")
    of_mail = "journalctl --sync; journalctl -o json SYSLOG_FACILITY=2"
    wait_until(machine, f"{of_mail} | grep -q 'syslog@test'")
    lines = map(json.loads, machine.run(f"{of_mail} | grep syslog@test").splitlines())
    assert {(one["SYSLOG_IDENTIFIER"], one["PRIORITY"]) for one in lines} == {("metad/smtp", "6")}
    assert "status=stored" in machine.run("metad mail trace '<syslog@test>'")
    drop_in(machine)
    machine.run("systemctl restart metad")


def test_a_bad_configuration_is_refused_to_the_caller_of_a_reload(machine):
    machine.run("echo 'nonsense = 1' >>/etc/metad/metad.toml")
    machine.run("systemctl reload metad", code=1)
    assert shown(machine, "ActiveState")["ActiveState"] == "active"
    machine.run("sed -i '$d' /etc/metad/metad.toml; systemctl reload metad")


def test_a_reload_under_load_refuses_no_client(machine):
    with load(machine) as end:
        for _ in range(3):
            machine.run("systemctl reload metad")
        tally = end()
    assert tally["errors"] == {}
    assert set(tally["acknowledged"]) <= fetched(machine)
    noted("machine: messages over three reloads", f"{len(tally['acknowledged'])}")


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


def test_a_directory_that_is_read_only_is_explained_and_not_tried_again(machine):
    make, *tell_the_unit = commands("A data directory elsewhere")
    with changed(machine):
        machine.run(f"sed -i 's|^data = .*|data = \"/srv/mail\"|' {CONFIG}")
        machine.run(f"{make}; metad tls self-signed mx1.example.org")
        machine.run("systemctl restart metad", code=1)
        found = shown(machine, "ExecMainStatus", "NRestarts", "ActiveState")
        assert found == {"ExecMainStatus": "73", "NRestarts": "0", "ActiveState": "failed"}
        errors = machine.run("journalctl -u metad -p err -o cat -n 3")
        assert "Read-only file system (add ReadWritePaths=/srv/mail to the unit" in errors
        for command in tell_the_unit:
            machine.run(command)
        machine.run("systemctl reset-failed metad; systemctl start metad")
        assert status(machine)["data"] == "/srv/mail"


def test_sockets_of_systemd_come_with_the_service_and_need_no_capability(machine):
    with changed(machine):
        ports = "s|0.0.0.0:25|fd:smtp|; s|0.0.0.0:110|fd:pop3|; s|:995|:1995|"
        machine.run(f"sed -i '{ports}' {CONFIG}; systemctl stop metad")
        for command in commands("Socket activation"):
            machine.run(command)
        machine.run("systemctl is-active metad-smtp.socket metad-pop3.socket")
        pid = shown(machine, "MainPID")["MainPID"]
        rights = machine.run(f"grep -h ^Cap /proc/{pid}/status").split()[1::2]
        assert set(rights) == {"0" * 16}
        # And the other way round: a client starts the service.
        machine.run("systemctl stop metad")
        assert shown(machine, "ActiveState")["ActiveState"] == "inactive"
        send(machine, "activated@test")  # accepted before systemd hears that the hub is ready
        assert shown(machine, "ActiveState")["ActiveState"] in ("activating", "active")
        machine.run("systemctl start metad")  # waits for that
        assert shown(machine, "ActiveState")["ActiveState"] == "active"
    assert "<activated@test>" in fetched(machine)


@pytest.mark.parametrize("cut", [False, True], ids=["reboot", CUT])
def test_mail_outlives_the_machines_end_under_load(machine, cut):
    with load(machine):
        machine.run("sleep 2")
        before = fetched(machine)
        machine.reboot(cut=cut)
        wait_until(machine, "metad status")
    assert before
    assert before <= fetched(machine)


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
