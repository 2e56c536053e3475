"""What a confined worker may open."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metad.system import landlock
from tests.support.clients import Pop3Line
from tests.support.hub import Hub


@pytest.mark.slow
@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
def test_a_confined_worker_has_its_spare_descriptor() -> None:
    """Regression: libuv tried to open two files at every accept, and Landlock denied both."""
    with Hub(["alice"], workers=1) as hub:
        with Pop3Line(hub) as pop:
            pop.say("NOOP", b"-ERR")
        (worker,) = hub.workers()
        if not os.access(f"/proc/{worker}/fd", os.R_OK):
            pytest.skip("the worker's descriptors cannot be read")
        links = [
            os.readlink(one) for one in Path(f"/proc/{worker}/fd").iterdir() if int(one.name) > 2
        ]
        assert "/dev/null" in links
