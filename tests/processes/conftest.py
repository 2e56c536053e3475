"""For the tests of processes: the clients of the end-to-end tests, and a hub of one's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "e2e"))

SCALE = float(os.environ.get("METAD_TEST_SCALE", "1"))


@pytest.fixture
def scale() -> float:
    """How many times more than in CI."""
    return SCALE


@pytest.fixture
def sabotaged(monkeypatch):
    """Makes hubs whose workers can be made to fail (see sabotage/sitecustomize.py)."""
    from live import LiveHub

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("sabotage")))
    return LiveHub
