"""A run of the peers goes on without what fails, and says so."""

import argparse

from perf import breadth
from perf.generator import GeneratorError
from perf.peers import run
from perf.peers.catalog import KINDS
from perf.peers.run import Cell


def test_a_server_whose_maildrops_cannot_be_filled_has_no_pop3_figures(monkeypatch):
    filled = []

    def fill(peer: str, lmtp: bool, each: int, left: int) -> None:
        filled.append((peer, lmtp, each, left))
        if lmtp:
            raise GeneratorError("the server closed")

    def measure(count: int) -> dict:
        raise AssertionError("measured without messages")

    monkeypatch.setattr(run, "fill", fill)
    peers = {name: name for name in ("metad", "smtp-sink", "dovecot-mdbox")}
    cells = [Cell(name, "pipelined", measure, 20) for name in ("metad", "dovecot-mdbox")]
    options = argparse.Namespace(drop=200, left=1000)
    run.fill_all(peers, cells, options)  # type: ignore[arg-type]
    assert filled == [("metad", False, 200, 1000), ("dovecot-mdbox", True, 200, 1000)]
    assert [cell.error for cell in cells] == [
        "",
        "its maildrops could not be filled: the server closed",
    ]
    cells[1].turn(1.0)  # measures nothing
    assert run.results(cells[1:])["pipelined"]["dovecot-mdbox"]["error"] == cells[1].error


def test_a_load_that_fails_is_an_error_of_its_cell():
    def measure(count: int) -> dict:
        raise GeneratorError("451 later")

    cell = Cell("metad", "20", measure, 20)
    cell.turn(1.0)
    assert run.results([cell]) == {"20": {"metad": {"error": "451 later"}}}


def test_every_kind_has_a_title_of_its_own():
    assert len({kind.title for kind in KINDS.values()}) == len(KINDS)


def test_a_part_of_breadth_that_fails_leaves_the_others(monkeypatch, tmp_path):
    def fails(where: object, seconds: float, rounds: int) -> dict:
        raise GeneratorError("it closed")

    found = {"one": {"rate": 5.0, "half_spread": 0.1}}
    monkeypatch.setattr(breadth, "PARTS", {"half": fails, "idle": lambda *_: found})
    options = argparse.Namespace(
        stored=10, mailboxes=10, minutes=0.1, only=["half", "idle"], rounds=1,
        directory=str(tmp_path),
    )  # fmt: skip
    stored = breadth.STORE
    try:
        facts = breadth.run(options)
    finally:
        breadth.STORE = stored
    assert facts["failed"] == {"half": "it closed"}
    assert facts["idle"] == found
