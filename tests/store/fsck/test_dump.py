"""The dump of a log shows its verified contents, with only the file and a secret."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.errors import DataError
from metad.store.fsck.dump import Fact, body_octets, dump_log, line_of
from metad.store.log.header import log_path
from metad.system.osio import Osio
from tests.support.osio_kit import FakeClock, KitOsio
from tests.support.store_kit import SECRET, StoreKit

TOOL = Path(__file__).parents[3] / "tools" / "logdump"
BODY = b"Subject: x\r\n\r\n\xff..\r\n.\r\n"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """A sealed log: a message for two, another one, a deletion."""
    with StoreKit(tmp_path / "data", KitOsio(clock=FakeClock())) as kit:
        kit.start()
        sent = kit.put([1, 2], BODY)
        kit.put([3], b"x" * 700)
        kit.delete(2, [sent.id])
        kit.stop()
    yield Path(log_path(kit.store.logs, 1))


def dump(path: Path, secret: bytes | None = SECRET, *, bodies: bool = False) -> list[Fact]:
    return list(dump_log(Osio(), path, secret, bodies=bodies))


def kinds(facts: list[Fact]) -> list[str]:
    return [fact["what"] for fact in facts]


def spoil(path: Path, at: int, octets: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        file.write(octets)


def test_every_record_is_shown_in_order_with_its_place(log: Path) -> None:
    facts = dump(log)
    assert kinds(facts) == ["header", "message", "message", "deletion", "seal", "end"]
    head, first, second, deletion, seal, end = facts
    assert (head["number"], head["state"], head["size"]) == (1, "sealed", 32768)
    assert first["offset"] == 512
    assert [(r["mailbox"], r["address"]) for r in first["recipients"]] == [(1, "u1@x"), (2, "u2@x")]
    assert (first["sender"], second["sequence"]) == ("s@x", 1)
    assert (deletion["mailbox"], deletion["ids"]) == (2, [first["id"]])
    assert (seal["covers_from"], seal["entries"]) == (512, 4)
    assert seal["offset"] == end["offset"]
    assert json.loads(json.dumps(facts)) == facts


def test_bodies_are_shown_only_when_asked_for_byte_by_byte(log: Path) -> None:
    assert not any("body" in fact for fact in dump(log))
    assert dump(log, bodies=True)[1]["body"].encode("latin-1") == BODY


def test_the_secret_is_never_shown(log: Path) -> None:
    shown = repr(dump(log, bodies=True))
    assert SECRET.hex() not in shown
    assert repr(SECRET) not in shown


def test_the_log_brings_its_own_secret(log: Path) -> None:
    assert dump(log, None) == dump(log)
    spoil(log, 0, bytes(512))
    assert dump(log, None) == dump(log)


def test_damage_is_shown_by_its_place_and_the_rest_all_the_same(log: Path) -> None:
    first = dump(log)[1]
    spoil(log, first["offset"] + 80, b"\0\0\0\0")
    facts = dump(log)
    assert kinds(facts) == ["header", "damage", "message", "deletion", "seal", "end"]
    assert (facts[1]["offset"], facts[1]["size"]) == (512, 512)


def test_a_damaged_end_and_a_damaged_seal_are_shown(log: Path) -> None:
    good = dump(log)
    spoil(log, good[3]["offset"], bytes(200))
    assert kinds(dump(log))[-3:] == ["damage", "seal", "end"]
    spoil(log, good[4]["offset"] + 80, b"\0\0\0\0")
    assert kinds(dump(log))[-3:] == ["damage", "damage", "end"]


def test_without_headers_the_secret_finds_the_records(log: Path) -> None:
    before = dump(log)
    spoil(log, 0, bytes(512))
    spoil(log, -512, bytes(512))
    facts = dump(log)
    assert facts[0]["life"] == before[0]["life"]
    assert facts[1:4] == before[1:4]
    with pytest.raises(DataError, match="secret is needed"):
        dump(log, None)
    with pytest.raises(DataError, match="no log that this secret opens"):
        dump(log, bytes(32))


def test_a_free_log_has_only_a_header(tmp_path: Path) -> None:
    with StoreKit(tmp_path / "data") as kit:
        kit.start()
        kit.stop()
    facts = dump(Path(log_path(kit.store.logs, 1)))
    assert [(fact["what"], fact["state"]) for fact in facts] == [("header", "free")]


def test_a_line_has_all_but_the_body_and_steers_no_terminal(log: Path) -> None:
    facts = dump(log, bodies=True)
    lines = [line_of(fact) for fact in facts]
    assert lines[1].startswith("       512 message  size=")
    assert "recipients=1:u1@x,2:u2@x" in lines[1]
    assert "Subject" not in "".join(lines)
    assert line_of({**facts[1], "helo": "\x1b[2J\n"}).isprintable()
    assert "id_time_us=99999999999999999999" in line_of({**facts[1], "id_time_us": 10**20 - 1})


def test_a_body_on_a_terminal_is_harmless_and_else_as_it_is() -> None:
    body = "a\r\n\x1b[2J\xff\tb\r\n.\r\n"
    assert body_octets(body, terminal=False) == body.encode("latin-1")
    assert body_octets(body, terminal=True) == b"a\n.[2J.\tb\n.\n"


# -- tools/logdump


def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="latin-1", check=False)


@pytest.mark.slow
def test_the_tool_needs_nothing_but_the_file(log: Path, tmp_path: Path) -> None:
    alone = tmp_path / "found-on-a-disk"
    shutil.copy(log, alone)
    done = tool(alone)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[1] for line in done.stdout.splitlines()] == kinds(dump(log))
    assert SECRET.hex() not in done.stdout
    lines = [json.loads(line) for line in tool("--json", "--bodies", alone).stdout.splitlines()]
    assert lines == dump(log, bodies=True)
    assert BODY.decode("latin-1").replace("\r\n", "\n") in tool("--bodies", alone).stdout


@pytest.mark.slow
def test_the_tool_takes_the_secret_of_a_store(log: Path, tmp_path: Path) -> None:
    spoil(log, 0, bytes(512))
    spoil(log, -512, bytes(512))
    alone = tmp_path / "00000001.log"
    shutil.copy(log, alone)
    assert tool(alone).returncode == 65
    assert "secret is needed" in tool(alone).stderr
    done = tool("--store", log.parents[1] / "store.json", alone)
    assert done.returncode == 0
    assert "message" in done.stdout


@pytest.mark.slow
def test_the_tool_ends_with_65_where_something_does_not_verify(log: Path) -> None:
    spoil(log, 512 + 80, b"\0\0\0\0")
    done = tool(log)
    assert done.returncode == 65
    assert "damage" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--what"], ["a", "b"]])
def test_the_tool_says_how_it_is_used(arguments: list[str]) -> None:
    done = tool(*arguments)
    assert done.returncode == 64
    assert "usage: logdump" in done.stderr


@pytest.mark.slow
def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = tool(tmp_path / "none")
    assert (done.returncode, done.stderr.count("\n")) == (66, 1)
