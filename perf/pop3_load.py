"""POP3 load: download maildrops, or poll them (login, STAT, QUIT); every reply checked.

Each connection has its own maildrop: user number i of --users.  Latency is that of one RETR (or one
group of --pipeline RETRs), or of one whole poll.

    python -m perf.pop3_load download --port 1110 --users FILE --password secret --verify
    python -m perf.pop3_load poll --port 1110 --users FILE --password secret --polls 20000
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from perf.driver import BadReplyError, Check, Driver, Report, Session
from perf.smtp_load import recipients

_END = b"\r\n.\r\n"


@dataclass(frozen=True, slots=True)
class Pop3Load:
    """`polls`: 0 downloads each maildrop once.  `pipeline`: RETRs in one write."""

    host: str
    port: int
    users: tuple[str, ...]
    password: str
    connections: int = 20
    polls: int = 0
    pipeline: int = 1
    delete: bool = False
    verify: bool = False


def okay(data: bytes) -> bool:
    """One line, +OK."""
    if data[:3] != b"+OK":
        raise BadReplyError(f"wanted +OK, got {data[:120]!r}")
    end = data.find(b"\n") + 1
    if end and end != len(data):
        raise BadReplyError(f"octets behind a reply: {data[end : end + 80]!r}")
    return bool(end)


def okays(count: int) -> Check:
    """This many lines, each +OK."""

    def check(data: bytes) -> bool:
        lines = data.split(b"\r\n")[:-1]
        if len(lines) > count or not all(line.startswith(b"+OK") for line in lines):
            raise BadReplyError(f"wanted +OK {count} times, got {data[:120]!r}")
        return len(lines) == count and data.endswith(b"\n")

    return check


def listing(data: bytes) -> bool:
    """A multi-line answer."""
    if data[:3] != b"+OK":
        raise BadReplyError(f"wanted +OK, got {data[:120]!r}")
    return data.endswith(_END)


def messages(sizes: list[int]) -> Check:
    """Answers to RETR of messages with these sizes, taken from LIST, one after another."""

    def check(data: bytes) -> bool:
        position = 0
        for size in sizes:
            position = message_end(data, position, size)
            if not position:
                return False
        if position != len(data):
            raise BadReplyError(f"octets behind a message: {data[position : position + 80]!r}")
        return True

    return check


def message_end(data: bytes, start: int, size: int) -> int:
    """The offset after the answer to RETR that begins at `start`; 0: incomplete."""
    body = data.find(b"\n", start) + 1
    if not body:
        return 0
    if data[start : start + 3] != b"+OK":
        raise BadReplyError(f"wanted +OK, got {data[start:body]!r}")
    end = body + size + 3
    if data[end - 5 : end] == _END:
        return end
    # It is incomplete, or has stuffed dots, or its size is wrong.
    end = data.find(_END, body) + len(_END)
    if end < len(_END):
        if len(data) - body > 2 * size + len(_END):
            raise BadReplyError(f"a message of {size} octets has no end")
        return 0
    found = end - 3 - body - data.count(b"\r\n..", body - 2, end)
    if found != size:
        raise BadReplyError(f"a message of {size} octets has {found}")
    return end


class Pop3Run:
    """One run.  `digests`: of every message downloaded, by user, when asked to verify."""

    def __init__(self, load: Pop3Load) -> None:
        if load.connections > len(load.users):
            raise ValueError("each connection needs a maildrop of its own")
        self.load = load
        self.report = Report("polls" if load.polls else "messages")
        self.digests: dict[str, list[str]] = {}
        self._left = load.polls or load.connections
        password = load.password.encode()
        self._users = [b"USER %b\r\n" % user.encode() for user in load.users]
        self._password = b"PASS %b\r\n" % password

    def run(self) -> Report:
        load = self.load
        Driver((load.host, load.port), self._next_session, self.report).run(load.connections)
        return self.report

    def _next_session(self, index: int) -> Session | None:
        if not self._left:
            return None
        self._left -= 1
        return self._poll(index) if self.load.polls else self._download(index)

    def _poll(self, index: int) -> Session:
        began = time.perf_counter()
        yield b"", okay
        yield self._users[index], okay
        yield self._password, okay
        yield b"STAT\r\n", okay
        yield b"QUIT\r\n", okay
        self._done(began, 1)

    def _download(self, index: int) -> Session:
        load = self.load
        yield b"", okay
        yield self._users[index], okay
        yield self._password, okay
        answer = yield b"LIST\r\n", listing
        lines = [line.split() for line in answer.split(b"\r\n")[1:-2]]
        drop = [(int(number), int(size)) for number, size in lines]
        for at in range(0, len(drop), load.pipeline):
            group = drop[at : at + load.pipeline]
            retrieve = b"".join([b"RETR %d\r\n" % number for number, _ in group])
            began = time.perf_counter()
            data = yield retrieve, messages([size for _, size in group])
            self._done(began, len(group))
            if load.verify:
                self._digest(load.users[index], data, [size for _, size in group])
            if load.delete:
                delete = b"".join([b"DELE %d\r\n" % number for number, _ in group])
                yield delete, okays(len(group))
        yield b"QUIT\r\n", okay

    def _done(self, began: float, count: int) -> None:
        self.report.latencies.append(time.perf_counter() - began)
        self.report.count += count

    def _digest(self, user: str, data: bytes, sizes: list[int]) -> None:
        start = 0
        for size in sizes:
            end = message_end(data, start, size)
            body = data.find(b"\n", start) + 1
            digest = hashlib.sha256(data[body:end]).hexdigest()
            self.digests.setdefault(user, []).append(digest)
            start = end

    def digest(self) -> str:
        """One digest over everything downloaded, independent of the order of arrival."""
        lines = [f"{user} {' '.join(found)}\n" for user, found in sorted(self.digests.items())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def options() -> tuple[dict[str, Any], bool]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("mode", choices=["download", "poll"])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1110)
    parser.add_argument("--users", type=recipients, required=True, metavar="FILE|ADDR,ADDR")
    parser.add_argument("--password", required=True, help="of all of them")
    parser.add_argument("--connections", type=int, default=0, help="default: one per user")
    parser.add_argument("--polls", type=int, default=10_000, help="in all")
    parser.add_argument("--pipeline", type=int, default=1, help="RETRs in one write")
    parser.add_argument("--delete", action="store_true", help="DELE what was downloaded")
    parser.add_argument("--verify", action="store_true", help="print a digest of all messages")
    parser.add_argument("--json", action="store_true")
    given = vars(parser.parse_args())
    as_json = given.pop("json")
    given["connections"] = given["connections"] or len(given["users"])
    if given.pop("mode") == "download":
        given["polls"] = 0
    return given, as_json


def main() -> int:
    given, as_json = options()
    run = Pop3Run(Pop3Load(**given))
    report = run.run()
    facts = report.facts()
    if given["verify"]:
        facts["digest"] = run.digest()
    text = report.text() + (f"\ndigest: {run.digest()}" if given["verify"] else "")
    print(json.dumps(facts) if as_json else text)
    return 1 if report.error_count else 0


if __name__ == "__main__":
    sys.exit(main())
