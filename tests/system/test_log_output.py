"""Writing log lines never blocks, whether or not the log is read."""

from __future__ import annotations

import os
import pty
import socket
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from metad.system.log_output import LogOutput, own_terminal

MANY = b"a line of the log\n" * 100_000


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


@contextmanager
def stream() -> Iterator[tuple[int, int]]:
    one, other = socket.socketpair()
    with one, other:
        yield one.fileno(), other.fileno()


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    mode = termios.tcgetattr(slave)
    mode[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, mode)
    shell = os.dup(slave)
    own_terminal(slave)
    assert os.get_blocking(shell)
    os.close(shell)
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("ends", "polling"), [(pipe, False), (pipe, True), (stream, False), (terminal, False)]
)
def test_what_is_not_read_is_written_in_part_and_nothing_waits(
    ends: Callable[[], AbstractContextManager[tuple[int, int]]], polling: bool
) -> None:
    with ends() as (reader, writer):  # type: ignore[attr-defined]
        blocking = os.get_blocking(writer)
        output = LogOutput(writer)
        if polling:
            output._write = output._write_polling
        written = output.write(MANY)
        assert 0 < written < len(MANY)
        assert output.write(MANY) < len(MANY)
        assert os.get_blocking(writer) == blocking  # it may be shared with others
        assert MANY.startswith(os.read(reader, written))


def test_a_file_takes_all(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        assert LogOutput(file.fileno()).write(MANY) == len(MANY)
    assert (tmp_path / "log").read_bytes() == MANY


def test_a_closed_descriptor_and_a_closed_reader_take_nothing() -> None:
    with pipe() as (reader, writer):
        output = LogOutput(writer)
        dead = os.dup(writer)
        os.close(dead)
        assert LogOutput(dead).write(b"x\n") == 0
        os.dup2(writer, reader)  # no reader is left
        assert output.write(b"x\n") == 0
