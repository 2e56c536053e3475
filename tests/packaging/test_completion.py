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
        ("metad config get limits.message_s", ["plain,limits.message_size"]),
        ("metad zz", []),
    ],
)
def test_commands_options_settings_and_files_are_completed(words, wanted):
    count = str(len(words.split(" ")) - 1)
    found = ask("bash_complete", COMP_WORDS=words, COMP_CWORD=count)
    assert found.split() == wanted


def found_by(shell: str, *command: str) -> list[str]:
    """What a shell with the packaged file prints."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here (sh tools/test --full brings it)")
    place = str(Path(METAD).parent)
    done = subprocess.run(
        [shell, *command], capture_output=True, text=True, timeout=30, check=True,
        env=os.environ | {"PATH": f"{place}:{os.environ['PATH']}"},
    )  # fmt: skip
    return done.stdout.split()


def test_fish_completes_with_the_packaged_file():
    script = f'source "{PACKAGED}/fish/metad.fish"; complete -C "metad user pas"'
    assert found_by("fish", "--no-config", "-c", script)[:1] == ["passwd"]


def test_zsh_completes_with_the_packaged_file():
    """Its completion system needs a terminal: what it would be given is printed instead."""
    unpacked = os.environ.get("METAD_TEST_ROOT", "")  # its modules too, if zsh itself is
    script = f"""
        module_path=("{unpacked}"/usr/lib/*/zsh/*(N) $module_path)
        compdef() {{ :; }}
        _describe() {{ print -l -- ${{(P)3}}; }}
        compadd() {{ print -l -- ${{(P)@[-1]}}; }}
        source "{PACKAGED}/zsh/_metad"
        words=(metad user pas) CURRENT=3
        _metad_completion
    """
    assert found_by("zsh", "-f", "-c", script)[:1] == ["passwd:Give"]


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
