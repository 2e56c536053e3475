"""A Debian for a test: the tree of tools/debian-tree below an overlay, entered by chroot.

Rules of this file:

* The tree itself is never changed: a test's changes go to the overlay's upper directory.
* Every command has its own mount and process namespaces, so nothing stays mounted and nothing runs
  on, however the test ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TREE = Path(os.environ.get("METAD_TEST_ROOT", ROOT / ".test" / "root")).with_name("debian")
SECONDS = 300.0

# Mounts the overlay and what a chroot needs; the last line is the command's.
_ENTER = """
set -eu
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/merged"
mount -t proc proc "$2/merged/proc"
mount -t tmpfs tmpfs "$2/merged/dev/shm" 2>/dev/null || :
mount --bind "$2/hand" "$2/merged/mnt"
merged=$2/merged
shift 2
"""


def need_tree() -> None:
    """Skip where there is no tree, or it cannot be used."""
    if os.geteuid() != 0:
        pytest.skip("not root: a Debian cannot be entered")
    if not TREE.is_dir():
        pytest.skip("no Debian here (sh tools/test --full makes one)")
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not here")


class Debian:
    """`hand` is a directory of ours that commands see as /mnt; `tree` what lies below."""

    def __init__(self, directory: Path, tree: Path = TREE) -> None:
        self.directory = directory
        self.tree = tree
        self.upper = directory / "upper"
        self.hand = directory / "hand"
        for name in ("upper", "work", "merged", "hand"):
            (directory / name).mkdir()

    def outside(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script that sees the merged tree as $merged."""
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc"]
        command += [
            "sh",
            "-c",
            _ENTER + script,
            "sh",
            str(self.tree),
            str(self.directory),
            *arguments,
        ]
        return subprocess.run(
            command,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def alone(self, script: str) -> str:
        """Run a shell script in it, as root, without this machine's network; what it printed."""
        return self._inside('exec unshare --net chroot "$merged" sh -ec "$1"', script, 0)

    def run(self, script: str, code: int = 0) -> str:
        """Run a shell script in it, as root; what it printed.  `code`: the exit code it has."""
        return self._inside('exec chroot "$merged" sh -ec "$1"', script, code)

    def _inside(self, enter: str, script: str, code: int) -> str:
        quiet = "export DEBIAN_FRONTEND=noninteractive HOME=/root\n"
        done = self.outside(enter, quiet + script)
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{script} ended with {done.returncode}:\n{said}"
        return said

    def changes(self) -> Iterator[str]:
        """What differs from the bare tree: without what apt and dpkg note for themselves."""
        for path in sorted(self.upper.rglob("*")):
            name = "/" + str(path.relative_to(self.upper))
            if not _is_noted(name) and not _is_as_before(path, self.tree / name[1:]):
                yield name


def _is_noted(name: str) -> bool:
    """Whether it is a package manager's own notes, or its caches."""
    notes = ("/var/lib/dpkg", "/var/lib/apt", "/var/cache", "/var/log/apt", "/var/log/dpkg.log")
    return name.startswith(notes) or name == "/var/lib/systemd/deb-systemd-helper-enabled"


def _is_as_before(path: Path, lower: Path) -> bool:
    if path.is_dir() and not path.is_symlink():
        return lower.is_dir() and _owner(path) == _owner(lower)
    if path.is_symlink() or not path.is_file() or lower.is_symlink() or not lower.is_file():
        return False
    return path.read_bytes() == lower.read_bytes() and _owner(path) == _owner(lower)


def _owner(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mode, found.st_uid, found.st_gid
