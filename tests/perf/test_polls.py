"""Polls by the size of the mailbox: each is a whole session, and its STAT shows the size."""

import subprocess
import sys
from pathlib import Path

import pytest

from perf import polls, session

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path(session.RAM_DISK).is_dir(), reason="no RAM disk")
def test_a_poll_of_each_mailbox_is_measured():
    command = [sys.executable, "-m", "perf.polls", "--sizes", "5", "50", "--rounds", "1", "--list"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert not done.stderr
    assert "         5 messages:" in done.stdout
    assert "        50 messages:" in done.stdout
    assert done.stdout.count("listing: 1 steps") == 2
    assert done.returncode in (0, 1)  # as one round on a busy machine may go


def test_a_dearer_poll_is_shown_beside_the_first():
    shown = polls.line(1000, (60e-6, 3e-6), (40e-6, 2e-6))
    assert "60.00 us a poll, 1.50 x" in shown
