"""Arguments of MAIL, RCPT and BDAT, on the fast path and on the slow path."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.errors import Reply
from metad.protocol.address import AddressError, parse_mailbox
from metad.protocol.smtp.arguments import (
    QUICK_MAIL,
    QUICK_RCPT,
    Chunk,
    has_long_part,
    parse_bdat,
    parse_mail,
    parse_rcpt,
)
from metad.protocol.smtp.events import MailFrom, RcptTo

LONG = b"a" * 192


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (b"FROM:<a@b.example>", MailFrom("a@b.example", None, False)),
        (b"from:<a@b.example>", MailFrom("a@b.example", None, False)),
        (b"FROM: <a@b.example>", MailFrom("a@b.example", None, False)),
        (b"FROM:<>", MailFrom("", None, False)),
        (b"FROM:<> SIZE=0", MailFrom("", 0, False)),
        (b"FROM:<A.b+c@B> SIZE=500", MailFrom("A.b+c@B", 500, False)),
        (b"FROM:<a@b>  size=1  body=8bitmime", MailFrom("a@b", 1, False)),
        (b"FROM:<a@b> BODY=7BIT SMTPUTF8", MailFrom("a@b", None, True)),
        (b"FROM:<@x,@y.example:a@b>", MailFrom("a@b", None, False)),
        (b"FROM:<@x:a@b> SIZE=3", MailFrom("a@b", 3, False)),
        (b'FROM:<"a b>"@c> SIZE=3', MailFrom('"a b>"@c', 3, False)),
        (b"FROM:<root>", MailFrom("root", None, False)),
        (b"FROM:<a@[192.0.2.1]>", MailFrom("a@[192.0.2.1]", None, False)),
        (b"FROM:<" + LONG + b"@b>", MailFrom("a" * 192 + "@b", None, False)),
        ("FROM:<ü@bücher.example> SMTPUTF8".encode(), MailFrom("ü@bücher.example", None, True)),
        (b"FROM:<a@b> SIZE=" + b"9" * 20, MailFrom("a@b", 10**20 - 1, False)),
    ],
)  # fmt: skip
def test_mail_is_understood(argument: bytes, expected: MailFrom) -> None:
    assert parse_mail(argument) == expected


SYNTAX = "501 5.5.4 Syntax: MAIL FROM:<address>"
SENDER = "501 5.1.7 Bad sender address syntax"
PARAMETER = "501 5.5.4 Bad parameter syntax"
UNSUPPORTED = "555 5.5.4 Unsupported option"
UTF8 = "553 5.6.7 Address requires SMTPUTF8"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (b"TO:<a@b>", SYNTAX),
        (b"FROM:<a@b", SYNTAX),
        (b"FROM:a@b>", SYNTAX),
        (b"FROM <a@b>", SYNTAX),
        (b"FROM:<a@b>SIZE=1", SYNTAX),
        (b"FROM:<<a@b>>", SYNTAX),
        (b"FROM:<a b@c>", SYNTAX),
        (b'FROM:<"a@c>', SYNTAX),
        (b"FROM:\t<a@b>", SYNTAX),
        (b"FROM:<a@b..c>", SENDER),
        (b"FROM:<a..b>", SENDER),
        (b"FROM:<a.@b>", SENDER),
        (b"FROM:<@x>", SENDER),
        (b"FROM:<a@b@c>", SENDER),
        (b"FROM:<\xff@c>", SENDER),
        (b"FROM:<" + LONG + b"a@b>", SENDER),
        (b"FROM:<a@b." + b"c" * 64 + b">", SENDER),
        (b"FROM:<a@b> SIZE", PARAMETER),
        (b"FROM:<a@b> SIZE=", PARAMETER),
        (b"FROM:<a@b> SIZE=+1", PARAMETER),
        (b"FROM:<a@b> SIZE=1_0", PARAMETER),
        (b"FROM:<a@b> SIZE=-1", PARAMETER),
        (b"FROM:<a@b> SIZE=1x", PARAMETER),
        (b"FROM:<a@b> SIZE=" + b"9" * 21, PARAMETER),
        (b"FROM:<a@b> SIZE=1 SIZE=1", PARAMETER),
        (b"FROM:<a@b> BODY", PARAMETER),
        (b"FROM:<a@b> BODY=9BIT", PARAMETER),
        (b"FROM:<a@b> BODY=BINARYMIME", "501 5.5.4 BODY=BINARYMIME is not supported"),
        (b"FROM:<a@b> SMTPUTF8=1", PARAMETER),
        (b"FROM:<a@b> =1", PARAMETER),
        (b"FROM:<a@b> RET=HDRS", UNSUPPORTED),
        (b"FROM:<a@b> AUTH=<>", UNSUPPORTED),
        (b"FROM:<a@b> AUTH=x", UNSUPPORTED),
        ("FROM:<ü@b>".encode(), UTF8),
        ("FROM:<a@ü.example> SIZE=3".encode(), UTF8),
    ],
)
def test_mail_is_refused(argument: bytes, expected: str) -> None:
    reply = parse_mail(argument)
    assert isinstance(reply, Reply)
    assert reply.wire.decode() == expected + "\r\n"


@pytest.mark.parametrize(
    ("argument", "utf8", "expected"),
    [
        (b"TO:<a@b.example>", False, "a@b.example"),
        (b"to:<a@b.example>", False, "a@b.example"),
        (b"TO: <a@b.example>", False, "a@b.example"),
        (b"TO:<@x,@y:a@b>", False, "a@b"),
        (b'TO:<"a b"@c>', False, '"a b"@c'),
        (b"TO:<postmaster>", False, "postmaster"),
        (b"TO:<PostMaster>", False, "PostMaster"),
        (b"TO:<" + LONG + b"@b>", False, "a" * 192 + "@b"),
        (b"TO:<a@b." + b"c" * 63 + b">", False, "a@b." + "c" * 63),
        ("TO:<ü@b>".encode(), True, "ü@b"),
    ],
)
def test_rcpt_is_understood(argument: bytes, utf8: bool, expected: str) -> None:
    assert parse_rcpt(argument, utf8=utf8) == RcptTo(expected)


RCPT = "501 5.5.4 Syntax: RCPT TO:<address>"
RECIPIENT = "501 5.1.3 Bad recipient address syntax"


@pytest.mark.parametrize(
    ("argument", "utf8", "expected"),
    [
        (b"FROM:<a@b>", False, RCPT),
        (b"TO:<a@b>x", False, RCPT),
        (b"TO:a@b>", False, RCPT),
        (b"TO:<a@b", False, RCPT),
        (b"TO:root", False, RECIPIENT),
        (b"TO:", False, RCPT),
        (b"TO:a@b NOTIFY=NEVER", False, UNSUPPORTED),
        (b"TO:<>", False, RECIPIENT),
        (b"TO:<root>", False, RECIPIENT),
        (b"TO:<a@>", False, RECIPIENT),
        (b"TO:<\xff@b>", True, RECIPIENT),
        (b"TO:<" + LONG + b"a@b>", False, RECIPIENT),
        (b"TO:<a@b." + b"c" * 64 + b">", False, RECIPIENT),
        (b"TO:<a@b> NOTIFY=NEVER", False, UNSUPPORTED),
        (b'TO:<"a b"@c> ORCPT=rfc822;x', False, UNSUPPORTED),
        ("TO:<ü@b>".encode(), False, UTF8),
    ],
)
def test_rcpt_is_refused(argument: bytes, utf8: bool, expected: str) -> None:
    reply = parse_rcpt(argument, utf8=utf8)
    assert isinstance(reply, Reply)
    assert reply.wire.decode() == expected + "\r\n"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (b"0", Chunk(0, False)),
        (b"12 LAST", Chunk(12, True)),
        (b"12  last", Chunk(12, True)),
        (b"9" * 20, Chunk(10**20 - 1, False)),
        (b"", None),
        (b"LAST", None),
        (b"+1", None),
        (b"1_0", None),
        (b"-1", None),
        (b"1 FIRST", None),
        (b"1LAST", None),
        (b"1 LAST LAST", None),
        (b"9" * 21, None),
        ("\u0663".encode(), None),
    ],
)
def test_bdat_takes_a_count_and_last(argument: bytes, expected: Chunk | None) -> None:
    assert parse_bdat(argument) == expected


@pytest.mark.parametrize("address", ["a@b.example", "a.b@c", "bounce", '"ab"@c'])
def test_an_address_without_brackets_was_refused(address: str) -> None:
    """Scanners and scripts send these; Postfix accepts them."""
    naked = f"FROM:{address} SIZE=3".encode()
    assert parse_mail(naked) == MailFrom(address, 3, False)
    assert parse_mail(b"FROM:  " + address.encode()) == MailFrom(address, None, False)
    if "@" in address:
        assert parse_rcpt(f"TO:{address}".encode(), utf8=False) == RcptTo(address)
    for argument in (naked, b"FROM: <" + address.encode() + b">"):
        reply = parse_mail(argument, strict=True)
        assert isinstance(reply, Reply)
        assert reply.wire.decode() == SYNTAX + "\r\n"
    for argument in (b"TO:a@b", b"TO: <a@b>", b"TO:"):
        refusal = parse_rcpt(argument, utf8=False, strict=True)
        assert isinstance(refusal, Reply)
        assert refusal.wire.decode() == RCPT + "\r\n"
    assert parse_mail(b"FROM:<a@b>", strict=True) == MailFrom("a@b", None, False)
    assert parse_rcpt(b"TO:<a@b>", utf8=False, strict=True) == RcptTo("a@b")


@pytest.mark.slow
@given(st.binary(max_size=60), st.booleans())
def test_no_argument_raises(octets: bytes, utf8: bool) -> None:
    assert isinstance(parse_mail(b"FROM:<" + octets), MailFrom | Reply)
    assert isinstance(parse_rcpt(b"TO:<" + octets + b"@b>", utf8=utf8), RcptTo | Reply)
    assert parse_bdat(octets) is None or octets[:1].isdigit()


@pytest.mark.slow
@given(
    st.text("aB9.-", min_size=1, max_size=12)
    | st.lists(st.sampled_from(["a" * 62, "a-", "9", "."]), max_size=8).map("".join),
    st.text("aB9.-", min_size=1, max_size=12),
)
def test_the_quick_path_takes_the_addresses_of_the_grammar(domain: str, local: str) -> None:
    address = f"{local}@{domain}"
    quick = QUICK_RCPT.match(f"RCPT TO:<{address}>\r\n".encode())
    taken = quick is not None and not has_long_part(quick[1])
    try:
        parse_mailbox(address)
    except AddressError:
        assert not taken
    else:
        assert taken or len(address) > 192


@pytest.mark.parametrize("rest", [b" SIZE=", b" SIZE=1 BODY=", b" BODY=8BIT", b" "])
def test_the_quick_path_takes_no_half_of_a_parameter(rest: bytes) -> None:
    assert QUICK_MAIL.match(b"MAIL FROM:<a@b>%b\r\n" % rest) is None
