"""Certificates that expire: reported when the hub is ready and once a day."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from metad.master.hub import Hub
from metad.tls import store as tls_store

DAY_SECONDS = 86_400.0


class CertificateWatch:
    """`report(text)` writes to the log."""

    def __init__(self, hub: Hub, report: Callable[[str], None]) -> None:
        self._hub = hub
        self._report = report
        self._next = 0.0

    def look(self, now: float) -> None:
        """Report once a day.  `now`: monotonic seconds."""
        if now < self._next:
            return
        self._next = now + DAY_SECONDS
        if tls_store.wanted(self._hub.config):
            for line in tls_store.expiry_warnings(self._hub.config, datetime.now(UTC)):
                self._report(f"warning: {line}")
