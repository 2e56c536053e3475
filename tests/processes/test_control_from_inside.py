"""A compromised worker cannot reconfigure the hub through its control socket."""

from __future__ import annotations

import os

import pytest

from metad.system import privileges


@pytest.mark.long
@pytest.mark.parametrize("who", ["child", "orphan", "watcher"])
def test_a_process_of_the_hub_is_refused(sabotaged, who):
    """Regression: `landlock = false` was sent from inside, and the next workers ran unconfined."""
    with sabotaged() as live:
        master = live.facts()["pid"]
        (live.data / f"intrude-{who}").write_text(str(live.worker_pids()[0]))
        result = live.data / f"intruded-{who}"
        live.until(lambda _: result.exists() and result.read_text(), "an answer to the intruder")
        assert "closed the connection" in result.read_text()
        assert "reloaded" not in live.log.read_text()
        # A command from outside is still served.
        live.run("reload")
        assert live.facts()["pid"] == master


def test_landlock_needs_a_restart(sabotaged):
    with sabotaged() as live:
        live.config.write_text("landlock = false\n" + live.config.read_text())
        done = live.run("reload")
        assert "landlock needs a restart" in done.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_descendants_are_recognised():
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    try:
        assert privileges.descends_from(child, os.getpid())
        assert privileges.descends_from(os.getpid(), os.getppid())
        assert not privileges.descends_from(os.getppid(), child)
        assert not privileges.descends_from(1, os.getpid())
    finally:
        os.close(writer)
        os.waitpid(child, 0)
    assert not privileges.descends_from(child, os.getpid())
