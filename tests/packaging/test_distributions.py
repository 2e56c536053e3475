"""docs/install.md on other distributions: the package is built and installed there, and serves.

METAD_TEST_DISTRIBUTIONS="trixie noble" runs these; `sh tools/debian-tree CODENAME` makes the trees.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import TREE, Debian, need_tree
from tests.support.guest import Guest, exposure, serve
from tests.support.install_page import install
from tests.support.machine import prepare
from tests.support.namespace import Namespace, need_namespaces
from tests.support.packages import Built

MOST_EXPOSURE = 2.0
NAMES = os.environ.get("METAD_TEST_DISTRIBUTIONS", "").split()
pytestmark = pytest.mark.skipif(not NAMES, reason="METAD_TEST_DISTRIBUTIONS is not set")


@pytest.fixture(scope="module", params=NAMES or ["none"])
def guest(packages: Built, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """Booted, with the package built and installed as the page says."""
    need_tree()
    need_namespaces()
    tree = TREE.with_name(request.param)
    assert tree.is_dir(), f"sh tools/debian-tree {request.param} makes {tree}"
    with tempfile.TemporaryDirectory(prefix="metad distribution ") as directory:
        debian = Debian(Path(directory), tree)
        version = debian.run("python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'")
        wheels = wheels_for(version.strip(), packages, Path(directory) / "wheels")
        prepare(debian, with_agent=False)
        install(debian, wheels)
        machine = Namespace(debian)
        try:
            machine.boot()
            yield machine
        finally:
            machine.close()


def wheels_for(version: str, packages: Built, target: Path) -> Path:
    """What metad needs, for another Python."""
    (metad,) = packages.wheels.glob("metad-*.whl")
    abi = "cp" + version.replace(".", "")
    platforms = [f"--platform=manylinux{name}_x86_64" for name in ("2014", "_2_17", "_2_28")]
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download",
         "--only-binary=:all:", f"--python-version={version}", "--implementation=cp",
         f"--abi={abi}", "--abi=abi3", "--abi=none", *platforms, "--dest", str(target),
         f"{metad}[cluster]"],
        check=True,
    )  # fmt: skip
    return target


def test_the_pages_commands_make_a_hub(guest: Guest) -> None:
    serve(guest)


def test_systemd_rates_the_service_as_hardly_exposed(guest: Guest) -> None:
    assert exposure(guest) < MOST_EXPOSURE


def test_a_purge_leaves_the_mail_alone(guest: Guest) -> None:
    guest.run("apt-get -q -y purge metad")
    guest.run("test -d /var/lib/metad/logs; ! test -e /usr/bin/metad; ! test -e /etc/metad")
