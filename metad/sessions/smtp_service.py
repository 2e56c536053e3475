"""A listener for SMTP or LMTP, and the replies with which it ends sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from metad.errors import Reply
from metad.protocol.smtp.machine import SmtpSettings
from metad.sessions.client import Client
from metad.sessions.connection import Connection, Service
from metad.sessions.networks import Networks

TIMEOUT = Reply(421, "4.4.2", "Error: timeout exceeded")
TOO_SLOW = Reply(421, "4.4.2", "Error: the message arrives too slowly")
TOO_MANY = Reply(421, "4.7.0", "Error: too many connections")
KICKED = Reply(421, "4.3.2", "Error: ended by the administrator")
NOT_LISTED = Reply(554, "5.7.1", "Error: this client may not connect here")


@dataclass(frozen=True, slots=True)
class SmtpService(Service):
    """A listener for SMTP or LMTP.  `repairing`: the settings for `repair_networks`.

    `session`: the class of its sessions; a different one with filters.
    """

    settings: SmtpSettings
    repairing: SmtpSettings
    repair_networks: Networks
    session: Callable[[SmtpService, Client | None], Connection]

    def settings_for(self, client: str) -> SmtpSettings:
        repair = self.repair_networks and client in self.repair_networks
        return self.repairing if repair else self.settings

    def make(self, client: Client | None = None) -> Connection:
        return self.session(self, client)
