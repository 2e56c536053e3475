"""For every test: its helpers can be imported, and the seed of the run is shown."""

from __future__ import annotations

import os


def pytest_report_header() -> str:
    seed = os.environ.get("METAD_TEST_SEED", "1999")
    return f"METAD_TEST_SEED={seed} METAD_TEST_SCALE={os.environ.get('METAD_TEST_SCALE', '1')}"
