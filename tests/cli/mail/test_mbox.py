"""mbox files: where messages begin, and lines that begin none."""

from __future__ import annotations

import calendar
import time
from pathlib import Path

import pytest

from metad.cli.mail.foreign import Foreign, Item, Note
from metad.cli.mail.mbox import MboxWriter, parse_date, read_mbox
from metad.errors import CannotCreateError, DataError, OsError
from tests.support.import_items import items_of

SEPARATOR = b"From ann@client.test Mon Nov 23 12:00:00 2020\n"


def read(tmp_path: Path, octets: bytes) -> list[Item]:
    path = tmp_path / "in.mbox"
    path.write_bytes(octets)
    return list(items_of(read_mbox(path)))


def test_a_line_of_text_that_begins_with_from_is_no_separator(tmp_path: Path) -> None:
    text = b"Subject: x\n\nhello\n\nFrom now on we meet at ten.\n\nFrom Mon to Fri, 9:00 2020\n"
    items = read(tmp_path, SEPARATOR + text + b"\n" + SEPARATOR + b"Subject: y\n\nz\n")
    assert [type(one) for one in items] == [Foreign, Foreign]
    assert isinstance(items[0], Foreign)
    assert items[0].octets == text.replace(b"\n", b"\r\n")


@pytest.mark.parametrize(
    "line",
    [
        b"From ann@client.test Sat Jan  3 01:05:34 1996",
        b"From ann@client.test  Sat Jan  3 01:05 1996",
        b"From ann@client.test Sat Jan  3 01:05:34 MET 1996",
        b"From ann@client.test Sat Jan  3 01:05:34 MET DST 1996",
        b"From ann@client.test Sat Jan  3 01:05:34 +0100 1996",
        b"From ann@client.test Sat Jan  3 01:05:34 1996 +0100",
        b"From ann@client.test Sat Jan  3 01:05:34 1996 remote from uucp",
        b"From ann@client.test Sat, 3 Jan 01:05:34 1996",
        b'From "ann lee"@client.test Sat Jan  3 01:05:34 1996',
        b"From Sat Jan  3 01:05:34 1996",
        b"From - Sat Jan 03 01:05:34 1996\r",
    ],
)
def test_separators_of_other_programs_are_recognised(tmp_path: Path, line: bytes) -> None:
    items = read(tmp_path, SEPARATOR + b"Subject: x\n\na\n\n" + line + b"\nSubject: y\n\nb\n")
    assert [one.octets[-3:] for one in items if isinstance(one, Foreign)] == [b"a\r\n", b"b\r\n"]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Sat Jan  3 01:05:34 1996", (1996, 1, 3, 1, 5, 34)),
        ("Sat Jan  3 01:05 1996", (1996, 1, 3, 1, 5, 0)),
        ("Sat Jan  3 01:05:34 +0100 1996", (1996, 1, 3, 0, 5, 34)),
        ("Sat Jan  3 01:05:34 MET 1996", (1996, 1, 3, 1, 5, 34)),
        ("Sat, 31 Jan 01:05:34 1996", (1996, 1, 31, 1, 5, 34)),
    ],
)
def test_dates_are_read(text: str, moment: tuple[int, ...]) -> None:
    assert parse_date(text) == calendar.timegm((*moment, 0, 0, 0)) * 1_000_000


@pytest.mark.parametrize("text", ["Sat Feb 31 01:05:34 1996", "Sat Jan  3 25:05:34 1996", "", "x"])
def test_a_date_that_is_none_is_unknown(text: str) -> None:
    assert parse_date(text) == 0


@pytest.mark.parametrize("year", [1960, time.gmtime().tm_year + 2])
def test_a_date_before_1970_or_in_the_future_is_unknown(tmp_path: Path, year: int) -> None:
    line = b"From ann@client.test Mon Nov 23 12:00:00 %d\n" % year
    (item,) = read(tmp_path, line + b"Subject: x\n\na\n")
    assert isinstance(item, Foreign)
    assert item.time_us == 0


def test_the_internal_message_of_uw_imap_is_left_out_and_named(tmp_path: Path) -> None:
    internal = (
        b"From MAILER-DAEMON Mon Nov 23 12:00:00 2020\nFrom: Mail System Internal Data <x@y>\n"
        b"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 1\n\ntext\n\n"
    )
    note, message = read(tmp_path, internal + SEPARATOR + b"Subject: x\n\na\n")
    assert isinstance(note, Note)
    assert "internal message" in note.text
    assert isinstance(message, Foreign)


def test_what_is_not_an_mbox_file_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r":1: not an mbox file"):
        read(tmp_path, b"Subject: x\n\nFrom now on\n")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SEPARATOR + b"a\n")
    (tmp_path / "link").symlink_to("secret")
    with pytest.raises(OsError, match="link"):
        list(read_mbox(tmp_path / "link"))


def test_what_is_written_is_read_back_and_nothing_is_overwritten(tmp_path: Path) -> None:
    body = b"Subject: x\r\n\r\nFrom here\r\n>From there\r\n"
    message = Foreign("", body, "", 1_600_000_000_000_000, "ann@client.test")
    writer = MboxWriter(tmp_path / "out")
    writer.write(message)
    writer.write(message)
    writer.close()
    items = list(items_of(read_mbox(tmp_path / "out")))
    assert [one.octets for one in items if isinstance(one, Foreign)] == [body, body]
    first = items[0]
    assert isinstance(first, Foreign)
    assert (first.time_us, first.sender) == (message.time_us, message.sender)
    with pytest.raises(CannotCreateError):
        MboxWriter(tmp_path / "out")
