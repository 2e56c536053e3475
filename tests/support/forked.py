"""Runs metad commands without the cost of a new interpreter: in a forked child, which becomes the
owner of the data directory as the real one does."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import IO

from metad import cli


def forked(arguments: Sequence[str], given: str = "") -> subprocess.CompletedProcess[str]:
    """What the command gave."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os._exit(_child([*arguments], given, out, err))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, code, *texts)


def _child(arguments: list[str], given: str, out: IO[bytes], err: IO[bytes]) -> int:
    """The whole of the child; its exit status."""
    try:
        os.chdir("/")
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        return run_here(arguments, given)
    except BaseException:
        traceback.print_exc()
        return 1


def run_here(arguments: list[str], given: str) -> int:
    """Run a command in this process, with the descriptors 1 and 2 that it has.  Its exit status."""
    sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()))
    sys.stdout = open(1, "w", closefd=False)
    sys.stderr = open(2, "w", closefd=False)
    try:
        return cli.main(arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
