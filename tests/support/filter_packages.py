"""Packages with filters, installed by pip where a hub of a test finds them.

Rules of this file:

* No registry is asked: the build backend is the setuptools of this environment.
* pip builds in a copy, so that nothing is left beside the sources.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.hub import Hub


def pip_install(source: Path, target: Path) -> None:
    """Install the package in the directory `source` into the directory `target`."""
    with tempfile.TemporaryDirectory(prefix="metad-package-") as copy:
        shutil.copytree(source, copy, dirs_exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install",
             "--no-index", "--no-deps", "--no-build-isolation", "--no-compile",
             "--root-user-action=ignore", "--target", str(target), copy],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


class HubWithPackages(Hub):
    """A hub with more packages on its path: those of the directory `packages`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, packages: Path, settings: str) -> None:
        self._monkeypatch = monkeypatch
        self._packages = packages
        super().__init__(["alice"], settings, workers=1)

    def configure(self, settings: str = "", **store: object) -> None:
        packages = self.home / "packages"
        shutil.copytree(self._packages, packages)
        packages.chmod(0o755)  # for the hub's user
        self._monkeypatch.setenv("PYTHONPATH", str(packages))
        super().configure(settings, **store)
