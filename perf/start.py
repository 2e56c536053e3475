"""What a hub costs to start and to end: seconds until it is ready and until it is gone, and the
processor time of all its processes, beside that of an interpreter which only imports its modules.

    python -m perf.start [--passes 10]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from metad.testing import Hub

IMPORTS = "import metad.cli.hub, metad.master.start, metad.workers.worker, metad.workers.collector"


def children() -> float:
    """Processor seconds of the children that have ended."""
    now = os.times()
    return now.children_user + now.children_system


def one_life() -> dict[str, float]:
    """Seconds of one hub with an empty store."""
    before, began = children(), time.perf_counter()
    with Hub():
        ready = time.perf_counter()
    gone, after = time.perf_counter(), children()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return {
        "until it is ready": ready - began,
        "until it is gone": gone - ready,
        "of processor": after - before,
        "of processor, its imports alone": children() - after,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=10)
    passes = parser.parse_args().passes
    one_life()  # writes the bytecode
    lives = [one_life() for _ in range(passes)]
    for what in lives[0]:
        found = [life[what] for life in lives]
        print(
            f"{statistics.median(found):6.2f} s {what} ({min(found):.2f} to {max(found):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
