"""Everything shown in docs/performance.md, one program after another, in about --minutes.

    sh tools/perf whole --minutes 26 --docs      on a quiet machine

Runs peers, breadth with a full store, paper and day, each with its share of the time, then targets.
A failing program is reported; the others continue.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from perf import harness

RESULTS = Path(__file__).parent / "results"
PEERS = (
    "metad,sessions,no-sync,constants,syncs,smtp-sink,postfix,postfix-dovecot,dovecot-mdbox,haraka"
)
# Minutes of 26 for each program.  Filling the maildrop and the store of --left and --stored are in
# none of them.
SHARES = {"peers": 8.5, "breadth": 4.0, "paper": 1.5, "day": 1.5}
FILLING_MINUTES = 10.0
LEFT = 100_000


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """The arguments of each program."""
    scale = max(0.05, (options.minutes - FILLING_MINUTES) / sum(SHARES.values()))
    more = ["--results", str(options.results)] + ["--docs"] * options.docs
    if options.directory:
        more += ["--directory", options.directory]
    left = options.left
    store = ["--stored", str(options.stored), "--mailboxes", str(options.mailboxes)]
    own = {
        "peers": ["--only", PEERS, "--left", str(left)],
        "breadth": ["--only", "half,idle,disks,workers,filled", *store],
        "paper": ["--rounds", "3", "--numbers", "500,1000,2000,4000"],
        "day": ["--rates", "400,800,1600,3200"],
    }
    return {
        name: ["--minutes", f"{SHARES[name] * scale:.2f}", *arguments, *more]
        for name, arguments in own.items()
    }


MODULES = {"peers": "perf.peers.run"}


def main() -> int:
    harness.end_in_order()
    parser = argparse.ArgumentParser(prog="tools/perf whole")
    parser.add_argument("--minutes", type=float, default=26.0, help="about so long, in all")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SHARES))
    parser.add_argument("--left", type=int, default=LEFT, help="messages left in a polled maildrop")
    parser.add_argument("--stored", type=int, default=10_000_000, help="of the full store")
    parser.add_argument("--mailboxes", type=int, default=1_000_000, help="of the full store")
    parser.add_argument("--directory", help="where the data goes for the time (a real disk)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", action="store_true", help="put the tables into the docs")
    options = parser.parse_args()
    failed = []
    first = " ".join(map(str, harness.load()))
    for name, arguments in commands(options).items():
        if name not in options.only:
            continue
        began = time.monotonic()
        command = [sys.executable, "-m", MODULES.get(name, f"perf.{name}"), *arguments]
        print(f"== {name} {' '.join(arguments)}", flush=True)
        # For the line above its table.
        environment = os.environ | {"PERF_PROGRAM": name, "PERF_LOAD": first}
        if subprocess.run(command, env=environment, check=False).returncode:
            failed.append(name)
        print(f"== {name}: {(time.monotonic() - began) / 60:.1f} minutes\n", flush=True)
    docs = ["--docs"] * options.docs
    targets = [sys.executable, "-m", "perf.targets", "--results", str(options.results), *docs]
    if subprocess.run(targets, check=False).returncode:
        failed.append("targets")
    if failed:
        print(f"whole: these failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
