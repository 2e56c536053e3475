"""The load generators of perf/load/: compiled once, run, their reports checked.

Rules of this file:

* A run with any wrong reply raises an error: its figure would mean nothing.
* The generator's own CPU time is in every report; `busy` near 1 means that it was the bottleneck.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perf import state

SOURCES = Path(__file__).parent / "load"
SHARED = ("net.c", "jobs.c", "message.c", "report.c")
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra")
TIMEOUT = 900.0


class GeneratorError(Exception):
    """There is no compiler, or a load had errors; `str()` is for a terminal."""


def program(name: str) -> str:
    """The path of smtp-load or pop3-load, compiled if its sources are newer."""
    main = SOURCES / f"{name.partition('-')[0]}.c"
    sources = [main, *(SOURCES / shared for shared in SHARED)]
    made = state.STATE / "bin" / name
    newest = max(path.stat().st_mtime for path in (*sources, SOURCES / "load.h"))
    if made.exists() and made.stat().st_mtime > newest:
        return str(made)
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise GeneratorError("the load generators need a C compiler (cc)")
    made.parent.mkdir(parents=True, exist_ok=True)
    new = made.with_name(f"{name}.{os.getpid()}")  # another run may be using it, or making it
    command = [compiler, *FLAGS, "-o", str(new), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise GeneratorError(f"{main.name} does not compile:\n{done.stderr}")
    new.replace(made)
    return str(made)


@dataclass(frozen=True, slots=True)
class Report:
    """One run of a generator.  `cpu_us`: the generator's own, per unit."""

    unit: str
    count: int
    seconds: float
    latency_ms: dict[str, float]
    cpu_us: float
    busy: float
    facts: dict[str, Any] = field(repr=False)

    @property
    def rate(self) -> float:
        return self.count / self.seconds if self.seconds else 0.0


def run(command: Sequence[str]) -> Report:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, check=False, errors="replace"
    )
    if done.returncode not in (0, 1) or not done.stdout:
        raise GeneratorError(f"{Path(command[0]).name}: {done.stderr.strip()}")
    facts = json.loads(done.stdout)
    if facts["error_count"] or not facts["count"]:
        raise GeneratorError(f"{facts['error_count']} errors: {'; '.join(facts['errors'][:2])}")
    return Report(
        facts["unit"],
        facts["count"],
        facts["seconds"],
        facts["latency_ms"],
        facts["load_cpu_us"],
        facts["load_busy"],
        facts,
    )


@dataclass(frozen=True, slots=True)
class Smtp:
    """`size`: bytes of a message.  `per_connection`: messages, 0 without limit."""

    connections: int
    messages: int
    size: int = 500
    pipeline: bool = False
    per_connection: int = 0
    lmtp: bool = False

    def run(self, port: int, recipients: Iterable[str]) -> Report:
        numbers = {
            "--port": port,
            "--connections": self.connections,
            "--messages": self.messages,
            "--size": self.size,
            "--per-connection": self.per_connection,
        }
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("".join(f"{address}\n" for address in recipients))
            file.flush()
            command = [program("smtp-load"), "--recipients", file.name]
            for option, number in numbers.items():
                command += [option, str(number)]
            command += ["--pipeline"] * self.pipeline + ["--lmtp"] * self.lmtp
            return run(command)


@dataclass(frozen=True, slots=True)
class Pop3:
    """`action`: poll, keep, drain or fetch, as at the top of perf/load/pop3.c."""

    connections: int
    sessions: int
    action: str = "keep"
    retrieve: int = 1

    def run(self, port: int, users: Iterable[str], password: str) -> Report:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("".join(f"{address}\n" for address in users))
            file.flush()
            command = [program("pop3-load"), "--users", file.name, "--password", password]
            command += ["--port", str(port), "--connections", str(self.connections)]
            command += ["--sessions", str(self.sessions), "--action", self.action]
            command += ["--retrieve", str(self.retrieve)]
            return run(command)
