"""The header of a log, kept twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metad.store.log import header
from metad.store.log.header import ACTIVE, FREE, LogHeader
from metad.system.osio import Osio

SECRET = b"s" * 32
OSIO = Osio()


def some(**changes: int) -> LogHeader:
    made = LogHeader(ACTIVE, 0, 7, 1000, 64 * 1024, 512, 1, b"i" * 16, SECRET)
    return made._replace(**changes)  # type: ignore[arg-type]


def write(path: Path, first: LogHeader | None, last: LogHeader | None, size: int = 65536) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, size)
    if first is not None:
        header.write_first(OSIO, fd, first)
    if last is not None:
        header.write_last(OSIO, fd, last)
    return fd


def read(path: Path, first: LogHeader | None, last: LogHeader | None) -> LogHeader | None:
    fd = write(path, first, last)
    try:
        return header.read(OSIO, fd, SECRET)
    finally:
        os.close(fd)


@pytest.mark.parametrize("align", [512, 4096])
def test_a_header_fills_one_block_and_comes_back(align: int) -> None:
    full = some(
        align=align, generation=3, predecessor_life=5, predecessor_end=6, seal_offset=7, seal_size=8
    )
    block = full.pack()
    assert len(block) == align
    assert block[:8] == b"metadlog"
    assert header.parse(block, SECRET) == full


def test_every_flipped_bit_of_a_header_is_found() -> None:
    block = bytearray(some().pack())
    for bit in range(header.HEADER_SIZE * 8):
        block[bit // 8] ^= 1 << bit % 8
        assert header.parse(bytes(block), SECRET) is None, f"bit {bit}"
        block[bit // 8] ^= 1 << bit % 8


def test_a_header_of_another_store_is_none() -> None:
    assert header.parse(some().pack(), b"t" * 32) is None


def test_a_header_that_is_cut_off_is_none() -> None:
    assert header.parse(some().pack()[: header.HEADER_SIZE - 1], SECRET) is None


@pytest.mark.parametrize("align", [512, 4096])
def test_either_copy_is_enough(tmp_path: Path, align: int) -> None:
    log = some(align=align)
    assert read(tmp_path / "1", log, None) == log
    assert read(tmp_path / "2", None, log) == log
    assert read(tmp_path / "3", None, None) is None


def test_the_seal_of_the_last_block_counts(tmp_path: Path) -> None:
    sealed = some(seal_offset=4096, seal_size=200)
    assert read(tmp_path / "1", some(), sealed) == sealed


def test_the_copy_of_the_greater_life_wins(tmp_path: Path) -> None:
    old, new = some(seal_offset=4096, seal_size=200), some(life=1001)
    assert read(tmp_path / "1", new, old) == new
    assert read(tmp_path / "2", old._replace(state=FREE), new) == new


def test_one_copy_that_says_free_makes_the_log_free(tmp_path: Path) -> None:
    free = some(state=FREE)
    for at, (first, last) in enumerate([(free, some()), (some(), free), (free, free)]):
        found = read(tmp_path / str(at), first, last)
        assert found is not None
        assert found.state == FREE


def test_an_empty_or_tiny_file_has_no_header(tmp_path: Path) -> None:
    for size in (0, 1, 100, 511, 512):
        fd = write(tmp_path / str(size), None, None, size)
        assert header.read(OSIO, fd, SECRET) is None
        os.close(fd)


def test_a_short_write_of_a_header_is_an_error() -> None:
    class Short(Osio):
        def pwrite(self, fd: int, data: object, offset: int) -> int:
            return 100

    with pytest.raises(OSError, match="short write"):
        header.write_first(Short(), -1, some())
