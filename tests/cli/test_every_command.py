"""Every command: its help fits a screen and shows an example, and facts are available as JSON.

tests/e2e/test_every_command.py runs each of them.
"""

from __future__ import annotations

import re

import click
import pytest

from tests.support.command_tree import COMMANDS, WITH_JSON
from tests.test_docs import fault, words

# Terminals today have more than 24 lines; a help of 36 lines still fits.
LINES = 36
COLUMNS = 79
_EXAMPLE = re.compile(r"^  Examples?:\n((?:    metad [^\n]*\n)+)", re.MULTILINE)
# Commands without --json, because they print no facts.
SILENT = {
    "start": "it is the hub; its log is JSON with log.format",
    "stop": "prints nothing",
    "mail show": "prints the message itself",
    "tls remove": "prints nothing",
}


@pytest.mark.parametrize("path", COMMANDS)
def test_its_help_fits_a_screen_and_shows_an_example_of_it(run, path):
    code, out, err = run(*path.split(), "--help")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= COLUMNS
    found = _EXAMPLE.search(out)
    assert found, out
    for example in found[1].splitlines():
        assert example.startswith(f"    metad {path}".rstrip())
        assert fault(words(example.strip().removeprefix("metad "))) is None


def test_every_command_that_prints_facts_prints_json():
    without = set(COMMANDS) - set(WITH_JSON)
    assert without == SILENT.keys() | {
        path for path, one in COMMANDS.items() if isinstance(one, click.Group)
    }
    assert len(WITH_JSON) > 40
