"""The dialogue of a session, as lines for people, without private data.

Rules of this file:

* Credentials and message content are never shown: anything but a known command is shown as a number
  of bytes.
* It only observes, and decides nothing for the session.  Any input yields lines of bounded length.
* Content is recognised in the same way as by the session, and ends at the latest with the next
  reply.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator

from metad.protocol.dots import EndFinder
from metad.system.osio import Buffer

LINE = 400  # characters of a line that are shown
LISTED = 20  # lines of a listing that are shown
_MOST = 65_536  # octets of a line that is not complete
HIDDEN = "[hidden]"
_CHUNK = re.compile(rb"BDAT +([0-9]{1,12})( +LAST)? *", re.IGNORECASE)


class Lines:
    """Assembles lines from pieces; a line without an end is returned in parts."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> None:
        self.rest += data

    def next(self) -> bytes | None:
        line, end, rest = self.rest.partition(b"\n")
        if not end and len(line) < _MOST:
            return None
        self.rest = rest
        return line.rstrip(b"\r")

    def take(self) -> bytes:
        data, self.rest = self.rest, b""
        return data


def shown(line: bytes) -> str:
    """A line as text: printable, and not too long."""
    text = line.decode("utf-8", "backslashreplace")
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= LINE else text[:LINE] + "…"


def verb_of(line: bytes) -> bytes:
    return line.partition(b" ")[0].upper()


class SmtpDialog:
    """A dialogue in SMTP or LMTP; both methods return lines."""

    _KNOWN = frozenset(
        b"HELO EHLO LHLO MAIL RCPT DATA RSET NOOP QUIT VRFY EXPN HELP STARTTLS BDAT".split()
    )

    def __init__(self) -> None:
        self._client = Lines()
        self._server = Lines()
        self._asked: deque[bytes] = deque()  # verbs whose replies are pending
        self._end: EndFinder | None = None  # within a message
        self._chunk = 0  # octets of a chunk that have not arrived yet
        self._octets = 0
        self._authenticates = False
        self._is_lmtp = False
        self._accepted = 0  # recipients; LMTP sends a reply for each after the message

    def client(self, data: bytes) -> Iterator[str]:
        self._client.feed(data)
        while self._client.rest and not self._waits:
            if self._end is not None or self._chunk:
                yield from self._content()
                continue
            line = self._client.next()
            if line is None:
                return
            yield self._command(line)

    @property
    def _waits(self) -> bool:
        """DATA was sent: only the reply tells whether content follows."""
        return bool(self._asked) and self._asked[-1] == b"DATA"

    def _command(self, line: bytes) -> str:
        verb = verb_of(line)
        if self._authenticates:
            return HIDDEN
        self._asked.append(verb)
        if verb == b"AUTH":
            self._authenticates = True
            return f"{shown(b' '.join(line.split(b' ')[:2]))} {HIDDEN}"
        if verb not in self._KNOWN:
            return f"[{len(line)} bytes]"
        self._is_lmtp = self._is_lmtp or verb == b"LHLO"
        if chunk := _CHUNK.fullmatch(line):
            self._chunk = int(chunk[1])
            self._octets = 0
            if chunk[2]:
                self._asked.pop()
                self._expect_end()
        return shown(line)

    def _expect_end(self) -> None:
        """A message is complete: one reply is pending, in LMTP one per recipient."""
        self._asked.extend([b"end"] * (self._accepted if self._is_lmtp else 1))

    def _content(self) -> Iterator[str]:
        data = self._client.take()
        if self._end is None:
            self._client.rest = data[self._chunk :]
            size = len(data) - len(self._client.rest)
            self._chunk -= size
            self._octets += size
            if not self._chunk:
                yield f"[a chunk of {self._octets:,} bytes]"
            return
        at = self._end.find(data, 0)
        self._octets += at if at >= 0 else len(data)
        if at >= 0:
            self._client.rest = data[at:]
            self._expect_end()
            yield self._ended()

    def _ended(self) -> str:
        self._end = None
        return f"[a message of {self._octets:,} bytes]"

    def server(self, data: bytes) -> Iterator[tuple[str, str]]:
        """Lines with their sides: a reply may complete a line of the client."""
        self._server.feed(data)
        while (line := self._server.next()) is not None:
            if line[:3] == b"334":
                yield "S", "334 " + HIDDEN
                continue
            if line[3:4] == b"-":
                yield "S", shown(line)
                continue
            if self._end is not None and not self._asked:  # its end was not recognised
                yield "C", self._ended()
            verb = self._asked.popleft() if self._asked else b""
            yield "S", shown(line)
            for text in self._answered(verb, line):
                yield "C", text

    def _answered(self, verb: bytes, line: bytes) -> Iterator[str]:
        if verb == b"AUTH":
            self._authenticates = False
        elif verb == b"RCPT" and line[:1] == b"2":
            self._accepted += 1
        elif verb in (b"MAIL", b"RSET"):
            self._accepted = 0
        elif verb == b"DATA" and line[:3] == b"354":
            self._end = EndFinder()
            self._octets = 0
            yield from self.client(b"")
        elif verb == b"DATA" and (rest := self._client.take()):
            # Content from a client that did not wait for the reply; its lines are answered as
            # commands.
            self._asked.extend([b"?"] * rest.count(b"\n"))
            yield f"[{len(rest)} bytes]"


class Pop3Dialog:
    """A dialogue in POP3."""

    _KNOWN = frozenset(
        b"USER CAPA STAT LIST RETR DELE NOOP RSET QUIT TOP UIDL STLS UTF8 LANG".split()
    )
    _MESSAGES = (b"RETR", b"TOP")
    _LISTINGS = (b"LIST", b"UIDL", b"LANG", b"AUTH")

    def __init__(self) -> None:
        self._client = Lines()
        self._server = Lines()
        self._asked: deque[tuple[bytes, bool]] = deque()  # verb, whether it had an argument
        self._authenticates = False
        self._end: EndFinder | None = None  # inside a message to the client
        self._octets = 0
        self._listed = -1  # lines of a listing so far; -1: there is none

    def client(self, data: bytes) -> Iterator[str]:
        self._client.feed(data)
        while (line := self._client.next()) is not None:
            yield self._command(line)

    def _command(self, line: bytes) -> str:
        if self._authenticates:
            return HIDDEN
        verb = verb_of(line)
        has_argument = b" " in line.strip()
        self._asked.append((verb, has_argument))
        if verb == b"AUTH" and has_argument:
            self._authenticates = True
            return f"{shown(b' '.join(line.split(b' ')[:2]))} {HIDDEN}"
        if verb in (b"PASS", b"APOP"):
            return f"{verb.decode()} {HIDDEN}"
        return shown(line) if verb in self._KNOWN or verb == b"AUTH" else f"[{len(line)} bytes]"

    def server(self, data: bytes) -> Iterator[tuple[str, str]]:
        self._server.feed(data)
        while True:
            if self._end is not None:
                if not (text := self._content()):
                    return
                yield "S", text
                continue
            line = self._server.next()
            if line is None:
                return
            text = self._listing(line) if self._listed >= 0 else self._answer(line)
            if text:
                yield "S", text

    def _content(self) -> str:
        """The message sent to the client, once it is complete."""
        data = self._server.take()
        at = self._end.find(data, 0) if self._end is not None else -1
        self._octets += at if at >= 0 else len(data)
        if at < 0:
            return ""
        self._server.rest = data[at:]
        self._end = None
        return f"[a message of {self._octets:,} bytes]"

    def _listing(self, line: bytes) -> str:
        if line == b".":
            more = self._listed - LISTED
            self._listed = -1
            return f"[{more:,} more lines]" if more > 0 else "."
        self._listed += 1
        return shown(line) if self._listed <= LISTED else ""

    def _answer(self, line: bytes) -> str:
        if line[:1] == b"+" and line[:3] != b"+OK":
            return "+ " + HIDDEN
        self._authenticates = False
        verb, has_argument = self._asked.popleft() if self._asked else (b"", True)
        if line[:3] == b"+OK":
            if verb in self._MESSAGES:
                self._end = EndFinder()
                self._octets = 0
            elif verb == b"CAPA" or (verb in self._LISTINGS and not has_argument):
                self._listed = 0
        return shown(line)


def joined(parts: Iterable[Buffer]) -> bytes:
    return b"".join(bytes(one) for one in parts)
