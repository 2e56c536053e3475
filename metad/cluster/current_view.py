"""The view that all processes of a node use, switched at once by one cell of shared memory.

Rules of this file:

* A view is durable before any process uses it (`view_file`): then the cell switches all of them.
* The same object is returned until another view is in force, so callers compare by identity.
"""

from __future__ import annotations

from metad.cluster.view import View
from metad.cluster.view_file import ViewFile
from metad.errors import ClusterError


class CurrentView:
    """The view as one process has it."""

    def __init__(self, file: ViewFile, cell: memoryview) -> None:
        """`cell`: the epoch in force.  Raises ClusterError, OSError."""
        self._file = file
        self._cell = cell
        self._view = self._load()

    def _load(self) -> View:
        view = self._file.load(self._switch)
        if view is None:
            raise ClusterError(
                "this node is in no cluster", remedy="metad cluster init or join puts it into one"
            )
        return view

    def get(self) -> View:
        """The view in force.  Raises ClusterError, OSError if it is new and cannot be read."""
        epoch = self._cell[0]
        if epoch > self._view.epoch:
            # Durable before the cell was changed: nothing is written here, so no disk is in the
            # way.  One that is newer still is not in force, and may be about to be.
            view = self._file.read()
            self._view = view if view is not None and view.epoch == epoch else self._load()
        return self._view

    def look(self) -> None:
        """Use a view that a command has stored, if there is one.  Raises ClusterError, OSError."""
        if self._file.has_changed() and self._file.epoch() > self.get().epoch:
            self._view = self._load()

    def adopt(self, view: View) -> None:
        """Make a view durable and current.  An older one than ours changes nothing.

        Raises ClusterError if there is another one of this epoch or cluster, and OSError.
        """
        if view.epoch < self.get().epoch:
            return
        self._file.keep(view, self._switch)
        if view.epoch > self._view.epoch:
            self._view = view

    def _switch(self, view: View) -> None:
        """Called while this process alone may store a view: the cell never goes back."""
        self._cell[0] = view.epoch
