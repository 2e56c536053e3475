"""Tables for people, on a terminal and in a pipe."""

from __future__ import annotations

import pytest

from metad.cli import tables

ROWS = [
    {"id": "0" * 31 + str(number), "received": "2026-11-29 08:56:38", "from": "s@example.net",
     "bytes": 303, "state": "in the mailbox", "last_seen": None}
    for number in range(2)
]  # fmt: skip


@pytest.mark.parametrize("columns", [10, 40, 80, 200])
def test_on_a_terminal_the_id_of_a_record_is_in_one_piece(monkeypatch, capsys, columns):
    monkeypatch.setattr(tables, "terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    tables.show_records("ann@example.test", ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [one["id"] for one in ROWS]
    shown = " ".join(line.strip() for line in lines[1 : len(lines) // 2])
    if columns >= 40:
        assert max(map(len, lines)) <= columns
        assert shown == (
            "received: 2026-11-29 08:56:38, from: s@example.net, bytes: 303, "
            "state: in the mailbox, last seen: -"
        )


def test_in_a_pipe_records_are_a_table(capsys):
    tables.show_records("ann@example.test", ROWS)
    head, first, _ = capsys.readouterr().out.splitlines()
    assert head.split("\t") == list(ROWS[0])
    assert first.split("\t")[0] == ROWS[0]["id"]
