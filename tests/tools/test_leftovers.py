"""The tool `leftovers` sees what a run leaves behind, and only that."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools/leftovers"


def run(directory, script, counts=""):
    """The tool with a shell script as its command; exit status and what it printed."""
    command = [sys.executable, str(TOOL), str(directory), "sh", "-c", script]
    done = subprocess.run(
        command,
        env={**os.environ, "METAD_LEFTOVERS_PATIENCE": "0.5", "METAD_TEST_COUNTS": counts},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_clean_run_passes(tmp_path):
    assert run(tmp_path, "true") == (0, "")


def test_a_failed_run_keeps_its_status(tmp_path):
    assert run(tmp_path, "exit 7")[0] == 7


def test_a_process_left_behind_fails_and_is_ended(tmp_path):
    status, said = run(tmp_path, "setsid sleep 4711 >/dev/null 2>&1 & echo $!")
    pid = int(said.split()[0])
    assert status == 1
    assert f"left behind: process {pid}: sleep 4711" in said
    assert has_ended(pid)


def test_a_process_that_is_just_ending_is_waited_for(tmp_path):
    assert run(tmp_path, "setsid sleep 0.3 >/dev/null 2>&1 &")[0] == 0


@pytest.mark.parametrize("name", ["metad-test-leftover", "sem.metad-test-leftover"])
def test_shared_memory_left_behind_fails(tmp_path, name):
    path = Path("/dev/shm") / f"{name}-{os.getpid()}"
    try:
        status, said = run(tmp_path, f"touch {path}")
    finally:
        path.unlink()
    assert status == 1
    assert f"left behind: shared memory {path.name}" in said


@pytest.mark.parametrize(("runs", "status"), [(True, 0), (False, 1)])
def test_shared_memory_of_a_hub_that_runs_is_nobodys_fault(tmp_path, runs, status):
    pid = os.getpid() if runs else 1 << 22  # greater than any
    path = Path("/dev/shm") / f"metad-{os.getpid():012x}-{pid}"
    try:
        assert run(tmp_path, f"touch {path}")[0] == status
    finally:
        path.unlink()


def test_a_file_left_behind_fails(tmp_path):
    status, said = run(tmp_path, 'touch "$TMPDIR/forgotten"')
    assert (status, said) == (1, "left behind: file forgotten\n")


def test_what_is_left_is_added_to_what_the_tests_tell(tmp_path):
    counts = tmp_path / "counts"
    (tmp_path / "tmp").mkdir()
    script = f'touch "$TMPDIR/forgotten"; echo 1 0 >{counts}'
    assert run(tmp_path / "tmp", script, str(counts))[0] == 1
    assert counts.read_text() == "1 0\nleft behind: file forgotten\n"
    counts.unlink()
    assert run(tmp_path / "tmp", "true", str(counts))[0] == 1
    assert not counts.exists()  # its first line would be no count


def has_ended(pid):
    """Whether a process is gone, or will be as soon as its new parent looks."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(descriptor):
        return bool(select.select([descriptor], [], [], 10)[0])
