"""Checks that each page of an LMDB file is in one tree or free: LMDB's API does not show its free
list.

A free list older than the trees names pages in use: later transactions overwrite them, without any
error.

Rules of this file:

* For LMDB's file format 1 on a 64-bit machine; for any other, nothing is reported.
* Only while no process writes to the file.
* Leaves are not read, except those of the free list and of the table of tables, and the only leaf
  of a small table: LMDB does not check that a page is the one it wants.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from metad.system.osio import Osio

_META_PAGES = 2
_META = struct.Struct("=16xIIQQ")  # after a page's header: magic, version, address, map size
_TREE = struct.Struct("=IHHQQQQQ")
_LAST = struct.Struct("=QQ")  # last page, transaction
_PAGE = struct.Struct("=QHHHH")  # number, pad, flags, ends of the free space
_NODE = struct.Struct("=HHHH")  # size or page, flags or page, size of the key
_NUMBER = struct.Struct("=Q")
FREE_TREE = _META.size  # where a meta page has it
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _META_FLAG = 1, 2, 8  # flags of a page
_BIG, _TABLE = 1, 2  # flags of a row: in pages of its own; a tree
_NO_ROOT = (1 << 64) - 1


class Tree(NamedTuple):
    """The description of a tree in a meta page, or in a row of the table of tables."""

    page_size: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    rows: int
    root: int

    @property
    def pages(self) -> int:
        return self.branches + self.leaves + self.overflows


class Meta(NamedTuple):
    """One of the two pages that locate the trees."""

    transaction: int
    last_page: int
    free: Tree
    tables: Tree


def parse_meta(page: bytes) -> Meta | None:
    """None: it is not a meta page of this format."""
    magic, version, *_ = _META.unpack_from(page)
    if (magic, version) != (_MAGIC, _VERSION):
        return None
    free = Tree._make(_TREE.unpack_from(page, FREE_TREE))
    tables = Tree._make(_TREE.unpack_from(page, _META.size + _TREE.size))
    last, transaction = _LAST.unpack_from(page, _META.size + 2 * _TREE.size)
    return Meta(transaction, last, free, tables) if free.page_size >= 512 else None


def why_wrong(osio: Osio, path: str) -> str | None:
    """The fault in the pages of the LMDB file `path`.  Raises OSError."""
    fd = osio.open(path, 0)
    try:
        newest = newest_meta(osio, fd)
        return None if newest is None else _Pages(osio, fd, newest).why_wrong()
    except (ValueError, struct.error) as error:
        return f"its pages are damaged: {error}"
    finally:
        osio.close(fd)


def newest_meta(osio: Osio, fd: int) -> Meta | None:
    """The meta page that LMDB would use."""
    first = parse_meta(osio.pread(fd, 4096, 0).ljust(4096, b"\0"))
    at = first.free.page_size if first else os.sysconf("SC_PAGESIZE")
    second = parse_meta(osio.pread(fd, 4096, at).ljust(4096, b"\0"))
    known = [meta for meta in (first, second) if meta is not None]
    return max(known, key=lambda meta: meta.transaction, default=None)


def restore_meta(osio: Osio, path: str) -> bool:
    """If one of the two meta pages is invalid, replace it by the other, durably.

    True: it was replaced.  Raises OSError.
    """
    fd = osio.open(path, os.O_RDWR)
    try:
        page_size = _page_size(osio, fd)
        pages = [osio.pread(fd, page_size, at) for at in (0, page_size)]
        good = [number for number, page in enumerate(pages) if _is_meta(page)]
        if len(good) != 1 or osio.fstat(fd).st_size < _META_PAGES * page_size:
            return False
        other = 1 - good[0]
        page = _NUMBER.pack(other) + pages[good[0]][_NUMBER.size :]
        if osio.pwrite(fd, page, other * page_size) != len(page):
            raise OSError(errno.EIO, "short write of a meta page", path)
        osio.fdatasync(fd)
        return True
    finally:
        osio.close(fd)


def _is_meta(page: bytes) -> bool:
    _, _, flags, *_ = _PAGE.unpack_from(page.ljust(_PAGE.size, b"\0"))
    return bool(flags & _META_FLAG) and len(page) >= 512 and parse_meta(page) is not None


def _page_size(osio: Osio, fd: int) -> int:
    """From the first meta page, or from the machine if that page is bad."""
    first = osio.pread(fd, 4096, 0)
    meta = parse_meta(first) if _is_meta(first) else None
    return meta.free.page_size if meta else os.sysconf("SC_PAGESIZE")


class _Pages:
    """The pages according to one meta page.  Everything raises ValueError, struct.error,
    OSError."""

    def __init__(self, osio: Osio, fd: int, meta: Meta) -> None:
        self._osio = osio
        self._fd = fd
        self._meta = meta
        self._size = meta.free.page_size
        self._left = meta.last_page + 1  # maximum number of pages to read: a damaged tree has loops

    def why_wrong(self) -> str | None:
        meta = self._meta
        free = [page for data in self._rows(meta.free) for page in self._listed(*data)]
        trees = [Tree._make(_TREE.unpack_from(data)) for data, flags in self._rows(meta.tables)
                 if flags & _TABLE]  # fmt: skip
        for tree in trees:
            if tree.depth == 1:
                self._read(tree.root, _LEAF)
        trees += [meta.free, meta.tables]
        used = [page for tree in trees for page in self._of(tree)]
        overflows = sum(tree.overflows for tree in trees)
        if len(used) + overflows != sum(tree.pages for tree in trees):
            return "its trees have other pages than they should"
        if _META_PAGES + len(used) + overflows + len(free) != meta.last_page + 1:
            return "some of its pages are neither free nor in use"
        if len({*used, *free}) != len(used) + len(free):
            return "some of its pages are in use twice, or free and in use"
        return None

    def _of(self, tree: Tree) -> Iterator[int]:
        """The pages of a tree, without those of long rows."""
        level = [tree.root] if tree.root != _NO_ROOT else []
        for _ in range(1, tree.depth):
            yield from level
            level = [child for page in level for child in self._children(page)]
        yield from level

    def _children(self, number: int) -> Iterator[int]:
        page = self._read(number, _BRANCH)
        for at in _nodes(page):
            low, high, more, _ = _NODE.unpack_from(page, at)
            yield low | high << 16 | more << 32

    def _rows(self, tree: Tree) -> Iterator[tuple[bytes, int]]:
        """The values of a tree's rows, and their flags."""
        level = [tree.root] if tree.root != _NO_ROOT else []
        for _ in range(1, tree.depth):
            level = [child for page in level for child in self._children(page)]
        for number in level:
            page = self._read(number, _LEAF)
            for at in _nodes(page):
                low, high, flags, key = _NODE.unpack_from(page, at)
                length = low | high << 16
                start = at + _NODE.size + key
                yield self._value(page[start : start + length], length, flags), flags

    def _value(self, data: bytes, length: int, flags: int) -> bytes:
        if not flags & _BIG:
            return data
        number = _NUMBER.unpack_from(data)[0]
        return self._osio.pread(self._fd, length, number * self._size + _PAGE.size)

    def _listed(self, data: bytes, _: int) -> list[int]:
        """The pages of one row of the free list."""
        count, *pages = (number for (number,) in _NUMBER.iter_unpack(data[: len(data) // 8 * 8]))
        if count > len(pages) or max(pages[:count], default=0) > self._meta.last_page:
            raise ValueError("its free list names pages that are not there")
        return pages[:count]

    def _read(self, number: int, kind: int) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("a tree has no end")
        data = self._osio.pread(self._fd, self._size, number * self._size)
        found, _, flags, *_ = _PAGE.unpack_from(data)
        if found != number or not flags & kind:
            raise ValueError(f"page {number} is another one")
        return data


def _nodes(page: bytes) -> Iterator[int]:
    """The offsets of a page's rows."""
    lower = _PAGE.unpack_from(page)[3]
    for (at,) in struct.iter_unpack("=H", page[_PAGE.size : lower]):
        yield at
