"""The same input whole, octet by octet, and cut by its own checksum."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

MOST = 4096  # octets of an input; more only takes longer


def cuts(octets: bytes) -> Iterator[list[bytes]]:
    """Ways to cut an input: whole, into octets, and by its own checksum."""
    yield [octets]
    yield [octets[at : at + 1] for at in range(len(octets))]
    size = zlib.crc32(octets) % 97 + 2
    yield [octets[at : at + size] for at in range(0, len(octets), size)]


def same_for_every_cut(octets: bytes, run: Callable[[list[bytes]], object]) -> None:
    outcomes = [run(pieces) for pieces in cuts(octets[:MOST])]
    for other in outcomes[1:]:
        if other != outcomes[0]:
            raise AssertionError(f"{other!r} and not {outcomes[0]!r}")
