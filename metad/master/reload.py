"""A reload: from a new configuration to workers that use it, or back to the old ones.

metad.master.reload_plan has the rules and decides what may change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metad import __version__
from metad.config import parse as config_parse
from metad.config.inside import inside
from metad.control import Connection
from metad.errors import MetadError
from metad.listeners import close_all, rebind
from metad.master import reload_plan
from metad.master.hub import Hub
from metad.master.options import Snapshot
from metad.master.worker_pool import Generation, WorkerPool

_SEE_LOG = "the hub goes on as before; its log says more"


class Reloading:
    """`changed` is called when a reload has completed or failed."""

    def __init__(
        self,
        hub: Hub,
        pool: WorkerPool,
        changed: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        self._hub = hub
        self._pool = pool
        self._changed = changed
        self._report = report
        self.change: reload_plan.Change | None = None

    def request(self, connection: Connection, request: dict[str, Any], serving: bool) -> bool:
        """`metad reload`; whether the hub must drain, so that the caller's release takes over.

        Raises MetadError; then nothing has changed.
        """
        snapshot = Snapshot.from_json(request)
        version = request.get("version", __version__)
        if version == __version__ and request.get("execute") is not True:
            self.begin(snapshot, connection, serving)
            return False
        self._check_idle(serving)
        self._hub.takeover.begin(snapshot, chroot=self._hub.given.chroot is not None)
        self._report(f"metad {version} takes over")
        self._hub.notifier.reloading()
        connection.reply({"takeover": True, "version": __version__})
        return True

    def begin(self, snapshot: Snapshot, connection: Connection | None, serving: bool) -> None:
        """Fork the successors.  `connection` gets its reply when they are ready or have failed.

        Raises MetadError; then nothing has changed.
        """
        hub = self._hub
        self._check_idle(serving)
        self._reopen_log()
        new = snapshot.parse(hub.given.data)
        plan = reload_plan.plan(hub.given, new, hub.bound, reload_plan.may_bind)
        bound, fresh, rest = rebind(hub.bound, plan.config)
        try:
            number = self._pool.generation.number + 1
            generation = Generation(number, inside(plan.config), bound)
            self._pool.spawn_generation(generation)
        except BaseException:
            close_all(fresh)
            raise
        hub.notifier.reloading()
        self.change = reload_plan.Change(
            plan, generation, snapshot, fresh, rest, connection, reload_plan.deadline()
        )
        self._report("reloading")

    def _check_idle(self, serving: bool) -> None:
        """Raises NotNowError unless a reload can begin now."""
        if not serving or self.change is not None:
            raise reload_plan.NotNowError("the hub is starting, stopping or reloading")

    def by_signal(self, serving: bool) -> None:
        """SIGHUP: no client passes a configuration, so this process reads the file as its user."""
        given = self._hub.given
        self._reopen_log()  # also where the configuration cannot be read
        try:
            source, content = config_parse.read(given.source)
            self.begin(Snapshot(content, str(source) if source else None), None, serving)
        except MetadError as error:
            if given.chroot:
                error.remedy = "use metad reload"
            self._report(f"warning: not reloaded: {error.line}")
            if serving and self.change is None:  # systemd waits for the end of the reload
                self._hub.notifier.reloading()
                self._changed()

    def _reopen_log(self) -> None:
        """After a rotation by rename the new workers log to the new file."""
        try:
            self._hub.options.log_file.reopen()
        except MetadError as error:
            self._report(f"warning: the log was not reopened: {error.line}")

    def advance(self, now: float) -> None:
        """Complete a reload that is ready, abandon an overdue one.  `now`: monotonic seconds."""
        if self.change is not None and self._pool.successors_ready():
            self._complete(self.change)
        elif self.change is not None and now > self.change.deadline:
            self.abandon(MetadError("the new workers were not ready in time", remedy=_SEE_LOG))

    def failed(self, why: str) -> None:
        """A successor died."""
        self.abandon(MetadError(f"a new worker cannot start: {why}", remedy=_SEE_LOG))

    def abandon(self, error: MetadError) -> None:
        """Return to the old workers if a reload is under way, and tell its client why."""
        change, self.change = self.change, None
        if change is not None:
            self._pool.kill_successors()
            self._report(f"warning: not reloaded: {error.line}")
            change.fail(error)
            self._changed()

    def _complete(self, change: reload_plan.Change) -> None:
        hub, plan = self._hub, change.plan
        self.change = None
        self._pool.promote_successors(change.generation)
        close_all(change.rest)
        hub.bound = change.generation.bound
        hub.given, hub.config = plan.config, change.generation.config
        hub.log.as_json = plan.config.log_format == "json"
        if hub.options.snapshot is not None:
            hub.options.snapshot.write(change.snapshot)
        for key, why in plan.kept.items():
            self._report(f"warning: {key} needs a restart: {why}")
        self._report(f"reloaded: {', '.join(plan.changed) or 'nothing changed'}")
        self._changed()
        change.answer()
