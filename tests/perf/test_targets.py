"""The targets: figures read from results, and the verdict on them."""

import argparse
import json

import pytest

from perf import targets, whole


def peers() -> dict:
    """Results in which metad is twice as fast as each peer, with half of its CPU."""

    def row(*names: str) -> dict:
        found = {name: {"rate": 100.0, "delivered": 100.0, "cpu_us": 40.0} for name in names}
        return found | {"metad": {"delivered": 200.0, "cpu_us": 20.0}}

    smtp = ("1", "20", "100", "50 KB", "per mail", "pipelined 1", "pipelined 20")
    pop3 = ("20 x 500 B", "20 x 5 KB", "pipelined", "polls 20", "polls left")
    return {
        "machine": {"date": "2026-11-28", "load": [0.1, 0.1, 0.1]},
        "smtp": {
            load: row("smtp-sink", "postfix", "postfix-dovecot", *targets.BOUNDS) for load in smtp
        },
        "pop3": {load: row("dovecot-mdbox") for load in pop3},
    }


def breadth() -> dict:
    return {
        "machine": {"date": "2026-11-28", "load": [0.1, 0.1, 0.1]},
        "half": {"half of 9,000/s": {"p50": 1.0, "p99": 12.0}},
        "idle": {"1,000 busy": {"rate": 1.0}, "10,000 idle": {"bytes_each": 2700}},
        "filled": {"empty": {"rate": 1000.0}, "full": {"rate": 900.0}},
        "disks": {f"{ms} ms, 100": {"rate": 1000.0 / (1 + ms)} for ms in (0, 1, 5, 10)},
    }


def verdicts(found: dict) -> dict[str, str]:
    return {row[0]: row[3] for row in targets.rows(found)}


def test_each_aim_is_read_from_results():
    found = verdicts({"peers": peers(), "breadth": breadth()})
    assert not any(verdict.startswith("not measured") for verdict in found.values())
    assert len(found) == len(targets.CELLS)
    assert found["against smtp-sink, which stores nothing: 100"] == "met"
    assert found["against Postfix, delivered: 1"] == "not met: 50% of it"
    assert found["POP3, CPU of a message, of Dovecot's"] == "met"
    assert found["p99 of a mail at half load, 100 connections"] == "not met: 1.20 times it"
    assert found["memory of an idle connection"] == "met"
    assert found["rate with a full store, of an empty hub's"] == "met"
    assert "at least 0.75 x" in targets.text({"peers": peers()})


def test_what_was_not_measured_says_why():
    results = peers()
    del results["pop3"]["polls left"]
    for row in results["smtp"].values():
        del row["postfix"]
    results["absent"] = ["postfix: needs root and Debian's packages"]
    results["smtp"]["20"]["smtp-sink"] = {"error": "the server closed\nmore"}
    found = verdicts({"peers": results})
    reasons = {title: verdict.removeprefix("not measured: ") for title, verdict in found.items()}
    assert reasons["POP3 against Dovecot mdbox: polls left"] == "that run of peers left it out"
    assert reasons["p99 of a mail at half load, 100 connections"] == "there is no result of breadth"
    assert reasons["against Postfix, delivered: 1"] == "postfix: needs root and Debian's packages"
    assert (
        reasons["against smtp-sink, which stores nothing: 20"]
        == "smtp-sink failed: the server closed"
    )
    text = targets.text({"peers": results})
    assert "not measured: postfix: needs root" in text


def test_a_part_of_a_run_that_failed_says_why():
    results = breadth()
    del results["filled"]
    results["failed"] = {"filled": "no space left\nmore"}
    found = verdicts({"breadth": results})
    assert (
        found["rate with a full store, of an empty hub's"] == "not measured: failed: no space left"
    )


def test_the_text_counts_the_verdicts():
    text = targets.text({"peers": peers(), "breadth": breadth()})
    met = sum(
        verdict == "met" for verdict in verdicts({"peers": peers(), "breadth": breadth()}).values()
    )
    assert f"{met} aims met" in text
    assert ", 0 not measured" in text


def test_the_newest_results_count(tmp_path):
    for date in ("2026-11-27T010000", "2026-11-28T010000"):
        facts = {"machine": {"date": date}}
        (tmp_path / f"peers-{date}.json").write_text(json.dumps(facts))
    assert targets.newest(tmp_path)["peers"]["machine"]["date"] == "2026-11-28T010000"


@pytest.mark.parametrize("minutes", [1.0, 26.0])
def test_the_whole_run_takes_its_time(minutes, tmp_path):
    options = argparse.Namespace(
        minutes=minutes, left=10, stored=10, mailboxes=10, directory=None, results=tmp_path,
        docs=True,
    )  # fmt: skip
    found = whole.commands(options)
    spent = [float(arguments[arguments.index("--minutes") + 1]) for arguments in found.values()]
    assert sum(spent) <= max(1.0, minutes - whole.FILLING_MINUTES + 0.1)
    assert all("--docs" in arguments for arguments in found.values())
