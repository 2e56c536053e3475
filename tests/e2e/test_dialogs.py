r"""Dialogues as data files, one directory per theme in tests/dialogs, each run against a real hub.

A file lists what is sent and what must come back, line by line:

    # a comment: what the dialogue shows, with its RFC clause
    connect KIND          a new connection to that listener (wide_hub.KINDS)
    C: LINE               the client sends LINE and CR LF
    C| OCTETS             the client sends OCTETS as they are: \r \n \0 \t \\ \xNN
    S: LINE               the hub must send LINE and CR LF; * in it stands for anything
    S...                  anything, up to the line that follows as `S:`
    tls                   the client begins TLS
    shut                  the client sends no more
    end                   the hub must have closed, with nothing left to say

{box}, {box2}, {box3} are the addresses of mailboxes of this file alone, {b64} what AUTH PLAIN needs
for {box}, {host} the hub's name.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import HOSTNAME, PASSWORD, address
from tests.support.wide_hub import KINDS, Smtp, WideHub, connect

HERE = Path(__file__).parents[1] / "dialogs"
FILES = sorted(HERE.glob("*/*.txt"))
LISTENERS = [
    "smtp",
    "pop3",
    "starttls",
    "smtps",
    "stls",
    "pop3s",
    "lmtp",
    "proxied",
    "proxied-pop3",
]
_ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|([rn0t\\]))")
_PLAIN = {b"r": b"\r", b"n": b"\n", b"0": b"\0", b"t": b"\t", b"\\": b"\\"}


def boxes(number: int) -> dict[str, str]:
    return {"box": f"d{number}a", "box2": f"d{number}b", "box3": f"d{number}c"}


@pytest.fixture(scope="module")
def hub() -> Iterator[WideHub]:
    names = [name for number in range(len(FILES)) for name in boxes(number).values()]
    with WideHub(LISTENERS, names, "[limits]\nrecipients = 100\n") as hub:
        yield hub


def filled(text: str, number: int) -> str:
    """The words in braces."""
    words = {key: address(name) for key, name in boxes(number).items()}
    plain = f"\0{words['box']}\0{PASSWORD}".encode()
    words |= {"b64": base64.b64encode(plain).decode(), "host": HOSTNAME, "password": PASSWORD}
    return re.sub(r"\{(\w+)\}", lambda found: words[found[1]], text)


def octets(text: str) -> bytes:
    def replace(found: re.Match[bytes]) -> bytes:
        return bytes([int(found[1], 16)]) if found[1] else _PLAIN[found[2]]

    return _ESCAPE.sub(replace, text.encode())


def pattern(line: str) -> re.Pattern[bytes]:
    parts = (re.escape(part.encode()) for part in line.split("*"))
    return re.compile(b".*".join(parts), re.DOTALL)


class Dialog:
    """One file, while it runs."""

    def __init__(self, hub: WideHub) -> None:
        self.hub = hub
        self.client: Smtp | None = None
        self.skipping = False

    def do(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "connect":
            self.close()
            self.client = Smtp(connect(self.hub.places[rest]))
            if KINDS[rest].get("tls") == "implicit":
                self.client.secure(self.hub.trust)
        elif word == "C:":
            self.client.send(rest.encode() + b"\r\n")
        elif word == "C|":
            self.client.send(octets(rest))
        elif word == "S...":
            self.skipping = True
        elif word == "S:":
            self.expect(pattern(rest))
        elif word == "tls":
            self.client.secure(self.hub.trust)
        elif word == "shut":
            self.client.socket.shutdown(1)
        elif word == "end":
            assert self.client.rest() == b""
        else:
            raise AssertionError(f"no such step: {line}")

    def expect(self, wanted: re.Pattern[bytes]) -> None:
        line = self.client.line()
        while self.skipping and not wanted.fullmatch(line):
            line = self.client.line()
        self.skipping = False
        assert wanted.fullmatch(line), f"{wanted.pattern!r} expected, {line!r} came"

    def close(self) -> None:
        if self.client is not None:
            self.client.drop()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_dialog(hub: WideHub, path: Path) -> None:
    number = FILES.index(path)
    dialog = Dialog(hub)
    steps = 0
    try:
        for at, line in enumerate(path.read_text().split("\n"), 1):
            if not line or line.startswith("#"):
                continue
            steps += 1
            try:
                dialog.do(filled(line, number))
            except (AssertionError, ConnectionError) as error:
                pytest.fail(f"{path.name}:{at}: {line}: {error}")
    finally:
        dialog.close()
    assert steps > 2
