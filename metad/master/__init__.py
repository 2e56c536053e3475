"""The master of a hub: from a configuration to the last child's end.

    start        what is done once, in an order that leaves nothing half started
    master       the main loop: phases, signals, dead children, the control socket
    children     fork and reap                 spawn          how each kind of child is made
    worker_pool  slots and generations         recovery_jobs  the logs of dead processes
    watchdog     hung children                 collector_control
    reload       a new configuration           status         what `metad status` shows

Rule of this package: it opens no mail, no index and no users database; children do.
"""

from metad.master.datadir import take_lock
from metad.master.options import Options, Snapshot, SnapshotFile
from metad.master.start import start

__all__ = ["Options", "Snapshot", "SnapshotFile", "start", "take_lock"]
