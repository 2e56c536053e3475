"""SMTP load: messages of an exact size over many connections, every reply checked.

Latency is from the write of a message's text to its 250: the cost of durability.

    python -m perf.smtp_load --port 2525 --connections 100 --messages 50000 \\
        --recipients a@example.org,b@example.org
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from perf.driver import BadReplyError, Check, Driver, Report, Session

_HEADER = b"From: <load@perf.example>\r\nSubject: load\r\n\r\n"


@dataclass(frozen=True, slots=True)
class SmtpLoad:
    """`size`: octets of a message without its final dot line.  `per_connection`: 0 for all."""

    host: str
    port: int
    recipients: tuple[str, ...]
    connections: int = 20
    messages: int = 10_000
    size: int = 500
    pipeline: bool = False
    per_connection: int = 0


def message(size: int) -> bytes:
    """Exactly `size` octets: a header and lines of 78 octets with CR LF, none begins with a dot."""
    if size < len(_HEADER) + 2:
        raise ValueError(f"a message has at least {len(_HEADER) + 2} octets")
    rest = size - len(_HEADER)
    # The last line takes the rest; a line has at least two octets.
    full, last = divmod(rest, 80)
    lines = [b"x" * 78 + b"\r\n"] * full
    if last == 1:
        lines[-1] = b"x" * 79 + b"\r\n"
    elif last:
        lines.append(b"x" * (last - 2) + b"\r\n")
    return _HEADER + b"".join(lines)


def expect(*codes: bytes) -> Check:
    """A check for one reply per code, each of one or more lines (RFC 5321 4.2)."""
    single = codes[0] + b" " if len(codes) == 1 else b""

    def check(data: bytes) -> bool:
        if single and data[:4] == single and data.find(b"\n") == len(data) - 1:
            return True
        if not data.endswith(b"\r\n"):
            return False
        lines = data.split(b"\r\n")[:-1]
        got = [line[:3] for line in lines if line[3:4] != b"-"]
        wrong = [line for line in lines if line[:3] not in codes]
        if wrong or len(got) > len(codes):
            raise BadReplyError(f"wanted {b' '.join(codes).decode()}, got {(wrong or lines)[0]!r}")
        if len(got) == len(codes) and tuple(got) != codes:
            raise BadReplyError(f"replies out of order: {data[:120]!r}")
        return len(got) == len(codes)

    return check


OK = expect(b"250")
READY = expect(b"220")
GO_AHEAD = expect(b"354")
ENVELOPE = expect(b"250", b"250", b"354")
STORED_AND_ENVELOPE = expect(b"250", b"250", b"250", b"354")
BYE = expect(b"221")


class SmtpRun:
    """One run: what is sent, and how much of it is left."""

    def __init__(self, load: SmtpLoad) -> None:
        self.load = load
        self.report = Report("messages")
        self._left = load.messages
        self._recipients = itertools.cycle([f"RCPT TO:<{r}>\r\n".encode() for r in load.recipients])
        self._text = message(load.size) + b".\r\n"

    def run(self) -> Report:
        load = self.load
        driver = Driver((load.host, load.port), self._next_session, self.report)
        driver.run(load.connections)
        return self.report

    def _next_session(self, _: int) -> Session | None:
        if not self._left:
            return None
        return self._pipelined() if self.load.pipeline else self._stepwise()

    def _quota(self) -> range:
        """Messages that a connection may send; `_begin` takes each off those left."""
        return range(self.load.per_connection or self.load.messages)

    def _begin(self) -> bool:
        if self._left:
            self._left -= 1
            return True
        return False

    def _stored(self, written: float) -> None:
        self.report.latencies.append(time.perf_counter() - written)
        self.report.count += 1

    def _stepwise(self) -> Session:
        text, now, recipients = self._text, time.perf_counter, self._recipients
        yield b"", READY
        yield b"EHLO load.perf.example\r\n", OK
        for _ in self._quota():
            if not self._begin():
                break
            yield b"MAIL FROM:<load@perf.example>\r\n", OK
            yield next(recipients), OK
            yield b"DATA\r\n", GO_AHEAD
            written = now()
            yield text, OK
            self._stored(written)
        yield b"QUIT\r\n", BYE

    def _pipelined(self) -> Session:
        """RFC 2920: MAIL, RCPT and DATA in one write, with the text of the message before."""
        now = time.perf_counter
        yield b"", READY
        yield b"EHLO load.perf.example\r\n", OK
        written = 0.0
        for _ in self._quota():
            if not self._begin():
                break
            envelope = b"MAIL FROM:<load@perf.example>\r\n" + next(self._recipients) + b"DATA\r\n"
            if written:
                written = now()
                yield self._text + envelope, STORED_AND_ENVELOPE
                self._stored(written)
            else:
                yield envelope, ENVELOPE
                written = now()
        if written:
            written = now()
            yield self._text, OK
            self._stored(written)
        yield b"QUIT\r\n", BYE


def recipients(text: str) -> tuple[str, ...]:
    """Addresses separated by commas; without any @, the name of a file with one per line."""
    lines = text.split(",") if "@" in text else Path(text).read_text().split("\n")
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise argparse.ArgumentTypeError("no recipients")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2525)
    parser.add_argument("--recipients", type=recipients, required=True, metavar="FILE|ADDR,ADDR")
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--messages", type=int, default=10_000, help="in all")
    parser.add_argument("--size", type=int, default=500, help="octets of a message")
    parser.add_argument("--pipeline", action="store_true")
    parser.add_argument("--per-connection", type=int, default=0, help="messages; 0: no limit")
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args())
    as_json = options.pop("json")
    report = SmtpRun(SmtpLoad(**options)).run()
    print(json.dumps(report.facts()) if as_json else report.text())
    return 1 if report.error_count or report.count < options["messages"] else 0


if __name__ == "__main__":
    sys.exit(main())
