"""A full disk: new mail is deferred with 452, existing mail is served, and new space is noticed."""

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from metad.control_client import request
from tests.support.clients import SENDER, Pop3Line, SmtpLine, bodies, deliver, in_time, message
from tests.support.hub import METAD, USER, Hub, address

SIZE = "64m"


def private_mounts() -> bool:
    """Whether this is root with the right to mount in its own namespace."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


class SmallDisk(Hub):
    """A hub whose data directory is a small file system, in a mount namespace of the hub alone:
    nothing is left mounted, whatever happens."""

    def wrapper(self) -> list[str]:
        self.data.mkdir(mode=0o700, exist_ok=True)
        owner = pwd.getpwnam(USER)
        mount = f"mount -t tmpfs -o size={SIZE},mode=0700,uid={owner.pw_uid},gid={owner.pw_gid}"
        return [
            *("unshare", "--mount", "sh", "-c"),
            f'{mount} tmpfs "$0" && exec "$@"',
            str(self.data),
        ]

    def inside(self, *command: str, given: bytes = b"") -> bytes:
        """Run a command where the hub's disk is visible."""
        pid = str(self.process.pid)
        whole = ["nsenter", "--mount", "--target", pid, *command]
        done = subprocess.run(whole, input=given, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def facts(self) -> dict:
        return request(Path(f"/proc/{self.process.pid}/root{self.data}"), "status")

    def workers(self) -> list[int]:
        return [one["pid"] for one in self.facts()["workers"] if one["pid"]]

    def fill(self, *, leave: int) -> None:
        """Another program's file takes all free space but `leave` octets."""
        disk = os.statvfs(f"/proc/{self.process.pid}/root{self.data}")
        size = disk.f_bavail * disk.f_frsize - leave
        self.inside("fallocate", "-l", str(size), f"{self.data}/filler")

    def free(self) -> None:
        self.inside("rm", f"{self.data}/filler")


class KeptDisk(SmallDisk):
    """The same, on a file system that outlives its hub."""

    namespace = -1

    def start(self):
        super().start()
        if self.namespace < 0:
            self.namespace = os.open(f"/proc/{self.process.pid}/ns/mnt", os.O_RDONLY)
        return self

    def wrapper(self) -> list[str]:
        if self.namespace < 0:
            return super().wrapper()
        return ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{self.namespace}"]

    def fill_all(self) -> None:
        """Take every free block, whether or not the hub runs."""
        script = """fallocate -l $(($(stat -f -c '%a*%S' "$0"))) "$0/filler\""""
        subprocess.run([*self.wrapper(), "sh", "-c", script, str(self.data)], check=True)

    def close(self, *, failed: bool = False) -> None:
        super().close(failed=failed)
        os.close(self.namespace)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_hub_starts_on_a_disk_without_a_free_block(end: str) -> None:
    """Regression: "shared memory: No space left on device", and then no log for worker 1."""
    if not private_mounts():
        pytest.skip("needs root and a mount namespace")
    with KeptDisk([], log_size="8MiB") as hub:
        command = ("user", "add", address("alice"), "--config", str(hub.config))
        hub.inside(METAD, *command, "--password-stdin", given=b"secret\n")
        sent = [message(), message()]
        for one in sent:
            deliver(hub, one, "alice")
        getattr(hub, end)()
        hub.fill_all()
        hub.start()
        assert bodies(hub, "alice") == sent
        with Pop3Line(hub) as pop:
            pop.log_in("alice")
            pop.say("DELE 1")
            pop.say("QUIT")
        assert bodies(hub, "alice") == sent[1:]
        with SmtpLine(hub) as smtp:
            assert put(smtp, message()) == b"452"
        hub.free()
        assert taken_again(hub)


@pytest.fixture
def small_disk():
    if not private_mounts():
        pytest.skip("needs root and a mount namespace")
    with SmallDisk([], workers=1, log_size="4MiB") as hub:
        command = ("user", "add", address("alice"), "--config", str(hub.config))
        hub.inside(METAD, *command, "--password-stdin", given=b"secret\n")
        yield hub


@pytest.mark.long
def test_mail_that_fills_the_disk_is_deferred_in_time_and_all_is_served(small_disk):
    """Mail alone fills the disk: the hub stops while it can still index what it took."""
    began = int(time.time())
    small_disk.fill(leave=12 << 20)
    accepted = deliver_until_refused(small_disk)

    def refuses_for_good() -> bool:
        """One message may be deferred only for a moment, with room for others after it."""
        accepted.extend(deliver_until_refused(small_disk))
        return small_disk.facts()["state"] == "refusing"

    assert in_time(refuses_for_good)
    facts = small_disk.facts()
    [problem] = [one for one in facts["problems"] if one["problem"] == "no space for new mail"]
    assert began <= problem["since"] <= time.time()
    assert began <= facts["since"] <= time.time()
    assert "metad gc --full" in problem["remedy"]
    assert bodies(small_disk, "alice") == accepted
    small_disk.free()
    assert taken_again(small_disk)
    assert in_time(lambda: small_disk.facts()["state"] == "serving")
    log = small_disk.log.read_text()
    assert "warning: no space for new mail (to do: " in log
    assert "no longer: no space for new mail" in log
    assert "the index lags" not in log  # no log has taken its last blocks


def test_a_disk_that_others_fill_at_once_does_not_stop_what_is_there(small_disk):
    sent = message()
    deliver(small_disk, sent, "alice")
    assert bodies(small_disk, "alice") == [sent]  # the index has it, and needs no more blocks
    small_disk.fill(leave=0)
    accepted = [sent, *deliver_until_refused(small_disk)]
    # What the index had no room for is in the log, and shows up when there is room again.
    shown = bodies(small_disk, "alice")
    assert shown == accepted[: len(shown)]
    assert shown
    with Pop3Line(small_disk) as pop:
        pop.log_in("alice")
        pop.say("DELE 1")
        pop.send(b"QUIT\r\n")
        if pop.line().startswith(b"+OK"):
            del accepted[0]
    small_disk.free()
    assert taken_again(small_disk)
    assert bodies(small_disk, "alice")[:-1] == accepted


def test_a_disk_that_mail_has_filled_takes_mail_again_when_most_is_deleted(small_disk):
    """Regression: nine tenths were deleted and 24 of 27 logs freed, but the reply was still 452,
    permanently."""
    small_disk.fill(leave=16 << 20)
    accepted = deliver_until_refused(small_disk)
    kept = accepted[9::10]
    with Pop3Line(small_disk) as pop:
        pop.log_in("alice")
        for number in range(1, len(accepted) + 1):
            if number % 10:
                pop.send(b"DELE %d\r\n" % number)
                assert pop.line().startswith(b"+OK")
        pop.say("QUIT")
    assert taken_again(small_disk)
    assert bodies(small_disk, "alice")[: len(kept)] == kept


@pytest.fixture
def default_disk():
    """The default sizes (logs of 128 MiB, two workers) on a disk of 64 MB."""
    if not private_mounts():
        pytest.skip("needs root and a mount namespace")
    with SmallDisk([], log_size="128MiB") as hub:
        command = ("user", "add", address("alice"), "--config", str(hub.config))
        hub.inside(METAD, *command, "--password-stdin", given=b"secret\n")
        yield hub


@pytest.mark.long
def test_a_small_disk_with_default_sizes_survives_dead_workers(default_disk):
    """Regression: the start took 513 MB, each dead worker left up to two logs of 128 MiB, and after
    three of them every message was deferred permanently."""
    hub = default_disk
    before: set[int] = set()

    def replaced() -> bool:
        return len(set(hub.workers()) - before) == 2

    for _ in range(5):
        before = set(hub.workers())
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        assert in_time(replaced)
        assert taken_again(hub)
    assert len(bodies(hub, "alice")) >= 5


def deliver_until_refused(hub):
    """Send messages of a kilobyte until one is deferred; returns those that were accepted."""
    accepted = []
    with SmtpLine(hub) as smtp:
        while (reply := put(smtp, octets := message(b"x" * 900 + b"\r\n"))) == b"250":
            accepted.append(octets)
            assert len(accepted) < 100_000
    assert reply == b"452"
    return accepted


def taken_again(hub):
    """Whether mail is accepted once the hub has noticed free space."""

    def taken():
        with SmtpLine(hub) as smtp:
            return put(smtp, message()) == b"250"

    return in_time(taken)


def put(smtp, octets):
    """Send one message.  Returns the code of the first failure reply, or of the final one."""
    for command in (f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{address('alice')}>", "DATA"):
        smtp.send(command.encode() + b"\r\n")
        line = smtp.line()
        if line[:1] not in b"23":
            smtp.say("RSET")
            return line[:3]
    smtp.send(octets + b".\r\n")  # no line of ours begins with a dot
    return smtp.line()[:3]
