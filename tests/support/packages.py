"""The Debian packages, wheels and source distribution of this checkout, built once for all tests.

Rules of this file:

* They are built by tools/deb and tools/wheel, in .test/built, under a lock; what they were built
  from is noted there, and the same is not built again.
* The packages are two: this release and a later one, which differs in its version alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from metad import __version__
from tests.support.debian import ROOT
from tests.support.sizes import SCALE

BUILT = ROOT / ".test" / "built"
SOURCES = ("docs", "examples", "man", "metad", "packaging", "tools", "CHANGELOG.md", "LICENSE",
           "MANIFEST.in", "README.md", "pyproject.toml")  # fmt: skip
LATER = "99.1"
SECONDS = 300


class Built(NamedTuple):
    """`wheels` is a directory with all that metad needs, its own wheel and sdist in `dist`."""

    wheels: Path
    dist: Path
    deb: Path
    later: Path


def built() -> Built:
    """Build them, unless that has been done.  Skips outside of --full and without an index."""
    if not SCALE:
        pytest.skip("packages are built by sh tools/test --full only")
    BUILT.parent.mkdir(exist_ok=True)
    with (BUILT.parent / "built.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = _checksum()
        if not BUILT.is_dir() or (BUILT / "stamp").read_text() != stamp:
            _build(stamp)
    return _found()


def checkout(target: Path) -> None:
    """The files of this checkout, as git knows them."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z"], check=True, capture_output=True
    )
    for name in (os.fsdecode(file) for file in done.stdout.split(b"\0") if file):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def wheels_to_build(packages: Built, target: Path, *more: str) -> None:
    """What a pip without an index needs to build metad and to install it, and `more`."""
    shutil.copytree(packages.wheels, target)
    for wheel in target.glob("metad-*.whl"):
        wheel.unlink()
    _pip("download", "--only-binary=:all:", "--dest", str(target), "setuptools>=77", "wheel", *more)


def _found() -> Built:
    debs = sorted(BUILT.glob("deb*/*.deb"))
    return Built(BUILT / "wheels", BUILT / "dist", debs[0], debs[1])


def _build(stamp: str) -> None:
    shutil.rmtree(BUILT, ignore_errors=True)
    new = BUILT.with_name("built.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    later = new / "source"
    _copy(later)
    try:
        _pip("wheel", "--wheel-dir", str(new / "wheels"), f"{later}[cluster]")
        _run(["sh", "tools/wheel", str(new / "dist")], ROOT)
    except subprocess.CalledProcessError as error:
        if re.search("No matching distribution|ConnectionError|Could not fetch", error.stderr):
            pytest.skip("pip cannot reach a package index")
        raise
    _run(
        ["sh", "tools/deb", str(new / "deb")], ROOT, WHEELS=str(new / "wheels"), COMPRESSION="none"
    )
    _make_later(later)
    _pip("wheel", "--no-deps", "--wheel-dir", str(new / "later"), str(later))
    for wheel in (new / "wheels").glob("*.whl"):
        if not wheel.name.startswith("metad-"):
            os.link(wheel, new / "later" / wheel.name)
    _run(
        ["sh", "tools/deb", str(new / "deb-later")],
        later,
        WHEELS=str(new / "later"),
        COMPRESSION="none",
    )
    shutil.rmtree(later)
    (new / "stamp").write_text(stamp)
    new.rename(BUILT)


def _make_later(source: Path) -> None:
    for name in ("pyproject.toml", "metad/__init__.py"):
        path = source / name
        text = path.read_text()
        assert f'"{__version__}"' in text
        path.write_text(text.replace(f'"{__version__}"', f'"{LATER}"', 1))


def _copy(target: Path) -> None:
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=ignore)
        else:
            shutil.copy(path, target / name)


def _checksum() -> str:
    found = hashlib.blake2b()
    for name in SOURCES:
        path = ROOT / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                found.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return found.hexdigest()


def _pip(*arguments: str) -> None:
    _run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], ROOT)


def _run(command: list[str], directory: Path, **environ: str) -> None:
    # Python's own bytecode switches are the tests' business alone.
    subprocess.run(
        command,
        cwd=directory,
        env=os.environ | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
