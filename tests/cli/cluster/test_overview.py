"""`metad cluster status` with etcd: what it shows of members, of etcd, and of what fails next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from metad.cli import tables
from metad.cli.cluster.overview import (
    EtcdSight,
    Overview,
    ask_directory,
    short_of_copies,
    show_facts,
)
from metad.cli.cluster.status import Reached
from metad.cluster.view import Membership, View
from tests.cluster.test_mail import view_of

KNOWN: dict[str, Any] = {
    "frozen": "", "remedy": "", "error": "", "endpoint": "http://127.0.0.1:2379",
    "answered_s": 0.5, "word_s": 1.5, "epoch": 5, "revision": 9, "generation": 1,
    "alive": [1, 2], "away_s": {"3": 75.0},
}  # fmt: skip
THREE = view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ACTIVE)
UP, DOWN = "up", "connection refused"


def overview(view: View = THREE, silent: tuple[int, ...] = (), **known: Any) -> Overview:
    members = [
        Reached(one.number, one.address, str(one.state), one.healed,
                DOWN if one.number in silent else UP, view.epoch)
        for one in view.members
    ]  # fmt: skip
    return Overview(view, 1, members, EtcdSight({**KNOWN, **known}))


def rows(one: Overview) -> dict[str, tuple[bool, bool, bool]]:
    return {row.when: (row.mail_in, row.mail_out, row.deletions) for row in one.outlook()}


def test_nothing_works_on_a_node_that_is_refused() -> None:
    one = overview()
    refused = replace(one.members[0], link="refused: node 2 knows a later state of it")
    assert rows(replace(one, members=[refused, *one.members[1:]])) == {"now": (False, False, False)}
    assert rows(replace(one, number=2, members=[refused, *one.members[1:]]))["now"] == (True,) * 3


def test_leases_are_shown_with_what_is_known_of_them() -> None:
    facts = {row["node"]: row["lease"] for row in overview().rows()}
    assert facts == {1: "yes", 2: "yes", 3: "gone 1 min 15 s"}
    assert [row["lease"] for row in overview(away_s={}).rows()] == ["yes", "yes", "no"]
    assert [row["lease"] for row in overview(word_s=75.0).rows()] == [None] * 3  # it may be over
    assert [one["lease"] for one in overview().as_json()["members"]] == [True, True, False]


@pytest.mark.parametrize(
    ("known", "line"),
    [
        ({}, "http://127.0.0.1:2379, answered 1 s ago"),
        ({"word_s": None}, "http://127.0.0.1:2379, no answer yet"),
        ({"word_s": 75.0, "error": "it is away"}, "answered 1 min 15 s ago; it is away"),
        ({"frozen": "etcd was wiped"}, "not trusted: etcd was wiped"),
    ],
)  # fmt: skip
def test_how_old_this_nodes_knowledge_is(known: dict[str, Any], line: str) -> None:
    assert dict(overview(**known).lines())["etcd"] == line


def test_the_remedy_is_a_line_of_its_own() -> None:
    assert "remedy" not in dict(overview().lines())
    lines = dict(overview(frozen="etcd was wiped", remedy="restore it").lines())
    assert lines["remedy"] == "restore it"


def test_a_directory_process_that_is_away_is_shown(tmp_path: Path) -> None:
    sight = ask_directory(tmp_path)
    assert "the directory process cannot be asked" in sight.line()
    assert not sight.has_word
    one = Overview(THREE, 1, overview().members, sight)
    assert [row["lease"] for row in one.rows()] == [None] * 3
    assert one.as_json()["members"][0]["lease"] is None
    assert "cannot be asked" in one.as_json()["etcd"]["reason"]


def test_what_one_more_failure_costs() -> None:
    yes = (True, True, True)
    found = rows(overview())
    assert found == {
        "now": yes, "if node 1 fails": yes, "if node 2 fails": yes, "if node 3 fails": yes,
        "if etcd fails": yes,
    }  # fmt: skip
    two = view_of(Membership.ACTIVE, Membership.ACTIVE)
    assert rows(overview(two))["if node 2 fails"] == (False, True, False)
    # A node that reaches no other needs etcd's word to list.
    assert rows(overview(two, silent=(2,))) == {
        "now": (False, True, False),
        "if etcd fails": (False, False, False),
    }
    assert rows(overview(two, silent=(2,), word_s=11.0)) == {"now": (False, False, False)}


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (THREE, ""),
        (view_of(Membership.ACTIVE, Membership.ENTERING), "all new mail: 1 active for 2 copies"),
        (view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT),
         "perhaps mail of node 3: it is being copied"),
        (view_of(Membership.ACTIVE, Membership.ACTIVE, Membership.ABSENT, Membership.ABSENT),
         "perhaps mail of nodes 3 and 4: start these nodes"),
        (View(THREE.cluster, 5, THREE.members, 2, 1, "refuse"), "old mail: it is being copied"),
        (View(THREE.cluster, 5, THREE.members, 1, 1, "refuse"),
         "all mail: the next view asks for two copies"),
        (View(THREE.cluster, 5, view_of(Membership.ACTIVE).members, 1, 1, "refuse"), ""),
    ],
)  # fmt: skip
def test_which_mail_is_short_of_copies(view: View, text: str) -> None:
    assert short_of_copies(view) == text
    assert overview(view).as_json()["short_of_copies"] == text
    assert dict(overview(view).lines())["short of copies"] == (text or "none")


@pytest.mark.slow
def test_it_fits_into_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    endpoints = "; ".join(f"https://10.0.0.{n}:2379: connection refused" for n in range(1, 6))
    one = overview(error=f"etcd does not answer: {endpoints}", silent=(3,))
    show_facts(one.lines())
    tables.show_table("members", one.rows())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "https://10.0.0.5:2379: connection refused" in " ".join(line.strip() for line in lines)
    assert any("gone 1 min 15 s" in line for line in lines)
