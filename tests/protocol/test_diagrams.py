"""The state diagrams of docs/protocols.md are those of the tables that the machines walk."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from metad.protocol.pop3 import table as pop3
from metad.protocol.smtp import table as smtp

TOP = Path(__file__).resolve().parents[2]
TOOL = TOP / "tools" / "diagrams"


@pytest.mark.slow
def test_the_diagrams_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_changed_row_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = runpy.run_path(str(TOOL))
    before = tool["PAGE"].read_text()
    assert tool["page"](before) == before
    rows = pop3.COMMANDS[pop3.State.TRANSACTION]
    monkeypatch.setitem(rows, b"QUIT", rows[b"QUIT"]._replace(done=pop3.State.CLOSED))
    assert "TRANSACTION --> CLOSED: QUIT" in tool["page"](before)
    monkeypatch.setitem(smtp._TRANSACTION[smtp.RCPT], b"DATA", smtp._BDAT)
    assert "RCPT --> CHUNKS: DATA, BDAT" in tool["page"](before)


def test_a_page_without_a_place_for_a_diagram_is_an_error() -> None:
    tool = runpy.run_path(str(TOOL))
    with pytest.raises(SystemExit, match="0 places for the diagram of SMTP"):
        tool["page"]("# Protocols\n")
