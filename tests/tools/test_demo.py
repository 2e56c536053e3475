"""`sh tools/demo` as used by a newcomer: the commands that it prints work, and it leaves nothing
behind."""

import os
import re
import shutil
import signal
import smtplib
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.hub import DEADLINE, free_ports, lines_of, session_pids

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / ".venv/.stamp-metad").exists() or Path(sys.prefix) != ROOT / ".venv",
    reason="the demo would install metad into .venv; sh tools/test does that first",
)


class Demo:
    """The running demo and what it has printed."""

    def __init__(self, tmp: Path, *arguments: str) -> None:
        self.smtp_port, self.pop3_port = free_ports(2)
        self.tmp = tmp
        self.process = subprocess.Popen(
            [
                # As a terminal starts it, though the tests may run where SIGINT is ignored.
                *("env", "--default-signal=INT", "sh", str(ROOT / "tools/demo")),
                *("--smtp-port", str(self.smtp_port), f"--pop3-port={self.pop3_port}", *arguments),
            ],
            cwd="/",
            env={**os.environ, "TMPDIR": str(tmp)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.text = ""
        for line in lines_of(self.process.stdout.fileno(), DEADLINE):
            self.text += f"{line}\n"
            if "metad' status" in line:
                return
        raise AssertionError(self.text)

    def commands(self) -> list[str]:
        """The lines to copy: indented by two."""
        return re.findall(r"^  (.+)$", self.text, re.MULTILINE)

    def ended(self) -> tuple[int, str]:
        """Exit status and the rest of what was printed, once nothing of it runs."""
        rest = self.process.stdout.read().decode()
        status = self.process.wait(DEADLINE)
        self.process.stdout.close()
        assert session_pids(self.process.pid) == []
        return status, rest

    def end(self) -> None:
        """Whatever state it is in."""
        self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        finally:
            if session_pids(self.process.pid):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.stdout.close()
            self.process.wait(DEADLINE)


@pytest.fixture
def place():
    """A directory of this test, with a blank in its name; the user that a hub of root's becomes
    gets through it, which through pytest's it would not."""
    with tempfile.TemporaryDirectory(prefix="demo test ") as name:
        Path(name).chmod(0o711)
        (Path(name) / "tmp").mkdir(mode=0o711)
        yield Path(name)


@pytest.fixture
def start(place):
    """start(*arguments) -> Demo; whatever a test leaves is ended, by force if it must be."""
    demos = []

    def begin(*arguments):
        demos.append(Demo(place / "tmp", *arguments))
        return demos[-1]

    yield begin
    for demo in demos:
        demo.end()


def run(command: str) -> str:
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def test_every_line_that_the_demo_prints_works_as_printed(start):
    demo = start()
    missing = [name for name in ("curl", "swaks") if shutil.which(name) is None]
    commands = [one for one in demo.commands() if not one.startswith(tuple(missing or ["\0"]))]
    commands = [one for one in commands if not ("| curl" in one and "curl" in missing)]
    assert len(commands) >= 3
    said = "".join(run(command) for command in commands)
    assert "Subject: from Python" in said
    assert missing or "A first mail." in said
    assert "serving" in said
    demo.process.send_signal(signal.SIGTERM)
    status, _ = demo.ended()
    assert status == 128 + signal.SIGTERM
    assert list(demo.tmp.iterdir()) == []


def test_control_c_ends_the_demo_and_all_it_started(start):
    demo = start()
    assert len(session_pids(demo.process.pid)) >= 4
    os.killpg(demo.process.pid, signal.SIGINT)  # the terminal tells the whole group
    status, _ = demo.ended()
    assert status == 128 + signal.SIGINT
    assert list(demo.tmp.iterdir()) == []


def test_mail_of_a_demo_with_data_is_there_in_the_next(start, place):
    data = place / "kept"
    first = start("--data", str(data))
    with smtplib.SMTP("127.0.0.1", first.smtp_port) as smtp:
        smtp.sendmail("x@example.test", ["alice@example.test"], b"Subject: kept\r\n\r\n")
    first.process.terminate()
    first.ended()
    second = start("--data", str(data))
    (fetch,) = (one for one in second.commands() if "poplib" in one)
    assert "Subject: kept" in run(fetch)
    second.process.terminate()
    second.ended()


def test_a_hub_that_is_stopped_ends_the_demo(start):
    demo = start()
    (status,) = (one for one in demo.commands() if " status " in one)
    run(status.replace(" status ", " stop "))
    assert demo.ended()[0] == 0
    assert list(demo.tmp.iterdir()) == []


@pytest.mark.long
def test_a_port_in_use_ends_the_demo_with_the_reason(start):
    demo = start()
    other = subprocess.run(
        [
            *("sh", str(ROOT / "tools/demo"), "--smtp-port", str(demo.smtp_port)),
            *("--pop3-port", str(free_ports(1)[0])),
        ],
        env={**os.environ, "TMPDIR": str(demo.tmp)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert other.returncode not in (0, None)
    assert f"127.0.0.1:{demo.smtp_port}" in other.stderr
    demo.process.terminate()
    demo.ended()
    assert list(demo.tmp.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--port"], ["--smtp-port"], ["--smtp-port", "x"], ["x"]])
def test_bad_arguments_are_refused(arguments):
    done = subprocess.run(
        ["sh", str(ROOT / "tools/demo"), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 64
    assert done.stderr.startswith("demo: ")
