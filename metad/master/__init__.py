"""The master of a hub: from a configuration to the last child's end.

    start     what is done once, in an order that leaves nothing half started
    loop      the life: phases, signals, deaths, the control socket
    children  forking and reaping          crew       the workers' slots and generations
    watch     who hangs                    aftercare  the logs of the dead
    reload    a new configuration          status     what is shown

Rule of this package: it opens no mail, no index and no users; children do.
"""

from metad.master.datadir import take_lock
from metad.master.options import Options, Snapshot, SnapshotFile
from metad.master.start import start

__all__ = ["Options", "Snapshot", "SnapshotFile", "start", "take_lock"]
