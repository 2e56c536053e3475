"""Counts instructions per message, poll and record: a guard against changes that increase them.

CPU time on a busy machine repeats to 10 %, a count of instructions to a fraction of one.  Each
subject of `perf.guard_subjects` runs under valgrind's callgrind with two numbers of rounds; the
difference, divided by the difference in rounds, is the cost of one unit without start-up and end.

    sh tools/perf guard                 measures, compares with the last line of the history
    sh tools/perf guard --record TEXT   and adds a line to perf/results/guard.jsonl
    sh tools/perf guard --step 3        shows that the guard notices 3 % more: a step is built in

Exits with 1 if a subject takes 2 % more than in the last line for the same Python and machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perf.guard_subjects import SUBJECTS
from perf.peers.report import table

HISTORY = Path(__file__).parent / "results" / "guard.jsonl"
# A change beyond this is reported; the count repeats to less than half of it.
THRESHOLD = 0.02
FEW, MANY = 20, 120
TIMEOUT = 900.0


class GuardError(Exception):
    """valgrind is missing, or a subject failed; `str()` is for a terminal."""


def count(subject: str, rounds: int, step: float) -> int:
    """Instructions of a process that runs this many rounds."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise GuardError("valgrind is not there (apt install valgrind)")
    with tempfile.TemporaryDirectory(prefix="metad-perf-") as where:
        out = Path(where) / "callgrind.out"
        command = [valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", "--"]
        command += [sys.executable, "-m", "perf.guard_subjects", subject, str(rounds), str(step)]
        # The order of sets and dicts, and with it the count, depends on the seed of hashes.
        environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        environment["TMPDIR"] = where  # what a subject's threads still write goes with it
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        found = re.search(r"Collected : (\d+)", done.stderr)
        if done.returncode or not found:
            raise GuardError(f"{subject}: exit {done.returncode}: {done.stderr[-800:]}")
        return int(found.group(1))


def instructions(subject: str, step: float = 0.0) -> float:
    """Instructions of one unit: a message, a poll, a record."""
    units = subprocess.run(
        [sys.executable, "-m", "perf.guard_subjects", subject, "--units"],
        capture_output=True,
        text=True,
        check=True,
    )
    few, many = count(subject, FEW, step), count(subject, MANY, step)
    return (many - few) / (MANY - FEW) / int(units.stdout)


def measure(subjects: Sequence[str], step: float) -> dict[str, float]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda subject: instructions(subject, step), subjects)
        return {name: round(value) for name, value in zip(subjects, found, strict=True)}


def identity() -> dict[str, str]:
    """Counts of different interpreters or processors' libraries are not compared."""
    return {"python": platform.python_version(), "machine": platform.machine()}


def last_line() -> dict[str, Any] | None:
    if not HISTORY.exists():
        return None
    lines = [json.loads(line) for line in HISTORY.read_text().splitlines() if line.strip()]
    same = [line for line in lines if identity().items() <= line.items()]
    return same[-1] if same else None


def record(found: dict[str, float], note: str) -> None:
    date = datetime.now(UTC).isoformat(timespec="seconds")
    line = {"date": date, **identity(), "note": note, "instructions": found}
    HISTORY.parent.mkdir(parents=True, exist_ok=True)
    with HISTORY.open("a") as file:
        file.write(json.dumps(line) + "\n")


def compare(found: dict[str, float], before: dict[str, float]) -> tuple[str, list[str]]:
    """A table, and the subjects whose increase exceeds the threshold."""
    rows, worse = [], []
    for name, value in found.items():
        old = before.get(name)
        change = value / old - 1 if old else 0.0
        if change > THRESHOLD:
            worse.append(name)
        rows.append([name, f"{value:,.0f}", f"{old:,.0f}" if old else "–", f"{change:+.2%}"])
    return table(["subject", "instructions each", "before", "change"], rows), worse


def demonstrate(subjects: Sequence[str], step: float) -> int:
    """The guard's result for the same code again, and with a step built in."""
    base = measure(subjects, 0.0)
    for title, more in (("again", 0.0), (f"with a step of {step:.0f} %", step)):
        text, worse = compare(measure(subjects, more), base)
        print(f"{title}:\n\n{text}\n\nreported: {', '.join(worse) or 'nothing'}\n", flush=True)
        if bool(worse) != bool(more) or (more and len(worse) != len(subjects)):
            return 1
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/perf guard")
    parser.add_argument("--record", metavar="TEXT", help="add a line to the history, with a note")
    parser.add_argument("--step", type=float, metavar="PERCENT", help="show that it is seen")
    parser.add_argument("--subjects", type=lambda text: text.split(","), default=list(SUBJECTS))
    return parser.parse_args()


def main() -> int:
    options = arguments()
    try:
        if options.step:
            return demonstrate(options.subjects, options.step)
        found = measure(options.subjects, 0.0)
    except (GuardError, subprocess.SubprocessError) as error:
        print(f"guard: {error}", file=sys.stderr)
        return 2
    before = last_line()
    text, worse = compare(found, before["instructions"] if before else {})
    print(text)
    if options.record:
        record(found, options.record)
    if worse and not options.record:
        print(f"more than {THRESHOLD:.0%} more: {', '.join(worse)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
