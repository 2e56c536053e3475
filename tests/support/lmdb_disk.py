"""The possible states of an LMDB file on disk: LMDB bypasses `Osio`, so the file is observed by
snapshots.

    pages = PageHistory(path)      the file as it is now is on the disk
    pages.look()                   which pages have changed; to be called often
    pages.synced()                 after a sync that did not fail
    pages.state(rng, mode)         the file after the page cache was lost

Rules of this file:

* A page that was not synced is on the disk as it was at any look since, or as at the last sync; it
  may be torn by sector, and one may be spoiled.  The file is as long as it was at any look.
* LMDB writes with pwrite(2) and reads the map: a look sees all that was written.
"""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.power_kit import SECTOR

PAGE = 4096
META_PAGES = 2
MODES = ("none", "all", "half", "few", "most", "meta alone", "all but meta", "torn", "spoiled")


class PageHistory:
    """The versions of each page that may be on the disk, the durable one first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.synced()

    def synced(self) -> None:
        """Everything written is durable."""
        self._now = self._pages()
        self._versions = {number: [page] for number, page in enumerate(self._now)}
        self._lengths = [len(self._now)]

    def look(self) -> None:
        before, self._now = self._now, self._pages()
        for number, page in enumerate(self._now):
            if number >= len(before) or page != before[number]:
                self._versions.setdefault(number, [bytes(PAGE)]).append(page)
        if len(self._now) != self._lengths[-1]:
            self._lengths.append(len(self._now))

    def _pages(self) -> list[bytes]:
        data = self.path.read_bytes()
        return [data[at : at + PAGE].ljust(PAGE, b"\0") for at in range(0, len(data), PAGE)]

    @property
    def under_way(self) -> list[int]:
        """The pages of which the disk may have more than one version."""
        return [number for number, versions in self._versions.items() if len(versions) > 1]

    def state(self, rng: random.Random, mode: str) -> bytes:
        """The file as the disk may have it."""
        changed = self.under_way
        newest = set(self._chosen(rng, mode, changed))
        kept = [self._kept(rng, mode, number, newest) for number in sorted(self._versions)]
        odd = rng.choice(changed) if changed and mode in ("torn", "spoiled") else -1
        if mode == "torn" and odd >= 0:
            kept[odd] = torn(rng, self._versions[odd])
        if mode == "spoiled" and odd >= 0:
            kept[odd] = rng.randbytes(PAGE)
        length = self._lengths[-1] if mode == "all" else rng.choice(self._lengths)
        return b"".join(kept[: max(length, max(newest, default=0) + 1)])

    def _kept(self, rng: random.Random, mode: str, number: int, newest: set[int]) -> bytes:
        versions = self._versions[number]
        if number in newest:
            return versions[-1]
        return versions[0] if mode == "none" else rng.choice(versions[:-1] or versions)

    @staticmethod
    def _chosen(rng: random.Random, mode: str, changed: list[int]) -> list[int]:
        """The pages that reached the disk as they are now."""
        meta = [number for number in changed if number < META_PAGES]
        if mode == "none":
            return []
        if mode == "meta alone":
            return meta
        if mode == "all but meta":
            return changed[len(meta) :]
        share = {"all": 1.0, "few": 0.1, "most": 0.9}.get(mode, 0.5)
        return [number for number in changed if rng.random() < share or share == 1.0]


def torn(rng: random.Random, versions: list[bytes]) -> bytes:
    """Each sector of a page as it was at some moment."""
    sectors = (rng.choice(versions)[at : at + SECTOR] for at in range(0, PAGE, SECTOR))
    return b"".join(sectors)
