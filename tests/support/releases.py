"""Copies of metad that stand for the releases before and after this one.

    the package, copied -> another name, other protocols, a field more in its HELLO

Rules of this file:

* A copy differs from the tree by what `_changes` lists alone; each text must be there once.
* A program runs from a copy while PYTHONPATH names the copy's directory; it hands that on to all
  of the hub's processes, over a takeover too.
* `Installed` is what a machine has: a link to a copy, which an upgrade changes under a running hub.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import metad
from metad.cluster.hello import PROTOCOLS

LEAST, MOST = PROTOCOLS
_HELLO = "cluster/hello.py"
_LAST_FIELD = "    command: bool = False\n"


class Release(NamedTuple):
    """`place`: its directory."""

    name: str
    protocols: tuple[int, int]
    place: Path

    @property
    def spoken(self) -> str:
        """As a refusal names it."""
        least, most = self.protocols
        return f"release {self.name} speaks {least} to {most}"

    def make(self) -> None:
        source = Path(metad.__file__).parent
        shutil.copytree(source, self.place / "metad")
        for name, old, new in self._changes():
            path = self.place / "metad" / name
            text = path.read_text()
            assert text.count(old) == 1, f"{name} has {text.count(old)} times {old!r}"
            path.write_text(text.replace(old, new))
        facts = self.place / f"metad-{self.name}.dist-info" / "METADATA"
        facts.parent.mkdir()
        facts.write_text(f"Metadata-Version: 2.1\nName: metad\nVersion: {self.name}\n")

    def _changes(self) -> Iterator[tuple[str, str, str]]:
        """File, text, and what stands there instead."""
        yield "__init__.py", f'"{metad.__version__}"', f'"{self.name}"'
        yield _HELLO, f"PROTOCOLS = {PROTOCOLS}", f"PROTOCOLS = {self.protocols}"
        yield _HELLO, _LAST_FIELD, f'{_LAST_FIELD}    of_another_release: str = "{self.name}"\n'


class Releases(NamedTuple):
    """Neighbours share a protocol: `before` and the tree, the tree and `after`, `after` and
    `second`."""

    before: Release
    tree: Release
    after: Release
    second: Release


@contextmanager
def made_releases() -> Iterator[Releases]:
    # Not a directory of pytest's: the user that a hub of root's becomes must read it.
    home = Path(tempfile.mkdtemp(prefix="metad releases "))
    home.chmod(0o755)
    made = Releases(
        Release("0.0.9", (LEAST - 1, LEAST), home / "before"),
        Release(metad.__version__, PROTOCOLS, Path(metad.__file__).parents[1]),
        Release("98.0", (MOST, MOST + 1), home / "after"),
        Release("99.0", (MOST + 1, MOST + 2), home / "second"),
    )
    try:
        for one in (made.before, made.after, made.second):
            one.make()
        yield made
    finally:
        shutil.rmtree(home)


class Installed:
    """The release that a machine has, which `upgrade` replaces.  `environ`: for its programs."""

    def __init__(self, path: Path, release: Release) -> None:
        self._path = path
        self.upgrade(release)
        self.environ = {**os.environ, "PYTHONPATH": str(path)}

    def upgrade(self, release: Release) -> None:
        aside = self._path.with_name(f"{self._path.name}.new")
        aside.symlink_to(release.place)
        aside.replace(self._path)
