"""`tools/venv` takes the Python that it is told to take, or none."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("python", ["/nowhere/python 3", "/bin/false"])
def test_a_python_that_is_none_is_refused_with_its_name(tmp_path, python):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools/venv", tmp_path / "tools")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    done = subprocess.run(
        ["sh", str(tmp_path / "tools/venv")],
        env={**os.environ, "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"venv: PYTHON={python} is no Python of 3.11 or later\n"
    assert not (tmp_path / ".venv").exists()
