"""A hub, an old server's files and a root directory, in which the command lines of a page are run.

Rules of this file:

* Absolute paths of a page lie below the stage's directory; names of hosts become listeners here.
* `metad` is the real one, with the hub's configuration.  `systemctl` and `postfix` are stand-ins:
  they start, stop and reload this hub; the machine of tests/packaging has the real ones.
"""

from __future__ import annotations

import os
import re
import select
import signal
import smtplib
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from tests.support.hub import DEADLINE, HOSTNAME, METAD, Hub
from tests.support.wide_hub import certificate

DOMAIN = "example.org"
USERS = ("alice", "ann", "bob", "carol")
OLD = "old.example.org"
_PATHS = re.compile(r"(?<![\w./%])/(?=(?:etc|var|backup|tmp|home|srv)/)")
# What runs until it is interrupted, and the word that shows that it works.
_LASTING = {"metad start --dev": "Mail is printed", "metad mail tail": ""}


class Stage:
    """`hub` serves on it; `run` runs one line of a page."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.home = hub.home
        self.ran: list[str] = []
        owner = "-o nobody -g nogroup" if os.geteuid() == 0 else ""
        self._replaced = [("-o metad -g metad", owner)]
        self.environment = dict(os.environ)
        self._programs()
        self._old_server()

    def replace(self, *pairs: tuple[str, str]) -> None:
        """From now on, lines have the second where the page has the first."""
        self._replaced += pairs

    def path(self, path: str) -> Path:
        return self.home / path.lstrip("/")

    def _programs(self) -> None:
        directory = self.home / "bin"
        directory.mkdir()
        scripts = {
            "metad": f'case "$*" in *--dev*) exec {METAD} "$@" ;; esac\n'
            f'exec {METAD} "$@" --config {self.hub.config.name}',
            "systemctl": 'echo "$1 $2" >>systemctl.log',
            "postfix": 'echo "$1 postfix" >>systemctl.log',
        }
        for name, script in scripts.items():
            program = directory / name
            program.write_text(f"#!/bin/sh\ncd '{self.home}'\n{script}\n")
            program.chmod(0o755)
        self.environment["PATH"] = f"{directory}:{self.environment['PATH']}"
        self.environment["NO_COLOR"] = "1"

    def _old_server(self) -> None:
        """What the pages move in: Dovecot's users, Postfix's maps, Maildirs and an mbox."""
        for name in ("etc/dovecot", "etc/postfix", "backup", "tmp", "var/mail"):
            self.path(name).mkdir(parents=True, exist_ok=True)
        lines = {
            "etc/dovecot/users": [f"{one}@{DOMAIN}:{{PLAIN}}secret::::::" for one in USERS],
            "etc/postfix/vmailbox": [f"{one}@{DOMAIN} {DOMAIN}/{one}/" for one in USERS],
            "etc/postfix/virtual": [f"sales@{DOMAIN} ann@{DOMAIN}, bob@{DOMAIN}"],
            "etc/passwd": ["carol:x:1001:1001::/home/carol:/bin/sh"],
            "etc/shadow": ["carol:*:19000:0:99999:7:::"],
            "users.csv": ["address,quota", f"dave@{DOMAIN},1GiB"],
            "var/mail/ann": ["From ann Thu Jan  1 00:00:00 2026", "Subject: mbox", "", "text", ""],
        }
        for name, content in lines.items():
            self.path(name).write_text("\n".join([*content, ""]))
        for user in USERS:
            for box in (f"var/vmail/{DOMAIN}/{user}/Maildir", f"home/{user}/Maildir"):
                for part in ("cur", "new", "tmp"):
                    self.path(box).joinpath(part).mkdir(parents=True)
                text = f"Subject: old mail of {user} in {box}\n\ntext\n"
                self.path(box).joinpath("new/1.M1.old").write_text(text)
        for name, text in zip(("fullchain.pem", "privkey.pem"), certificate(HOSTNAME), strict=True):
            self.path(name).write_text(text)
        for one in (self.home, *self.home.rglob("*")):
            if not one.is_relative_to(self.hub.data):
                one.chmod(one.stat().st_mode | (0o055 if one.is_dir() else 0o044))

    def fill(self, users: Iterable[str] = USERS) -> None:
        """A message for each of these users, who are made."""
        for name in users:
            self.hub.run_forked(
                "user", "add", f"{name}@{DOMAIN}", "--password-stdin", given="secret\n"
            )
        self.send(users)

    def send(self, users: Iterable[str]) -> None:
        with smtplib.SMTP("127.0.0.1", self.hub.smtp_port) as client:
            for name in users:
                client.sendmail(
                    "sender@example.net", f"{name}@{DOMAIN}", f"Subject: {name}\n\ntext\n"
                )

    # -- lines

    def adapted(self, line: str) -> str:
        for old, new in self._replaced:
            line = line.replace(old, new)
        return _PATHS.sub(f"{self.home}/".replace(" ", "\\ "), line)

    def run(self, line: str, code: int = 0) -> str:
        """Run a line of the page; what it printed.  The hub is started and stopped as it asks."""
        self.ran.append(line)
        if re.match(r"(systemctl|metad) (stop|start|restart)( metad)?$", line):
            return self._turn(line)
        for command, word in _LASTING.items():
            if line.startswith(command):
                return self._run_lasting(line, word)
        done = self._shell(self.adapted(line))
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == code, f"{line}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def _shell(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-ec", line], input="secret\n", capture_output=True, text=True, check=False,
            cwd=self.home, env=self.environment, timeout=2 * DEADLINE,
        )  # fmt: skip

    def _turn(self, line: str) -> str:
        """Start or stop the hub of the stage, by the page's own command where that is metad's."""
        if "start" not in line or "restart" in line:
            if line == "metad stop":
                self._shell(line)
                self.hub.finished()
            elif self.hub.process is not None:
                self.hub.stop()
        if "start" in line and self.hub.process is None:
            self.hub.start()
        return ""

    def _run_lasting(self, line: str, word: str) -> str:
        """Until it says the word while mail arrives; then ^C, which ends it well."""
        process = subprocess.Popen(
            ["sh", "-ec", f"exec {self.adapted(line)}"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.home,
            env=self.environment, start_new_session=True,
        )  # fmt: skip
        try:
            return self._heard(process, word)
        finally:
            os.kill(process.pid, signal.SIGINT)  # not its children: one may be starting
            _, errors = process.communicate(timeout=DEADLINE)
            assert "Traceback" not in errors, errors

    def _heard(self, process: subprocess.Popen[str], word: str) -> str:
        """What it printed, the word included.  A message arrives about every second."""
        assert process.stdout is not None
        deadline = time.monotonic() + DEADLINE
        said = ""
        while time.monotonic() < deadline:
            if select.select([process.stdout], [], [], 1)[0]:
                if not (data := os.read(process.stdout.fileno(), 65536)):
                    break
                said += data.decode()
                if word in said:
                    return said
            else:
                self.send(["alice"])
        raise AssertionError(f"{process.args!r}: {said}")
