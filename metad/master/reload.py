"""The change of generation: from a new configuration to workers that have it, or back.

The rules are in metad.master.reload_plan, which says what may change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from metad.config import parse as config_parse
from metad.control import Connection
from metad.errors import MetadError
from metad.listeners import close_all, rebind
from metad.master import reload_plan
from metad.master.hub import Hub
from metad.master.options import Snapshot
from metad.master.worker_pool import Generation, WorkerPool


class Reloading:
    """`turned` is called when a change has been made, or given up: the hub is as it will be."""

    def __init__(
        self,
        hub: Hub,
        crew: WorkerPool,
        turned: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        self._hub = hub
        self._crew = crew
        self._turned = turned
        self._report = report
        self.turn: reload_plan.Turn | None = None

    def begin(self, snapshot: Snapshot, connection: Connection | None, serving: bool) -> None:
        """Fork the successors; `connection` gets its answer when they are ready, or will not be.

        Raises MetadError; then nothing has changed.
        """
        hub = self._hub
        if not serving or self.turn is not None:
            raise reload_plan.NotNowError("the hub is starting, stopping or reloading; try again")
        new = snapshot.parse(hub.given.data)
        plan = reload_plan.plan(hub.given, new, hub.bound, reload_plan.may_bind)
        bound, fresh, rest = rebind(hub.bound, plan.config)
        try:
            inner = replace(plan.config, data=hub.config.data)
            generation = Generation(self._crew.generation.number + 1, inner, bound)
            self._crew.spawn_generation(generation)
        except BaseException:
            close_all(fresh)
            raise
        hub.notifier.reloading()
        self.turn = reload_plan.Turn(
            plan, generation, snapshot, fresh, rest, connection, reload_plan.deadline()
        )
        self._report("reloading")

    def by_signal(self, serving: bool) -> None:
        """SIGHUP: nobody hands over a configuration, so it is read as this user."""
        given = self._hub.given
        try:
            source, content = config_parse.read(given.source)
            self.begin(Snapshot(content, str(source) if source else None), None, serving)
        except MetadError as error:
            hint = "; use metad reload" if given.chroot else ""
            self._report(f"warning: not reloaded: {error}{hint}")
            if serving and self.turn is None:  # systemd waits for the end of what it asked for
                self._hub.notifier.reloading()
                self._turned()

    def advance(self, now: float) -> None:
        """Complete what is ready, give up what takes too long.  `now`: monotonic seconds."""
        if self.turn is not None and self._crew.successors_ready():
            self._complete(self.turn)
        elif self.turn is not None and now > self.turn.deadline:
            self.abandon(MetadError("the new workers did not get ready in time"))

    def failed(self, why: str) -> None:
        """A successor died."""
        self.abandon(MetadError(f"a new worker cannot start: {why}"))

    def abandon(self, error: MetadError) -> None:
        """All as before, if a change was under way; who asked for it hears why."""
        turn, self.turn = self.turn, None
        if turn is not None:
            self._crew.kill_successors()
            self._report(f"warning: not reloaded: {error}")
            turn.give_up(error)
            self._turned()

    def _complete(self, turn: reload_plan.Turn) -> None:
        hub, plan = self._hub, turn.plan
        self.turn = None
        self._crew.succeed(turn.generation)
        close_all(turn.rest)
        hub.bound = turn.generation.bound
        hub.given, hub.config = plan.config, turn.generation.config
        if hub.options.snapshot is not None:
            hub.options.snapshot.write(turn.snapshot)
        for key, why in plan.kept.items():
            self._report(f"warning: {key} needs a restart: {why}")
        self._report(f"reloaded: {', '.join(plan.changed) or 'nothing changed'}")
        self._turned()
        turn.answer()
