"""Everything that a master is given, and how a reload changes it."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field

import posix_ipc

from metad.config.model import Config
from metad.control import ControlServer
from metad.listeners import Bound
from metad.loglines import LogLines
from metad.master.options import Options
from metad.master.takeover import Takeover
from metad.system.shared_memory import SharedArea
from metad.system.systemd import Notifier


@dataclass(slots=True)
class Hub:
    """`given`: the configuration as written; `config`: the same as seen from inside the chroot;
    `boot`: the machine's boot id; `monitor`: the socket of the monitor, if there is one;
    `started`: Unix time."""

    given: Config
    config: Config
    bound: list[Bound]
    area: SharedArea
    semaphore: posix_ipc.Semaphore
    control: ControlServer
    notifier: Notifier
    boot: str
    options: Options
    monitor: socket.socket | None = None
    started: float = field(default_factory=time.time)
    takeover: Takeover = field(default_factory=Takeover)
    log: LogLines = field(default_factory=LogLines)

    def stopping(self) -> None:
        """No newer release takes over: the hub stops."""
        self.takeover.cancel()
        self.notifier.stopping()

    @property
    def has_logs(self) -> bool:
        """Whether the layer has logs to recover and to collect."""
        return self.config.store.layer == "log"
