"""The manual pages say what the program does, are well-formed, and refer to each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from metad.config.parse import parse
from tests.test_docs import fault, words

TOP = Path(__file__).resolve().parent.parent
PAGES = sorted((TOP / "man").iterdir())
NAMES = ["metad", "metad-layers", "metad-log", "metad-mail", "metad-store", "metad-user",
         "metad.toml"]  # fmt: skip
_EXAMPLES = re.compile(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", re.MULTILINE | re.DOTALL)


def examples(page: Path) -> list[str]:
    """The literal blocks of the section EXAMPLES."""
    _, mark, text = page.read_text("utf-8").partition(".Sh EXAMPLES\n")
    assert mark, f"{page.name} has no examples"
    return _EXAMPLES.findall(text.partition("\n.Sh ")[0])


@pytest.mark.slow
def test_the_manual_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(TOP / "tools" / "manual"), "--check"],
        capture_output=True, text=True, cwd=TOP, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_pages_are_there() -> None:
    assert sorted(page.stem for page in PAGES) == sorted(NAMES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_finds_no_fault(page: Path) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not here (sh tools/test --full brings it)")
    done = subprocess.run(["mandoc", "-Tlint", "-Wall", str(page)], capture_output=True, text=True,
                          check=False)  # fmt: skip
    # The pages of metad are not in this machine's manual; the next test looks for them.
    known = re.compile(r"referenced manual not found: Xr metad")
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if not known.search(line)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_references_lead_to_a_page(page: Path) -> None:
    named = re.findall(r"^\.Xr (\S+) ([0-9])", page.read_text("utf-8"), re.MULTILINE)
    assert named
    assert {f"{name}.{section}" for name, section in named} <= {one.name for one in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_is_a_command_that_exists_or_a_configuration_that_is_valid(
    page: Path, tmp_path: Path
) -> None:
    blocks = examples(page)
    assert blocks
    for block in blocks:
        if not block.startswith("$ "):
            assert tomllib.loads(block)
            parse(block, None, tmp_path, {})
        for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            assert fault(words(line.partition("metad ")[2])) is None, line
