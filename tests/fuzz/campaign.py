"""Fuzz one target for any time: python tests/fuzz/campaign.py TARGET [SECONDS]

With atheris installed (pip install '.[fuzz]') it is guided by coverage, and inputs that reach new
branches go to the folder METAD_FUZZ_FOUND (otherwise one in the temporary directory, which is
printed), to be examined and kept.  Without it, inputs are random.  A failing input is added to the
corpus at once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.fuzz.mutations import CORPUS, mutants

NAMES = sorted(path.name for path in CORPUS.iterdir())
Target = Callable[[bytes], None]


def keeping(name: str, target: Target) -> Target:
    """The target; a failing input is added to the corpus, and raises."""

    def run(octets: bytes) -> None:
        try:
            target(octets)
        except Exception:
            kept = f"fault-{hashlib.sha256(octets).hexdigest()[:12]}"
            (CORPUS / name / kept).write_bytes(octets)
            raise

    return run


def by_chance(name: str, seconds: float) -> int:
    """The number of inputs tried."""
    from tests.fuzz.targets import TARGETS

    target = keeping(name, TARGETS[name])
    deadline = time.monotonic() + seconds
    tried = 0
    for seed in itertools.count(time.time_ns()):
        for octets in mutants(name, seed, 100):
            target(octets)
            tried += 1
        if time.monotonic() > deadline:
            break
    return tried


def by_coverage(name: str, seconds: float) -> None:
    """Exits the process when the time is over; the exit code is not 0 if an input failed."""
    import atheris

    # Only our code: instrumenting the libraries too takes a minute, and finds their branches.
    with atheris.instrument_imports(include=["metad"], enable_loader_override=False):
        from tests.fuzz.targets import TARGETS

    found = os.environ.get("METAD_FUZZ_FOUND") or tempfile.mkdtemp(prefix=f"metad-fuzz-{name}.")
    Path(found).mkdir(parents=True, exist_ok=True)
    print(f"{name}: what is new goes to {found}", flush=True)
    options = [f"-max_total_time={int(seconds)}", "-max_len=4096", "-timeout=60"]
    options.append(f"-artifact_prefix={found}/")
    atheris.Setup([sys.argv[0], found, str(CORPUS / name), *options], keeping(name, TARGETS[name]))
    atheris.Fuzz()


def main() -> int:
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in NAMES:
        print(__doc__, "\nTargets:", *NAMES, file=sys.stderr)
        return 64
    seconds = float(sys.argv[2]) if len(sys.argv) == 3 else 60.0
    if importlib.util.find_spec("atheris"):
        by_coverage(sys.argv[1], seconds)
    else:
        print(f"{by_chance(sys.argv[1], seconds)} inputs, no fault")
    return 0


if __name__ == "__main__":
    sys.exit(main())
