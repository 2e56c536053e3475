"""From a configuration to a running hub, in an order that leaves nothing half started.

    [root: data directory, become the user] -> passed sockets -> DATA/lock -> bind
    -> notify socket, boot id -> shared memory -> chroot, no capabilities -> control socket
    -> listen -> Master

Rules of this file:

* A failure raises one MetadError with its exit code, and everything made before is undone.
* Everything outside the chroot is opened before it.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import posix_ipc

from metad import layers
from metad.config.advice import advice
from metad.config.inside import inside
from metad.config.model import Config
from metad.control import ControlServer
from metad.errors import ConfigError, NotPermittedError, OsError
from metad.listeners import Bound, bind_all, close_all, listen_all, unix_socket
from metad.master.datadir import note_machine, prepare_data, take_lock
from metad.master.hub import Hub
from metad.master.master import Master
from metad.master.options import Options
from metad.master.preload import preload
from metad.master.takeover import Takeover
from metad.store import log_table
from metad.store.ballast import Ballast
from metad.store.index import state as index_state
from metad.store.lost_identity import open_at_start
from metad.system import privileges, shared_memory, sockets
from metad.system.osio import Osio, read_file, write_file
from metad.system.shared_memory import SharedArea
from metad.system.systemd import Notifier, passed_sockets
from metad.tls import store as tls_store
from metad.workers.child import SIGNALS


def start(config: Config, options: Options | None = None) -> int:
    """Run a hub until it is stopped; the exit code.  Raises MetadError if it never gets ready."""
    options = options or Options()
    preload(config)
    layers.check(config)
    with ExitStack() as stack:
        # The master's loop handles a signal that arrives now, so that all of this is undone.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        takeover = Takeover()
        stack.callback(takeover.execute)  # when everything else has been undone
        stack.callback(options.pid_file.remove)
        if os.geteuid() == 0:
            _leave_root(config)
        tls_store.check(config)
        privileges.no_new_privileges()
        if config.chroot is not None and not privileges.has_capability(privileges.CAP_SYS_CHROOT):
            raise NotPermittedError("chroot: needs a start by root, or CAP_SYS_CHROOT")
        bound = _claim(config, stack)
        monitor = _monitor_socket(config, stack)
        notifier = Notifier(nanny=options.nanny)
        stack.callback(notifier.close)
        boot = index_state.instance(str(config.data))
        area, semaphore, remade = _shared_memory(config, stack)
        moved = note_machine(config.data)
        inner = _enter(config)
        control = ControlServer(inner.data / "run" / "control")
        stack.callback(control.close)
        listen_all(bound)
        hub = Hub(config, inner, bound, area, semaphore, control, notifier, boot, options, monitor)
        hub.log.as_json = config.log_format == "json"
        hub.takeover = takeover
        _warn(hub, [*advice(config), *remade, *moved])
        # Freeze what exists now: a child's cyclic garbage collection would touch it and so copy
        # its pages.  That was most of the time that a worker took to start.
        gc.collect()
        gc.freeze()
        code = Master(hub).run()
        takeover.keep(hub.bound, options, str(hub.given.data))
        return code


def _warn(hub: Hub, lines: Sequence[str]) -> None:
    for line in lines:
        hub.log.line("master", f"warning: {line}")


def _leave_root(config: Config) -> None:
    if config.user is None:
        raise ConfigError(
            "user: not set; the hub does not run as root",
            remedy="set user to the system user that shall own the data",
        )
    if config.chroot is not None:
        raise ConfigError(
            "chroot: not with passed sockets and root", remedy="start the hub as its user"
        )
    user = privileges.find_user(config.user)
    privileges.give_data_to(config.data, user)
    privileges.become(user)


def _claim(config: Config, stack: ExitStack) -> list[Bound]:
    """Claim the data directory and the addresses."""
    try:
        passed = passed_sockets()
    except ValueError as error:
        raise ConfigError(
            f"socket activation: {error}", remedy="see metad-smtp.socket and systemd.socket(5)"
        ) from None
    prepare_data(config.data)
    stack.callback(os.close, take_lock(config.data))
    bound = bind_all(config, passed)
    stack.callback(close_all, bound)
    return bound


def _monitor_socket(config: Config, stack: ExitStack) -> socket.socket | None:
    """The listening socket of the monitor, if the configuration has one.  Raises OsError."""
    address = config.metrics.address
    if address is None:
        return None
    try:
        if address.path is not None:
            sock = unix_socket(address.path)
        else:
            (sock,) = sockets.bind_slots(address.host, address.port or 0, 1)
        sock.listen(128)
    except OSError as error:
        raise OsError.of(error, f"cannot listen on {address.text}") from None
    stack.callback(sock.close)
    return sock


def _shared_memory(
    config: Config, stack: ExitStack
) -> tuple[SharedArea, posix_ipc.Semaphore, list[str]]:
    """The segment and its semaphore, and a warning if store.json was lost.  Holding DATA/lock, we
    remove those of a dead hub."""
    osio = Osio()
    store, remade = open_at_start(osio, config.data)
    Ballast(osio, store, config.store.log_size).release_at_start()
    noted = config.data / "run" / "segment"
    with suppress(FileNotFoundError):
        old = read_file(osio, str(noted)).decode("ascii", "replace")
        if old.startswith("/metad-"):
            shared_memory.unlink(old)
    name = log_table.segment_name(store.store_id)
    stack.callback(shared_memory.unlink, name)
    if config.chroot is None:
        stack.callback(_forget, noted)
    try:
        write_file(osio, str(noted), name.encode())
    except OSError as error:  # of the data directory
        raise OsError.of(error, noted) from None
    try:
        shared_memory.unlink(name)
        area = SharedArea.create(name)
        area.store_remade = int(time.time()) if remade else 0
        semaphore = posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=1)
    except (OSError, posix_ipc.Error) as error:
        raise OsError(f"shared memory: {error}", remedy="df /dev/shm shows its space") from None
    if config.chroot is not None:
        shared_memory.unlink(name)  # no name is reachable from the chroot; mappings stay valid
    return area, semaphore, [remade] if remade else []


def _forget(noted: Path) -> None:
    with suppress(OSError):
        noted.unlink()


def _enter(config: Config) -> Config:
    """Enter the chroot and drop all capabilities; the configuration as seen from inside."""
    inner = config
    if config.chroot is not None:
        time.tzset()
        try:
            os.chroot(config.chroot)
            os.chdir("/")
        except OSError as error:
            raise OsError.of(error, f"chroot {config.chroot}") from None
        inner = inside(config)
    try:
        privileges.drop_capabilities()
    except OSError as error:
        raise OsError.of(error, "capabilities") from None
    return inner
