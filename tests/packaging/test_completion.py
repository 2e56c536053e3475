"""Completion: the files are what click makes today, and the shells' questions are answered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGED = Path(__file__).parents[2] / "packaging" / "completion"
METAD = str(Path(sys.executable).with_name("metad"))
FILES = {"bash": "metad", "zsh": "_metad", "fish": "metad.fish"}


def ask(instruction: str, **environ: str) -> str:
    done = subprocess.run(
        [METAD],
        env=os.environ | {"_METAD_COMPLETE": instruction} | environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("shell", FILES)
def test_the_packaged_file_is_what_click_makes(shell):
    assert (PACKAGED / shell / FILES[shell]).read_text() == ask(f"{shell}_source")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("metad sto", ["plain,stop", "plain,store"]),
        ("metad user pas", ["plain,passwd"]),
        ("metad start --pid", ["plain,--pid-file"]),
        ("metad start --pid-file x", ["file,x"]),
        ("metad zz", []),
    ],
)
def test_commands_options_and_files_are_completed(words, wanted):
    count = str(len(words.split(" ")) - 1)
    found = ask("bash_complete", COMP_WORDS=words, COMP_CWORD=count)
    assert found.split() == wanted


def test_bash_completes_with_the_packaged_file():
    if shutil.which("bash") is None:
        pytest.skip("bash is not here")
    script = """
        source "$1"; PATH=$2:$PATH
        COMP_WORDS=(metad user pas); COMP_CWORD=2; COMPREPLY=()
        _metad_completion metad
        echo "${COMPREPLY[@]}"
    """
    place = str(Path(METAD).parent)
    done = subprocess.run(
        ["bash", "-c", script, "bash", str(PACKAGED / "bash/metad"), place],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "passwd\n"
