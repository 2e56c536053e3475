"""Campaigns in children: one that fails ends all of them."""

import os
import select
import stat

import pytest

from tests.support.hub import DEADLINE
from tests.support.power_campaign import spread


def wait_until_unread() -> None:
    """Until a pipe of this process has no reader any more."""
    poll = select.poll()
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISFIFO(os.fstat(int(name)).st_mode):
                poll.register(int(name), 0)
        except OSError:
            continue  # that of the listing
    assert poll.poll(DEADLINE * 1000)


def test_the_sum_of_all_jobs():
    assert spread(lambda job: job + 1, 5) == 15


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one job at a time")
def test_a_job_that_ends_after_another_has_failed_ends_its_process():
    """Regression: nothing read its result, it went on as a second pytest, and the run hung."""
    pid = os.getpid()

    def work(job):
        if job == 1:
            raise ValueError("the second one")
        wait_until_unread()
        return 0

    with pytest.raises(AssertionError, match="the second one"):
        spread(work, 2)
    assert os.getpid() == pid
