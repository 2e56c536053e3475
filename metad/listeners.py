"""Listening sockets: bound once, one per worker slot and address, open as long as the hub runs.

With SO_REUSEPORT the kernel spreads connections evenly over the slots.  When a worker dies, its
slot's queue waits for the successor; closing one of two sockets would reset half of the queue.

The master binds them, or the nanny or systemd passes them as descriptors from 3 on.  A passed
socket is recognised by its address, or by its name if a listener's address is "fd:NAME".
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metad.config.model import Config, Listener
from metad.errors import ConfigError, OsError
from metad.system import sockets
from metad.system.sockets import BACKLOG
from metad.system.systemd import Passed

# The name of sockets that the hub itself bound and passes to the next release.
OWN = "metad-own"


@dataclass(frozen=True, slots=True)
class Bound:
    """One listener with its sockets: one for each slot, or fewer that the slots share.

    `ours`: bound by the master, so that a reload may close it.
    """

    listener: Listener
    sockets: tuple[socket.socket, ...]
    ours: bool = True

    @property
    def name(self) -> str:
        """The address to connect to, with the real port."""
        address = self.sockets[0].getsockname()
        if isinstance(address, str | bytes):
            return f"unix:{os.fsdecode(address)}"
        host, port = address[0], address[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def of_slot(self, slot: int, slots: int) -> list[socket.socket]:
        """The sockets that the worker of a slot serves.  Every socket has a worker."""
        if len(self.sockets) <= slots:
            return [self.sockets[slot % len(self.sockets)]]
        return list(self.sockets[slot::slots])


def bind_all(config: Config, passed: Sequence[Passed] = ()) -> list[Bound]:
    """A `Bound` for every listener; clients can connect only after `listen_all`.

    Raises OsError or ConfigError; then nothing stays bound.
    """
    left = list(passed)
    bound: list[Bound] = []
    try:
        for listener in config.listeners:
            bound.append(_claim(listener, left) or bind(listener, config.store.workers))  # noqa: PERF401
        # Sockets of the previous release that a changed configuration no longer has.
        close_passed([one for one in left if one.name == OWN])
        left = [one for one in left if one.name != OWN]
        if left:
            raise ConfigError(
                f"no [[listen]] table matches the {_describe(left[0])}",
                remedy='name it by address = "fd:NAME", or disable its socket unit',
            )
    except BaseException:
        close_all([one for one in bound if one.ours])
        raise
    return bound


def listen_all(bound: Sequence[Bound]) -> None:
    """Start accepting connections.  Raises OsError."""
    for one in bound:
        for sock in one.sockets:
            try:
                if sock.family != socket.AF_UNIX:
                    sockets.set_options(sock)
                sock.listen(BACKLOG)
                sock.setblocking(False)
            except OSError as error:
                raise _cannot(one.listener, error) from None


def close_all(bound: Sequence[Bound]) -> None:
    for one in bound:
        for sock in one.sockets:
            sock.close()


def close_passed(passed: Sequence[Passed]) -> None:
    for one in passed:
        one.sock.close()


def name_of(one: Bound) -> str:
    """The FileDescriptorName under which its sockets are passed to the next release."""
    if one.ours:
        return OWN
    address = one.listener.address
    return address.removeprefix("fd:") if address.startswith("fd:") else "passed"


def bind(listener: Listener, slots: int) -> Bound:
    """Bind one listener.  Raises OsError."""
    try:
        if listener.path is not None:
            return Bound(listener, (unix_socket(listener.path),))
        if listener.port is None:
            raise ConfigError(
                f"no socket was passed for {listener.address}", remedy="enable its socket unit"
            )
        return Bound(listener, tuple(sockets.bind_slots(listener.host, listener.port, slots)))
    except OSError as error:
        raise _cannot(listener, error) from None


def rebind(old: Sequence[Bound], config: Config) -> tuple[list[Bound], list[Bound], list[Bound]]:
    """The listeners of a new configuration: (all, the new ones, the old ones to close).

    Kept listeners keep their sockets; new ones are listening already.  Raises OsError; then nothing
    has changed.
    """
    rest = {_key(one.listener): one for one in old}
    bound: list[Bound] = []
    fresh: list[Bound] = []
    try:
        for listener in config.listeners:
            one = rest.pop(_key(listener), None)
            if one is None:
                one = bind(listener, config.store.workers)
                fresh.append(one)
            bound.append(replace(one, listener=listener))
        listen_all(fresh)
    except BaseException:
        close_all(fresh)
        raise
    return bound, fresh, list(rest.values())


def _key(listener: Listener) -> tuple[str, str]:
    """What distinguishes the listeners of a hub; on port 0 each protocol has its own port."""
    return listener.address, listener.protocol if listener.port == 0 else ""


def _claim(listener: Listener, left: list[Passed]) -> Bound | None:
    """Remove the sockets passed for this listener from `left`."""
    mine = [one for one in left if _is_for(one, listener)]
    if not mine:
        return None
    for one in mine:
        left.remove(one)
    ours = all(one.name == OWN for one in mine)
    return Bound(listener, tuple(one.sock for one in mine), ours)


def _is_for(passed: Passed, listener: Listener) -> bool:
    if listener.port is None and listener.path is None:
        return listener.address == f"fd:{passed.name}"
    address = passed.sock.getsockname()
    if listener.path is not None:
        return bool(address == listener.path)
    return isinstance(address, tuple) and address[:2] == (listener.host, listener.port)


def _describe(passed: Passed) -> str:
    address = passed.sock.getsockname()
    where = f"{address[0]} port {address[1]}" if isinstance(address, tuple) else str(address)
    return f"passed socket {passed.name} ({where})"


def _cannot(listener: Listener, error: OSError) -> OsError:
    return OsError.of(error, f"cannot listen on {listener.address}")


def unix_socket(path: str) -> socket.socket:
    """A bound Unix socket; one left by a dead server is replaced.  Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if Path(path).is_socket() and not _answers(path):
            os.unlink(path)
        sock.bind(path)
        # An MTA runs as another user; access is controlled by the socket's directory.
        os.chmod(path, 0o666)  # noqa: S103
    except BaseException:
        sock.close()
        raise
    return sock


def _answers(path: str) -> bool:
    """Whether a running server has this socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
