"""The trial of docs/cluster.md on one machine, command by command, as an operator gives it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from metad.cli.cluster.cluster import group
from tests.support.etcd import EtcdCluster
from tests.support.hub import DEADLINE, METAD, USER, free_ports, session_pids, watching
from tests.support.pages import ROOT, command_lines

pytestmark = pytest.mark.slow
PAGE = (ROOT / "docs" / "cluster.md").read_text("utf-8")
TRIAL = PAGE[PAGE.index("## A trial on one machine") : PAGE.index("## Three machines")]
PATIENCE = 90.0  # a node is absent 27 s after it was killed
# What `metad cluster status` shows at each of its places in the trial.
SHOWN = [
    {1: "active", 2: "active", 3: "active"},
    {1: "active", 2: "active", 3: "absent"},
    {1: "active", 2: "active", 3: "active"},
    {1: "active", 2: "active", 3: "active"},
    {1: "active", 2: "active", 3: "removed", 4: "active"},
]


class Machine:
    """One on which the page's commands are run; /tmp/trial and the ports are its own."""

    def __init__(self, etcd: EtcdCluster) -> None:
        self.etcd = etcd
        self.home = Path(tempfile.mkdtemp(prefix="metad-trial-"))
        self.home.chmod(0o777)
        ports = free_ports(9)
        pages = [f"127.0.0.1:{kind}0{n}" for kind in ("25", "11", "75") for n in (1, 2, 3)]
        self.ports = dict(zip(pages, (f"127.0.0.1:{port}" for port in ports), strict=True))
        self.programs = self.home.with_name(f"{self.home.name}-bin")
        self.programs.mkdir()
        (self.programs / "metad").symlink_to(METAD)
        path = f"{self.programs}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "NO_COLOR": "1"}
        self.shown = iter(SHOWN)

    def adapted(self, text: str) -> str:
        text = text.replace("/tmp/trial", str(self.home))
        return re.sub(r"127\.0\.0\.1:\d+", lambda found: self.ports[found[0]], text)

    def configure(self) -> None:
        """The file of the page, and the two that `sed` makes of it there."""
        found = re.search(r"^```toml\n(# /tmp/trial/1.toml\n.*?)^```$", TRIAL, re.M | re.S)
        assert found
        text = found[1].replace("http://127.0.0.1:2379", self.etcd.urls[0])
        if os.geteuid() == 0:
            text = f'user = "{USER}"\n{text}'
        (self.home / "page.toml").write_text(text)
        for line in command_lines("cluster.md"):
            if line.startswith("sed "):
                own = line.replace("/tmp/trial/1.toml", str(self.home / "page.toml"))
                self.shell(own.replace("/tmp/trial", str(self.home)))
        for name, source in (("1", "page"), ("2", "2"), ("3", "3")):
            path = self.home / f"{name}.toml"
            path.write_text(self.with_ports((self.home / f"{source}.toml").read_text()))
            path.chmod(0o644)

    def with_ports(self, text: str) -> str:
        for page, real in self.ports.items():
            text = text.replace(f'"{page}"', f'"{real}"')
        return text.replace("/tmp/trial", str(self.home))

    def shell(self, line: str) -> str:
        done = self.tried(line)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        return done.stdout

    def tried(self, line: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["sh", "-ec", line], input="secret\n", capture_output=True, text=True, check=False,
            env=self.environment, timeout=2 * DEADLINE,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def follow(self, line: str) -> str:
        """One line of the page; where the reader waits, until it is as the page says."""
        if line.startswith("systemctl "):
            getattr(self.etcd, line.split()[1])()
            return ""
        adapted = self.adapted(line)
        if line.startswith("metad user add"):
            adapted += " --password-stdin"
        if line.startswith("metad cluster status"):
            return self.until_shown(adapted, next(self.shown))
        if line.startswith("metad cluster remove"):
            return self.until(lambda: self.tried(adapted), adapted)
        if line.startswith("kill "):
            return self.kill(adapted)
        if line.startswith("printf "):  # clients try again while a node dies
            return self.until(lambda: self.tried(adapted), adapted)
        return self.shell(adapted)

    def until(self, act: Callable[[], subprocess.CompletedProcess[str]], what: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while (done := act()).returncode:
            assert time.monotonic() < deadline, f"{what}: {done.stderr}"
        return done.stdout

    def until_shown(self, line: str, states: dict[int, str]) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            facts = json.loads(self.shell(f"{line} --json"))
            found = {one["number"]: one["state"] for one in facts["members"]}
            epochs = {one["epoch"] for one in facts["members"] if one["epoch"]}
            if found == states and epochs == {facts["epoch"]} and not facts["short_of_copies"]:
                return self.shell(line)
            assert time.monotonic() < deadline, facts

    def kill(self, line: str) -> str:
        pid = int(Path(re.findall(r"cat (\S+?)\)", line)[0]).read_text())
        with watching(session_pids(os.getsid(pid))) as gone:
            self.shell(line)
            gone(DEADLINE)
        return ""

    def close(self) -> None:
        for number in (1, 2, 3):
            config = self.home / f"{number}.toml"
            with suppress(subprocess.TimeoutExpired, AssertionError):
                if config.exists():
                    self.tried(f"metad stop --config {config}")
            log = self.home / f"{number}.log"
            if log.exists():
                print(f"the log of node {number}:\n{log.read_text()}")
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(self.programs)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with EtcdCluster() as etcd:
        machine = Machine(etcd)
        try:
            yield machine
        finally:
            machine.close()


def trial_lines() -> list[str]:
    others = ("systemctl", "curl", "printf")
    lines = command_lines("cluster.md")
    return [line for line in lines if "/tmp/trial" in line or line.split()[0] in others]


@pytest.mark.long
def test_the_trial_does_what_the_page_says(machine: Machine) -> None:
    if shutil.which("curl", path=machine.environment["PATH"]) is None:
        pytest.skip("no curl here")
    machine.configure()
    mail = iter(("A first mail.", "A second mail."))
    ran = 0
    for line in trial_lines():
        if line.startswith("sed "):
            continue
        out = machine.follow(line)
        ran += 1
        if line.startswith("curl "):
            assert next(mail) in out
    assert next(mail, None) is None
    assert next(machine.shown, None) is None
    assert ran == 32
    assert not machine.home.exists()


def test_every_command_for_clusters_is_on_the_page() -> None:
    missing = [name for name in group.commands if f"metad cluster {name}" not in PAGE]
    assert missing == []
