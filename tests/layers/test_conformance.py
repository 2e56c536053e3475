"""Our own layers against the suite that every layer must pass."""

from pathlib import Path

from metad.layers.logs import LogLayer
from metad.layers.null import NullLayer
from metad.layers.sort import SortLayer
from metad.layers.testing import Conformance
from metad.store import hub_time
from metad.store.identity import open_store
from metad.store.index import state as index_state
from metad.store.log_table import LogTable
from metad.store.recovery.hub import Recovery
from metad.system.osio import Osio


class TestLog(Conformance):
    layer = LogLayer

    def prepare(self, context):
        """Does the work of the recovery child."""
        osio = Osio()
        table = LogTable(context.area, context.semaphore, context.area.process(2))
        recovery = Recovery(osio, open_store(osio, context.data), context.report)
        hub_time.begin(osio, context.area, recovery.run(table, index_state.boot_id()))


class TestNull(Conformance):
    layer = NullLayer
    forgets = True


class TestSort(Conformance):
    layer = SortLayer
    serves = False

    def stored(self, bench, mailbox):
        new = bench.data / "maildirs" / "example.org" / f"user{mailbox}" / "new"
        files = sorted(new.glob("*"), key=_order)
        for path in files:
            assert_sizes(path)
        return [path.read_bytes().replace(b"\n", b"\r\n") for path in files]


def _order(path: Path):
    """By the number within the process; after a restart, time has passed."""
    seconds, rest = path.name.split(".")[:2]
    micro, number = rest[1:].split("P")[0], rest.split("Q")[1]
    return int(seconds), int(number), int(micro)


def assert_sizes(path):
    octets = path.read_bytes()
    fields = dict(one.split("=") for one in path.name.split(",")[1:])
    assert int(fields["S"]) == len(octets) == path.stat().st_size
    assert int(fields["W"]) == len(octets.replace(b"\n", b"\r\n"))
    assert b"\r" not in octets
