"""The certificates of DATA/tls as one worker uses them, reloaded when they change."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from metad.config.model import Config
from metad.errors import ConfigError
from metad.tls import store as tls_store
from metad.tls.store import TlsContexts

Report = Callable[[str, str], None]


class Certificates:
    """A cache of DATA/tls.  Call `refresh` now and then to pick up new certificates."""

    def __init__(self, config: Config, report: Report) -> None:
        """Raises ConfigError if there is no certificate, or a bad one."""
        self._config = config
        self._report = report
        self._stamp = tls_store.stamp(config.data)
        self._contexts: TlsContexts = tls_store.required(config)

    @property
    def context(self) -> ssl.SSLContext:
        return self._contexts.default

    def refresh(self) -> None:
        """Load what was installed since.  If it is unusable, report that and keep the old."""
        stamp = tls_store.stamp(self._config.data)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._contexts = tls_store.required(self._config)
        except ConfigError as error:
            self._report("tls", f"warning: certificates not reloaded, the old ones stay: {error}")
        else:
            names = ", ".join(one.name for one in self._contexts.certificates)
            self._report("tls", f"certificates loaded: {names}")
            for bad in self._contexts.bad:
                self._report("tls", f"warning: not loaded: {bad}")
