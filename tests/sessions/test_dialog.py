"""What metad trace shows of a dialogue: everything except credentials and content, however it is
cut."""

from __future__ import annotations

import random

import pytest

from metad.sessions.dialog import HIDDEN, LINE, LISTED, Pop3Dialog, SmtpDialog
from tests.support import sizes

SECRET = b"s3cr3t"


def run(dialog, script, cut=None):
    """Lines from a script of (side, octets); `cut` splits the octets."""
    found = []
    for side, octets in script:
        for piece in cut(octets) if cut else [octets]:
            if side == "C":
                found += [("C", text) for text in dialog.client(piece)]
            else:
                found += dialog.server(piece)
    return found


def texts(found):
    return [f"{side}: {text}" for side, text in found]


MAIL = [
    ("S", b"220 hub\r\n"),
    ("C", b"EHLO client\r\n"),
    ("S", b"250-hub\r\n250 PIPELINING\r\n"),
    ("C", b"MAIL FROM:<a@b.org>\r\nRCPT TO:<c@d.org>\r\nDATA\r\n"),
    ("S", b"250 Ok\r\n250 Ok\r\n354 go\r\n"),
    ("C", b"Subject: s3cr3t\r\n\r\nRCPT TO:<s3cr3t@x>\r\n..\r\n.\r\nQUIT\r\n"),
    ("S", b"250 queued\r\n221 bye\r\n"),
]
SHOWN = [
    "S: 220 hub", "C: EHLO client", "S: 250-hub", "S: 250 PIPELINING", "C: MAIL FROM:<a@b.org>",
    "C: RCPT TO:<c@d.org>", "C: DATA", "S: 250 Ok", "S: 250 Ok", "S: 354 go",
    "C: [a message of 46 bytes]", "C: QUIT", "S: 250 queued", "S: 221 bye",
]  # fmt: skip


def test_a_message_is_a_number_of_bytes():
    assert texts(run(SmtpDialog(), MAIL)) == SHOWN


def test_pieces_of_any_size_give_the_same():
    dice = random.Random(sizes.SEED)

    def cut(octets):
        while octets:
            size = dice.randrange(1, 9)
            yield octets[:size]
            octets = octets[size:]

    for _ in range(50):
        assert texts(run(SmtpDialog(), MAIL, cut)) == SHOWN
        assert texts(run(Pop3Dialog(), LOGIN, cut)) == SHOWN_LOGIN


def test_lmtp_answers_each_recipient():
    script = [
        ("C", b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@x>\r\nRCPT TO:<b@x>\r\n"),
        ("C", b"RCPT TO:<c@x>\r\nDATA\r\n"),
        ("S", b"250 hub\r\n250 Ok\r\n250 Ok\r\n550 no\r\n250 Ok\r\n354 go\r\n"),
        ("C", b"s3cr3t\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<a@x>\r\nDATA\r\n"),
        ("S", b"250 a\r\n452 c\r\n250 Ok\r\n250 Ok\r\n354 go\r\n"),
        ("C", b"s3cr3t\r\n.\r\n"),
        ("S", b"250 a\r\n"),
    ]
    found = texts(run(SmtpDialog(), script))
    assert found.count("C: [a message of 11 bytes]") == 2
    assert "s3cr3t" not in "".join(found)


def test_chunks_are_a_number_of_bytes():
    script = [
        ("C", b"BDAT 6\r\ns3cr3tBDAT 8 LAST\r\ns3cr3t\r\n"),
        ("S", b"250 Ok\r\n250 queued\r\n"),
        ("C", b"QUIT\r\n"),
    ]
    assert texts(run(SmtpDialog(), script)) == [
        "C: BDAT 6", "C: [a chunk of 6 bytes]", "C: BDAT 8 LAST", "C: [a chunk of 8 bytes]",
        "S: 250 Ok", "S: 250 queued", "C: QUIT",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "script",
    [
        # Content that arrives before the reply, and DATA is refused.
        [("C", b"DATA\r\nHELP s3cr3t\r\n.\r\n"), ("S", b"503 no\r\n500 x\r\n500 y\r\n")],
        # ... and is accepted.
        [("C", b"DATA\r\ns3cr3t\r\n.\r\n"), ("S", b"354 go\r\n250 Ok\r\n")],
        # Credentials, which this hub takes from no client by SMTP.
        [("C", b"AUTH PLAIN s3cr3t\r\n"), ("S", b"502 no\r\n")],
        [("C", b"AUTH LOGIN\r\ns3cr3t\r\ns3cr3t\r\n"), ("S", b"502 no\r\n")],
        [("C", b"AUTH LOGIN\r\n"), ("S", b"334 s3cr3t\r\n"), ("C", b"s3cr3t\r\n"),
         ("S", b"235 ok\r\n")],
        [("C", b"AUTH LOGIN\r\n"), ("S", b"502 no\r\n"), ("C", b"s3cr3t\r\n")],
        # A message whose end only the session recognises.
        [("C", b"DATA\n"), ("S", b"354 go\r\n"), ("C", b"s3cr3t\n.\n"), ("S", b"250 Ok\r\n")],
    ],
)  # fmt: skip
def test_nothing_private_comes_out_of_smtp(script):
    found = texts(run(SmtpDialog(), script))
    assert SECRET.decode() not in "".join(found)
    assert len(found) >= 2


LOGIN = [
    ("S", b"+OK ready\r\n"),
    ("C", b"CAPA\r\nUSER ann@x.org\r\nPASS s3cr3t\r\n"),
    ("S", b"+OK\r\nTOP\r\nUIDL\r\n.\r\n+OK\r\n+OK 1 message\r\n"),
    ("C", b"LIST 1\r\nUIDL\r\nTOP 1 0\r\nRETR 1\r\nDELE 1\r\nQUIT\r\n"),
    ("S", b"+OK 1 60\r\n+OK\r\n1 abc\r\n.\r\n+OK\r\nSubject: s3cr3t\r\n\r\n.\r\n"),
    ("S", b"+OK 60 bytes\r\nSubject: s3cr3t\r\n\r\n+OK s3cr3t\r\n..\r\n.\r\n+OK\r\n+OK bye\r\n"),
]
SHOWN_LOGIN = [
    "S: +OK ready", "C: CAPA", "C: USER ann@x.org", f"C: PASS {HIDDEN}", "S: +OK", "S: TOP",
    "S: UIDL", "S: .", "S: +OK", "S: +OK 1 message", "C: LIST 1", "C: UIDL", "C: TOP 1 0",
    "C: RETR 1", "C: DELE 1", "C: QUIT", "S: +OK 1 60", "S: +OK", "S: 1 abc", "S: .", "S: +OK",
    "S: [a message of 22 bytes]", "S: +OK 60 bytes", "S: [a message of 38 bytes]", "S: +OK",
    "S: +OK bye",
]  # fmt: skip


def test_a_login_and_a_message_by_pop3():
    assert texts(run(Pop3Dialog(), LOGIN)) == SHOWN_LOGIN


@pytest.mark.parametrize(
    "script",
    [
        [("C", b"AUTH PLAIN s3cr3t\r\n"), ("S", b"+OK\r\n")],
        [("C", b"AUTH PLAIN\r\ns3cr3t\r\n"), ("S", b"+ \r\n+OK\r\n")],
        [("C", b"AUTH SCRAM-SHA-256 s3cr3t\r\n"), ("S", b"+ s3cr3t\r\n"), ("C", b"s3cr3t\r\n"),
         ("S", b"+ s3cr3t\r\n"), ("C", b"\r\n"), ("S", b"-ERR [AUTH] no\r\n")],
        [("C", b"APOP ann s3cr3t\r\n"), ("S", b"-ERR\r\n")],
        [("C", b"AUTH PLAIN\r\n"), ("S", b"-ERR no\r\n"), ("C", b"s3cr3t\r\n"), ("S", b"-ERR\r\n")],
        [("C", b"pass s3cr3t with blanks\r\n"), ("S", b"-ERR\r\n")],
        [("C", b"s3cr3t\r\n"), ("S", b"-ERR\r\n")],
    ],
)  # fmt: skip
def test_nothing_private_comes_out_of_pop3(script):
    found = texts(run(Pop3Dialog(), script))
    assert SECRET.decode() not in "".join(found)
    assert len(found) >= 2


def test_a_message_that_is_refused_is_no_content():
    script = [("C", b"RETR 9\r\nNOOP\r\n"), ("S", b"-ERR no such\r\n+OK\r\n")]
    assert texts(run(Pop3Dialog(), script))[2:] == ["S: -ERR no such", "S: +OK"]


def test_of_a_long_listing_only_the_beginning_is_shown():
    lines = b"".join(b"%d 10\r\n" % number for number in range(1, 101))
    script = [("C", b"LIST\r\nNOOP\r\n"), ("S", b"+OK\r\n" + lines + b".\r\n+OK noop\r\n")]
    found = texts(run(Pop3Dialog(), script))
    assert len(found) == 2 + 1 + LISTED + 1 + 1
    assert found[-2:] == [f"S: [{100 - LISTED} more lines]", "S: +OK noop"]


def test_a_line_without_an_end_and_one_with_control_characters():
    dialog = SmtpDialog()
    found = run(dialog, [("C", b"EHLO " + b"x" * 200_000), ("C", b"\r\nEHLO \x1b[2J\r\n")])
    assert len(found[0][1]) == LINE + 1
    assert found[-1] == ("C", "EHLO \\x1b[2J")
    assert len(dialog._client.rest) < 100_000


@pytest.mark.parametrize("kind", [SmtpDialog, Pop3Dialog])
def test_any_bytes_give_lines_and_no_error(kind):
    dice = random.Random(sizes.SEED)
    words = [b"DATA\r\n", b"354 x\r\n", b"+OK\r\n", b"RETR 1\r\n", b".\r\n", b"\r\n", b"BDAT 9\r\n",
             b"AUTH X\r\n", b"\0\xff", b"LIST\r\n", b"250-x\r\n", b"+ \r\n"]  # fmt: skip
    for _ in range(300):
        script = [(dice.choice("CS"), dice.choice(words)) for _ in range(40)]
        for _, text in run(kind(), script):
            assert text.isprintable()
