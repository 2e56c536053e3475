"""What a poll costs by the number of messages in the mailbox: it should not depend on it.

A mailbox of each size is put into one index.  Polls (open the mailbox, totals, close) of all of
them are timed in turns; the least of many rounds counts.  The index is a real one on a RAM disk;
sessions and sockets are left out, because they cost the same for every mailbox.

    python -m perf.polls [--sizes 10 1000 1000000] [--rounds 50]

Prints microseconds per poll and the ratio to the first size; with `--list` what a listing takes, in
steps, and the longest step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from metad.layers.listing import Listing
from metad.store.index.index import Index

RAM_DISK = "/dev/shm"
POLLS = 200
PIECE = 50_000


def fill(index: Index, mailbox: int, count: int) -> None:
    """Entries as mail of one second each makes them."""
    for start in range(0, count, PIECE):
        rows = [
            (
                mailbox.to_bytes(4, "big")
                + (1_700_000_000_000_000 + number * 1_000_000).to_bytes(8, "big")
                + bytes(8),
                (5000).to_bytes(4, "big"),
            )
            for number in range(start, min(start + PIECE, count))
        ]
        with index._env.begin(write=True) as txn:
            index._levels.add(txn, rows)


def polls(index: Index, mailbox: int) -> float:
    """Seconds of CPU of one poll."""
    began = time.process_time()
    for _ in range(POLLS):
        listing = Listing(index, mailbox)
        if not (listing.messages and listing.octets):
            raise ValueError("an empty mailbox")
    return (time.process_time() - began) / POLLS


def longest_step(index: Index, mailbox: int) -> tuple[int, float, float]:
    """Steps of a listing, its seconds, and those of its longest step."""
    steps, longest, total = iter(Listing(index, mailbox).steps()), 0.0, 0.0
    count = 0
    while True:
        began = time.perf_counter()
        more = next(steps, steps)
        took = time.perf_counter() - began
        total, longest, count = total + took, max(longest, took), count + 1
        if more is steps:
            return count, total, longest


def main() -> None:
    parser = argparse.ArgumentParser(description="What a poll costs by the size of the mailbox.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=RAM_DISK) as directory:
        path = Path(directory) / "index"
        path.mkdir()
        index = Index(str(path))
        for mailbox, size in enumerate(given.sizes, 1):
            fill(index, mailbox, size)
        least = [
            min(times)
            for times in zip(
                *(
                    [polls(index, mailbox) for mailbox in range(1, len(given.sizes) + 1)]
                    for _ in range(given.rounds)
                ),
                strict=True,
            )
        ]
        for mailbox, (size, seconds) in enumerate(zip(given.sizes, least, strict=True), 1):
            line = (
                f"{size:>10,} messages: {seconds * 1e6:6.2f} us a poll, {seconds / least[0]:.2f} x"
            )
            if given.list:
                count, total, longest = longest_step(index, mailbox)
                line += (
                    f"; listing: {count} steps, {total * 1e3:.1f} ms, at most {longest * 1e3:.1f}"
                )
            print(line)
        index.close()


if __name__ == "__main__":
    main()
