"""The fuzz targets, and what must hold for every input.

Rules of this file:

* A target takes octets and returns; it raises on any fault.
* The same input whole, octet by octet, and cut by its own checksum gives the same result.
* No target has a state that outlives a call.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from typing import Any

from xxhash import xxh3_64_intdigest

from metad.config.parse import parse
from metad.errors import ConfigError, DataError, Reply
from metad.protocol import proxy, sasl, scram
from metad.protocol.pop3.machine import (
    Login,
    Pop3,
    Pop3Settings,
    Quit,
    Retrieve,
    ScramLogin,
    ScramUser,
    StartTls,
    Top,
)
from metad.protocol.smtp.machine import (
    Aborted,
    BodyChunk,
    EndOfMessage,
    MailFrom,
    RcptTo,
    Smtp,
    SmtpSettings,
)
from metad.store.log import record
from metad.tls import x509
from metad.users.imports import importers
from metad.users.imports.import_entries import BadLine
from metad.users.passwords import fake
from tests.fuzz.cluster_targets import CLUSTER_TARGETS
from tests.fuzz.cuts import same_for_every_cut
from tests.fuzz.filter_targets import FILTER_TARGETS
from tests.fuzz.import_targets import IMPORT_TARGETS

STORED = Reply(250, "2.0.0", "Ok: stored")
NOBODY = Reply(550, "5.1.1", "User unknown")
KEYS = fake(b"secret", b"user")
MESSAGES = (b"A: 1\r\n\r\nfirst\r\n.\r\n", b"A: 2\r\n\r\n..dot\r\n.\r\n", b".\r\n")


# --- SMTP ---


def run_smtp(settings: SmtpSettings, pieces: list[bytes]) -> tuple[object, ...]:
    machine = Smtp(settings)
    machine.start()
    events: list[Any] = []
    said = b""
    for piece in [*pieces, None]:
        if piece is None:
            machine.eof()
        else:
            machine.receive(piece)
        while True:
            event = machine.next_event()
            if event is None:
                full = machine.full
                said += machine.take_output()
                if not full:
                    break
                continue
            _keep(machine, events, event)
    assert machine.closed
    check_stored(events)
    return events, said


def _keep(machine: Smtp, events: list[Any], event: Any) -> None:
    """Note an event, its body chunks joined; answer it as a worker would."""
    if isinstance(event, BodyChunk) and events and isinstance(events[-1], bytes):
        events[-1] += event.data
    elif isinstance(event, BodyChunk):
        events.append(event.data)
    else:
        if isinstance(event, Aborted) and events and isinstance(events[-1], bytes):
            events.pop()
        if isinstance(event, EndOfMessage):
            begun = events.pop() if events and isinstance(events[-1], bytes) else b""
            events.append(begun + event.rest)
            event = event._replace(rest=b"")
        events.append(event)
    if isinstance(event, MailFrom):
        machine.answer(None)
    elif isinstance(event, RcptTo):
        machine.answer(NOBODY if event.address.startswith("no") else None)
    elif isinstance(event, EndOfMessage):
        machine.answer(STORED)


def check_stored(events: list[Any]) -> None:
    """A stored body ends once, and has no line end but CR LF."""
    for body, end in itertools.pairwise(events):
        if isinstance(body, bytes) and isinstance(end, EndOfMessage):
            wire = b"\r\n" + body
            assert wire.find(b"\r\n.\r\n") == len(wire) - 5, body
            lines = body.count(b"\r\n")
            assert body.count(b"\r") == body.count(b"\n") == lines, body
            assert end.octets == len(body) - end.stuffed_dots - 3, body


def smtp(octets: bytes) -> None:
    settings = SmtpSettings("mx.example.org", 600, 3)
    same_for_every_cut(octets, lambda pieces: run_smtp(settings, pieces))


def repair(octets: bytes) -> None:
    settings = SmtpSettings("mx.example.org", 600, 3, bare_line_ends="repair")
    same_for_every_cut(octets, lambda pieces: run_smtp(settings, pieces))


def lmtp(octets: bytes) -> None:
    settings = SmtpSettings("mx.example.org", 600, 3, lmtp=True)
    same_for_every_cut(octets, lambda pieces: run_smtp(settings, pieces))


# --- POP3 ---


class Drop:
    is_listed = True
    octets = sum(len(message) for message in MESSAGES)

    def __len__(self) -> int:
        return len(MESSAGES)

    def size(self, number: int) -> int:
        return len(MESSAGES[number - 1])

    def uid(self, number: int) -> str:
        return f"uid{number}"


def run_pop3(pieces: list[bytes]) -> tuple[object, ...]:
    machine = Pop3(Pop3Settings("mx.example.org", plaintext=True, scram=True))
    machine.start()
    events: list[Any] = []
    said = b""
    for piece in [*pieces, None]:
        if piece is None:
            machine.eof()
        else:
            machine.receive(piece)
        while True:
            event = machine.next_event()
            full = machine.full
            if event is not None:
                events.append(event)
                _answer(machine, event)
            said += b"".join(machine.take_output())
            if event is None and not full:
                break
    assert machine.closed
    assert not [event for event in events if isinstance(event, ScramLogin) and event.proven]
    return events, said


def _answer(machine: Pop3, event: Any) -> None:
    match event:
        case Login(_, b"wrong") | ScramLogin():
            machine.login_failed()
        case Login():
            machine.login_ok(Drop())
        case ScramUser():
            machine.scram_keys(KEYS, b"nonce")
        case StartTls():
            raise AssertionError("TLS was not offered")
        case Retrieve(number):
            machine.message([MESSAGES[number - 1]])
        case Top(number, _):
            machine.top([MESSAGES[number - 1]])
        case Quit():
            machine.quit_done()


def pop3(octets: bytes) -> None:
    same_for_every_cut(octets, run_pop3)


# --- the small ones ---


def proxy_header(octets: bytes) -> None:
    """A verdict stays once given, whatever follows."""
    verdict: object = None
    for end in range(min(len(octets), 600) + 1):
        try:
            now: object = proxy.parse(octets[:end])
        except proxy.ProxyError:
            now = "refused"
        assert verdict is None or now == verdict, octets[:end]
        verdict = now


def scram_exchange(octets: bytes) -> None:
    first, _, final = octets.partition(b"\n")
    try:
        exchange = scram.Exchange(first)
        exchange.server_first(KEYS, b"nonce")
        assert not exchange.is_proven(final)
    except sasl.SaslError:
        return


def plain_message(octets: bytes) -> None:
    try:
        mailbox, user, password = sasl.plain(sasl.decode_initial(octets))
    except sasl.SaslError:
        return
    assert user
    assert (mailbox + user).isprintable()
    assert b"\0" not in password


def certificate(octets: bytes) -> None:
    for read in (x509.read_der, lambda text: x509.read_pem(text.decode("latin-1"))):
        try:
            facts = read(octets)
        except ValueError:
            continue
        assert facts.not_before.tzinfo


def settings_file(octets: bytes) -> None:
    try:
        config = parse(octets.decode("utf-8", "replace"), None, None, {"HOME": "/home/x"})
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        assert config.listen


def stored_record(octets: bytes) -> None:
    """As it lies in a log, and as if its checksums were correct."""
    if record.parse_header(octets, 7, 9) is not None:
        # Coverage guidance reveals the expected check, so a correct one can be made.
        check = xxh3_64_intdigest(octets[: record.CHECKED_SIZE], 7)
        assert octets[record.CHECKED_SIZE : record.HEADER_SIZE] == check.to_bytes(8, "little")
    half = len(octets) // 2
    made = record.Header(record.MESSAGE, 9, 0, half, len(octets) - half, bytes(16), b"")
    assert not record.payload_is_good(made, octets, 7)
    try:
        envelope = record.unpack_envelope(octets)
    except ValueError:
        pass
    else:
        assert all(isinstance(one, record.Recipient) for one in envelope.recipients)
    try:
        deletion = record.unpack_deletion(octets[:half], octets[half:])
    except ValueError:
        return
    assert b"".join(deletion.each()) == octets[half:]


def users_file(octets: bytes) -> None:
    """The first line names the format; of what follows each line is an entry, bad, or nothing."""
    kind, _, text = octets.partition(b"\n")
    name = kind.decode("ascii", "replace")
    if name not in importers.FORMATS:
        name, text = "passwd", octets
    shadow = importers.Text("shadow", io.BytesIO(text))
    source = importers.Source(importers.Text("file", io.BytesIO(text)), "x.org", shadow)
    try:
        found = list(importers.read(name, source))
    except DataError as error:  # an invalid header
        assert "\n" not in str(error)
        return
    for one in found:
        if isinstance(one, BadLine):
            assert str(one.place).startswith(("file", "shadow"))
        else:
            assert "@" in one.address


TARGETS: dict[str, Callable[[bytes], None]] = {
    "smtp": smtp,
    "repair": repair,
    "lmtp": lmtp,
    "pop3": pop3,
    "proxy": proxy_header,
    "scram": scram_exchange,
    "plain": plain_message,
    "certificate": certificate,
    "settings": settings_file,
    "record": stored_record,
    "passwd": users_file,
    **CLUSTER_TARGETS,
    **FILTER_TARGETS,
    **IMPORT_TARGETS,
}
