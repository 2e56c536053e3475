"""The wheel and the source distribution: what they carry, installed by pip and by pipx."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from metad import __version__
from tests.support.debian import ROOT
from tests.support.packages import Built

CARRIED = [
    "share/man/man5/metad-log.5",
    "share/man/man5/metad.toml.5",
    "share/man/man7/metad-layers.7",
    "share/man/man8/metad.8",
    "share/man/man8/metad-mail.8",
    "share/man/man8/metad-store.8",
    "share/man/man8/metad-user.8",
    "share/doc/metad/README.md",
    "share/doc/metad/docs/install.md",
    "share/doc/metad/examples/metad.toml",
    "share/doc/metad/examples/Containerfile",
    "share/doc/metad/examples/layer/metad_files.py",
    "share/bash-completion/completions/metad",
    "share/zsh/site-functions/_metad",
    "share/fish/vendor_completions.d/metad.fish",
    "share/metad/systemd/metad.service",
    "share/metad/systemd/metad-smtp.socket",
    "share/metad/systemd/metad-pop3.socket",
    "share/metad/sysusers.d/metad.conf",
    "share/metad/tmpfiles.d/metad.conf",
    "share/metad/logrotate.d/metad",
    "share/metad/fail2ban/filter.d/metad.conf",
    "share/metad/fail2ban/filter.d/metad-harvest.conf",
    "share/metad/fail2ban/jail.d/metad.conf",
    "share/metad/monitoring/grafana-dashboard.json",
    "share/metad/monitoring/metad.rules.yml",
]


def run(*command: str | Path, **environ: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        env=clean | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def make_venv(directory: Path, *arguments: str) -> Path:
    """A fresh environment with something installed in it; its bin/."""
    venv.create(directory, with_pip=True)
    run(directory / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check",
        "install", *arguments)  # fmt: skip
    return directory / "bin"


def test_pip_installs_a_program_and_everything_beside_it(packages: Built, tmp_path):
    wheels = str(packages.wheels)
    programs = make_venv(tmp_path / "venv", "--no-index", "--find-links", wheels, "metad")
    assert run(programs / "metad", "--version") == f"metad {__version__}\n"
    assert run(programs / "python", "-m", "metad", "--version") == f"metad {__version__}\n"
    missing = [name for name in CARRIED if not (tmp_path / "venv" / name).is_file()]
    assert missing == []
    manuals = {path.name for path in (ROOT / "man").iterdir()}
    installed = {path.name for path in (tmp_path / "venv/share/man").glob("man*/*")}
    assert manuals == installed


def test_pipx_installs_it(packages: Built, tmp_path):
    try:
        programs = make_venv(tmp_path / "venv", "pipx")
    except AssertionError as error:
        pytest.skip(f"pipx is not to be had: {error}")
    places = {name: str(tmp_path / name) for name in ("PIPX_HOME", "PIPX_BIN_DIR", "PIPX_MAN_DIR")}
    (wheel,) = packages.dist.glob("*.whl")
    run(programs / "pipx", "install", wheel, **places)
    assert run(tmp_path / "PIPX_BIN_DIR/metad", "--version") == f"metad {__version__}\n"
    assert (tmp_path / "PIPX_MAN_DIR/man8/metad.8").exists()


def test_the_source_distribution_has_all_that_builds_and_tests_it(packages: Built):
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no checkout of git's: what belongs to the source is not known")
    (path,) = packages.dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "-C", ROOT, "ls-files").splitlines()
    kept = [name for name in tracked if not name.startswith(".")]
    assert sorted(set(kept) - names) == []


def test_the_wheel_has_no_test_and_no_cache(packages: Built):
    (path,) = packages.dist.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert [name for name in names if name.startswith(("tests", "perf"))] == []
    assert [name for name in names if name.endswith(".pyc")] == []


def test_python_runs_the_package_as_a_program():
    assert run(sys.executable, "-m", "metad", "--version") == f"metad {__version__}\n"
