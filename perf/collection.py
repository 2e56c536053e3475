"""The cost of proofs in a collection: the same victims with and without reading deletion records.

Rounds in turns: A, the collector as it is; B, without looking for proofs (as before).  In each a
new store of `--logs` logs of 4 MiB is filled by 20 mailboxes, half of the mail is deleted in groups
of 1, 10 and 100 ids, and all victims are collected.  The result is the ratio A / B of CPU time.

    python -m perf.collection
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metad.store.gc.evidence import Evidence
from perf import harness
from tests.support.collector_kit import collect, make_collector, sealed
from tests.support.store_kit import StoreKit

RESULTS = Path(__file__).parent / "results"
MAILBOXES = 20
BODY = 2000


@contextmanager
def unproven() -> Iterator[None]:
    """Looks for no proof."""
    real = Evidence.unproven
    Evidence.unproven = lambda self, message: []  # type: ignore[method-assign]
    try:
        yield
    finally:
        Evidence.unproven = real  # type: ignore[method-assign]


def fill(kit: StoreKit, logs: int, group: int) -> list[int]:
    """Logs of which half is garbage, with the deletions in later logs if there are any."""
    count = 0
    while len(sealed(kit)) < logs:
        for _ in range(50):
            kit.submit([count % MAILBOXES], b"x" * BODY)
            count += 1
        kit.run()
    victims = sealed(kit)[:logs]
    for mailbox in range(MAILBOXES):
        dead = [each for each, _ in kit.listing(mailbox)][::2]
        for at in range(0, len(dead), group):
            kit.delete(mailbox, dead[at : at + group])
    return victims


def one(logs: int, group: int) -> float:
    """CPU seconds of the collections."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as place,
        StoreKit(Path(place) / "data", size=4 << 20, align=4096) as kit,
    ):
        kit.start()
        victims = fill(kit, logs, group)
        collector = make_collector(kit)
        began = time.process_time()
        collect(collector, victims)
        return time.process_time() - began


def ratio(rounds: int, logs: int, group: int) -> float:
    proven: list[float] = []
    believed: list[float] = []
    for _ in range(rounds):
        proven.append(one(logs, group))
        with unproven():
            believed.append(one(logs, group))
    return statistics.median(proven) / statistics.median(believed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--logs", type=int, default=6)
    given = parser.parse_args()
    ratios = {group: round(ratio(given.rounds, given.logs, group), 2) for group in (1, 10, 100)}
    found = {
        "options": vars(given), "ratio_by_ids_per_deletion": ratios,
        "machine": harness.machine(Path("/dev/shm")),
    }  # fmt: skip
    path = RESULTS / f"collection-{time.strftime('%Y-%m-%d')}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    for group, found_ratio in ratios.items():
        print(f"{group} ids per deletion record: with proofs / without = {found_ratio}")


if __name__ == "__main__":
    main()
