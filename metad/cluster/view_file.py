"""The view on the disk: durable before it is used, and never an older one.

A node that confirmed epoch 5, lost its power and served in epoch 4 would serve beside members that
rely on its confirmation.

Rules of this file:

* `keep` returns when the view is durable, whichever process wrote it.  After an error nothing is
  known: the view must not be used.
* Processes of a node take turns by a lock, so that none replaces a view by an older one.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from metad.cluster.reserve import Reserve
from metad.cluster.view import View
from metad.errors import ClusterError
from metad.limits import CLUSTER_VIEW
from metad.system.osio import Osio, locked, read_file

Switch = Callable[[View], None]


def _leave(view: View) -> None:
    """What uses the view finds it in the file."""


class ViewFile:
    """The file of a node's view.  Beside it lies the file that is locked."""

    def __init__(self, osio: Osio, path: str) -> None:
        self._osio = osio
        self._path = path
        self._reserve = Reserve(osio, os.path.dirname(path))
        self._stamp = (0, 0)
        self._durable = b""  # the digest of the view that this object made durable

    def load(self, switch: Switch = _leave) -> View | None:
        """The view, durable now; None if this node was never in a cluster.

        `switch` is called with it, while no other process can store another one.

        Raises ClusterError if the file is damaged, and OSError.
        """
        with locked(self._osio, self._path):
            view = self.read()
            if view is not None:  # it may have been renamed by a process that was killed then
                self._write(view)
                switch(view)
        return view

    def keep(self, view: View, switch: Switch = _leave) -> None:
        """Make `view` durable, then `switch` as `load` does.

        Raises ClusterError if the file has a newer view or another one of this epoch, and OSError.
        """
        with locked(self._osio, self._path):
            old = self.read()
            self._refuse_backwards(view, old)
            # A view that another process wrote may have its name only until the power fails.
            if old is None or not old.digest == view.digest == self._durable:
                self._write(view)
            switch(view)

    def has_changed(self) -> bool:
        """Whether the file is another one than at the call before."""
        found = self._osio.stat(self._path)
        stamp = (found.st_ino, found.st_mtime_ns)
        is_new, self._stamp = stamp != self._stamp, stamp
        return is_new

    def epoch(self) -> int:
        """Of the view in the file, 0 if there is none.  Raises ClusterError, OSError."""
        view = self.read()
        return view.epoch if view is not None else 0

    def _refuse_backwards(self, view: View, old: View | None) -> None:
        if old is None:
            return
        if view.cluster != old.cluster:
            raise ClusterError(f"{self._path}: this node is in the cluster {old.cluster}")
        if view.epoch < old.epoch:
            raise ClusterError(f"{self._path} has epoch {old.epoch}, not replaced by {view.epoch}")
        if view.epoch == old.epoch and view.digest != old.digest:
            raise ClusterError(f"{self._path} has another view of epoch {old.epoch}")

    def read(self) -> View | None:
        """The view in the file, which may not be durable.  Raises ClusterError, OSError."""
        try:
            data = read_file(self._osio, self._path, CLUSTER_VIEW + 1)
        except FileNotFoundError:
            return None
        try:
            return View.decode(data)
        except ClusterError as error:
            raise ClusterError(f"{self._path}: {error}") from None

    def _write(self, view: View) -> None:
        self._durable = b""
        self._reserve.replace(self._path, view.encode())
        self._durable = view.digest
