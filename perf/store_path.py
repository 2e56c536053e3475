"""Instructions of the store's own path: a message committed and entered, a message collected.

    python -m perf.store_path            under valgrind's callgrind, as perf.guard: a minute or two

No socket, no session, no thread: a store of the tests' kit, groups of 18 messages of 500 bytes,
then a log of which every other message is deleted, collected.  The same file runs in a worktree of
another commit, with the Python of this one, so that the two can be compared.  Neither the kit's
ledger nor its watched files are in it: they cost as much as the store, and differ between commits.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from metad.store.index import index
from metad.store.log import record
from metad.store.log.encode import Append
from metad.system.osio import Osio
from tests.support.collector_kit import collect, make_collector, sealed
from tests.support.store_kit import KitWriter, StoreKit

GROUP = 18
FEW, MANY = 20, 80  # groups
DELETED = 40  # ids in one deletion record
MIB = 1 << 20
BODY = b"x" * 500
SUBJECTS = ("committed", "prepared", "collected")


class Door(Osio):
    """The real one, as far as the kit asks for more: its own costs other sums in each commit."""

    recording = False


def submit(writer: KitWriter) -> bytes:
    """One message, as a worker's layer submits it; its id."""
    recipients = (record.Recipient(1, "u1@x", len(BODY)),)
    envelope = record.Envelope(0, "192.0.2.1", "h", "s@x", recipients)
    packed, message_id = record.pack_envelope(envelope), writer.ids.next()
    writer.committer.submit(Append(message_id, packed, (BODY,), len(BODY), answered, recipients))
    return message_id


def answered(error: Exception | None) -> None:
    assert error is None


def work(subject: str, rounds: int, where: Path) -> None:
    index.MAP_SIZE = 1 << 30  # valgrind has no room for a map of 1 TiB
    kit = StoreKit(where / "data", Door(), align=4096, size=16 * MIB)  # type: ignore[arg-type]
    kit.start()
    ids: list[bytes] = []
    for _ in range(rounds):
        ids += [submit(kit.writers[0]) for _ in range(GROUP)]
        kit.run()
        kit.listing(2)  # all is entered
    if subject == "committed":
        return
    gone = ids[::2]
    for at in range(0, len(gone), DELETED):
        kit.delete(1, gone[at : at + DELETED])
    writer = kit.writers[0]
    writer.source.stop(writer.committer.stop())
    if subject == "collected":
        collect(make_collector(kit), sealed(kit))


def count(subject: str, rounds: int) -> int:
    """Instructions of a process that does so many groups."""
    with tempfile.TemporaryDirectory(prefix="metad-perf-") as scratch:
        command = [
            shutil.which("valgrind") or "valgrind", "--tool=callgrind",
            f"--callgrind-out-file={scratch}/out", "--",
            sys.executable, "-m", "perf.store_path", subject, str(rounds), scratch,
        ]  # fmt: skip
        environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        found = re.search(r"Collected : (\d+)", done.stderr)
        if done.returncode or not found:
            raise SystemExit(f"{subject}: exit {done.returncode}: {done.stderr[-800:]}")
        return int(found.group(1))


def main() -> int:
    if len(sys.argv) > 1:
        work(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
        sys.stdout.flush()
        os._exit(0)  # the end is no part of it
    counts = {(name, n): count(name, n) for name in SUBJECTS for n in (FEW, MANY)}

    def each(name: str) -> float:
        return (counts[name, MANY] - counts[name, FEW]) / ((MANY - FEW) * GROUP)

    print(f"a message committed and entered: {each('committed'):,.0f}")
    copied = 2 * (each("collected") - each("prepared"))  # every other one
    print(f"a message copied by the collector, and another one dropped: {copied:,.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
