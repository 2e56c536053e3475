"""The subjects whose instructions `perf.guard` counts, one process each.

    python -m perf.guard_subjects SUBJECT ROUNDS [STEP]     does so many rounds, and STEP % more
    python -m perf.guard_subjects SUBJECT --units           units of a round

A subject's rounds are all the same: no clock, random number or thread affects what is executed,
except for `message`, whose groups are committed by a thread and repeat to one per cent.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from metad.errors import Reply
from metad.protocol.smtp.events import EndOfMessage, MailFrom, RcptTo
from metad.protocol.smtp.machine import Smtp
from metad.protocol.smtp.settings import SmtpSettings
from metad.store.index import index
from metad.store.log import record
from metad.store.log.encode import Append, encode
from metad.store.log.header import ACTIVE, LogHeader
from metad.store.log.writer import LogWriter
from metad.system.osio import Osio
from perf import session
from perf.smtp_load import message

EACH = 20  # messages, polls or records of a round
ACCEPTED = Reply(250, "2.0.0", "accepted")

Round = Callable[[], None]
_made: list[Path] = []  # directories to remove


def _worker(make: type[session.Bench], layer: str) -> Round:
    # valgrind has no room for a map of 1 TiB.
    index.MAP_SIZE = 1 << 30
    where = Path(tempfile.mkdtemp(prefix="metad-perf-", dir=session.place(make)))
    _made.append(where)
    return session.made(make, layer, EACH, where).round


def _smtp_machine() -> Round:
    """The state machine alone: the cost of a session's four commands without their session."""
    machine = Smtp(SmtpSettings("mx.perf.example", 1 << 20, 100))
    machine.start()
    machine.feed(b"EHLO load.perf.example\r\n")
    machine.take_output()
    wire = (
        b"MAIL FROM:<load@perf.example>\r\n",
        b"RCPT TO:<user@perf.example>\r\n",
        b"DATA\r\n",
        message(session.SIZE) + b".\r\n",
    )

    def one_round() -> None:
        for _ in range(EACH):
            for data in wire:
                event = machine.feed(data)
                while event is not None:
                    if isinstance(event, EndOfMessage):
                        machine.answer(ACCEPTED)
                    elif isinstance(event, MailFrom | RcptTo):
                        machine.answer(None)
                    event = machine.next_event()
                machine.take_output()

    return one_round


def _encode() -> Round:
    """A group of records as bytes of a log."""
    log = LogHeader(ACTIVE, 0, 1, 1000, 1 << 24, 512, 1, b"i" * 16, b"s" * 32)
    writer = LogWriter(Osio(), -1, log)
    recipient = record.Recipient(7, "", session.SIZE)
    body = (message(session.SIZE),)
    group = [
        Append(
            number.to_bytes(16, "big"), b"e" * 60, body, session.SIZE, lambda _: None, (recipient,)
        )
        for number in range(EACH)
    ]
    return lambda: void(encode(writer, group))


def void(_: object) -> None:
    pass


SUBJECTS: dict[str, Callable[[], Round]] = {
    "message": lambda: _worker(session.Messages, "log"),
    "null message": lambda: _worker(session.Messages, "null"),
    "poll": lambda: _worker(session.Polls, "log"),
    "retr": lambda: _worker(session.Downloads, "log"),
    "smtp machine": _smtp_machine,
    "encode": _encode,
}


def rounds_of(rounds: int, step: float) -> int:
    """With a step of this many per cent built in."""
    return round(rounds * (1 + step / 100))


def main() -> int:
    subject, rounds = sys.argv[1:3]
    if rounds == "--units":
        print(EACH)
        return 0
    step = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    sys.stderr = os.fdopen(os.dup(2), "w")
    # Log lines are part of the count, but their text is not needed.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    one_round = SUBJECTS[subject]()
    for _ in range(rounds_of(int(rounds), step)):
        one_round()
    for where in _made:
        shutil.rmtree(where, ignore_errors=True)  # its threads may be at work there
    # No destructors, no waiting for threads: the end is not part of the count.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
