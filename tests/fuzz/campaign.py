"""Fuzz one target for as long as wanted: python tests/fuzz/campaign.py TARGET [SECONDS]

With atheris installed (pip install atheris) it is guided by coverage, and what finds new branches
is written to the corpus, to be looked at and kept.  Without it, by chance.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from mutations import CORPUS, mutants
from targets import TARGETS


def by_chance(target: str, seconds: float) -> int:
    """The number of inputs tried.  A faulty one is kept in the corpus, and raises."""
    deadline = time.monotonic() + seconds
    tried = 0
    for seed in itertools.count(time.time_ns()):
        for octets in mutants(target, seed, 100):
            try:
                TARGETS[target](octets)
            except Exception:
                (CORPUS / target / f"fault-{hashlib.sha256(octets).hexdigest()[:12]}").write_bytes(
                    octets
                )
                raise
            tried += 1
        if time.monotonic() > deadline:
            break
    return tried


def by_coverage(target: str, seconds: float) -> None:
    import atheris

    atheris.instrument_all()
    arguments = [sys.argv[0], str(CORPUS / target), f"-max_total_time={int(seconds)}"]
    atheris.Setup([*arguments, "-max_len=4096"], TARGETS[target])
    atheris.Fuzz()


def main() -> int:
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in TARGETS:
        print(__doc__, "\nTargets:", *TARGETS, file=sys.stderr)
        return 64
    seconds = float(sys.argv[2]) if len(sys.argv) == 3 else 60.0
    if importlib.util.find_spec("atheris"):
        by_coverage(sys.argv[1], seconds)
    else:
        print(f"{by_chance(sys.argv[1], seconds)} inputs, no fault")
    return 0


if __name__ == "__main__":
    sys.exit(main())
