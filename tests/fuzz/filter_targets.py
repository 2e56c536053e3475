"""Fuzz targets of the filters: rspamd's answers, and the header that they change.

The oracles are independent of the code: the email package, and a line-by-line parser of headers.
"""

from __future__ import annotations

import contextlib
import email
import math
import re

from metad.filters.authentication import NAME, is_ours, results
from metad.filters.base import Preferences, Verdict
from metad.filters.chain import FailedError, _checked
from metad.filters.fields import FieldError, HeaderSplitter, make_field, remove, without
from metad.filters.http import HttpError, Response, ResponseReader
from metad.filters.results import MOST_FIELDS, MOST_TEXT, REPLY_TEXT, ReportError, read_report
from metad.filters.rspamd import RspamdFilter, _Common
from tests.fuzz.cuts import same_for_every_cut

HOSTNAME = "mx.example.org"
WISHES = (Preferences(), Preferences(mark=5.0, refuse=9.0), Preferences(off=True))
_COMMENT = re.compile(rb"\([^()]*\)")
# Our name, where a careless reader of Authentication-Results would see it.
_CLAIM = re.compile(rb'\s*"?mx\.example\.org\.?"?\s*(?:\d+\s*)?(?:;|\Z)', re.IGNORECASE)


def is_one_field(field: bytes) -> bool:
    """Whether a line-by-line reader finds a single field."""
    lines = field.split(b"\r\n")
    return (
        lines.pop() == b""
        and bool(re.match(rb"[!-9;-~]+:", lines[0]))
        and all(line[:1] in (b" ", b"\t") and line.strip() for line in lines[1:])
        and not any(octet in b"\r\n\0" for line in lines for octet in line)
    )


# -- rspamd's answers


def http(octets: bytes) -> None:
    """A response, or an error, the same for every cut."""

    def run(pieces: list[bytes]) -> object:
        reader = ResponseReader()
        found: Response | None = None
        try:
            for piece in pieces:
                if found is not None and piece:
                    return "refused"  # more than announced
                found = reader.feed(piece)
            return found if found is not None else reader.eof()
        except HttpError as error:
            assert "\n" not in str(error)
            return "refused"

    same_for_every_cut(octets, run)


def rspamd(octets: bytes) -> None:
    """The JSON of a report, to the fields of a message and the reply to a client."""
    try:
        report = read_report(octets)
    except ReportError as error:
        assert "\n" not in str(error)
        return
    assert math.isfinite(report.score)
    assert all(math.isfinite(one.score) for one in report.symbols.values())
    assert len(report.text) <= REPLY_TEXT
    assert report.text.isascii()
    assert report.text.isprintable() or not report.text
    assert len(report.add) <= MOST_FIELDS
    assert sum(len(name) + len(value) for name, value in report.add) <= MOST_TEXT
    found = results(HOSTNAME, report.symbols, "a@b.example", "helo")
    if found is not None:
        assert is_one_field(make_field(*found))
        assert found[0] == NAME
        assert is_ours(f" {found[1]}\r\n".encode(), HOSTNAME)
        assert ";" not in found[1].replace("; ", "")
    judged = RspamdFilter()
    judged._junk = True
    judged._warned = {"rewrite"}
    judged._report = lambda line: None
    common = _Common((found,) if found else (), report.add, report.remove)
    verdicts = {one: judged._verdict(report, one, common) for one in WISHES}
    assert verdicts[WISHES[2]] == Verdict()
    with contextlib.suppress(FailedError):
        for verdict in _checked(verdicts, WISHES).values():
            for name, value in verdict.add:
                assert is_one_field(make_field(name, value))


# -- the header


def fields_of(header: bytes) -> list[tuple[bytes, bytes]]:
    """Name in lower case and whole text of each field; b"" is the name of other lines."""
    found: list[tuple[bytes, bytes]] = []
    for line in header.splitlines(keepends=True):
        if line[:1] in (b" ", b"\t") and found and found[-1][0]:
            found[-1] = found[-1][0], found[-1][1] + line
        elif match := re.match(rb"([!-9;-~]+)[ \t]*:", line):
            found.append((match[1].lower(), line))
        else:
            found.append((b"", line))
    return found


def milter(octets: bytes) -> None:
    """NAME NUL VALUE NUL NUMBER NUL HEADER: a field to add, and one to remove by its number."""
    name, value, number, text = [*octets.split(b"\0", 3), b"", b"", b""][:4]
    shown, content = (part.decode("utf-8", "surrogateescape") for part in (name, value))
    with contextlib.suppress(FieldError):
        assert is_one_field(make_field(shown, content))
    wire = text.replace(b"\0", b"").replace(b"\r", b"").replace(b"\n", b"\r\n") + b"\r\n.\r\n"
    same_for_every_cut(wire, _split)
    header = _split([wire])
    cleaned = without(header, is_forged)
    _check_cleaned(header, cleaned)
    count = int(number) if re.fullmatch(rb"-?[0-9]{1,3}", number) else 0
    _check_removed(header, shown, count)


def is_forged(name: bytes, value: bytes) -> bool:
    return name == NAME.lower().encode() and is_ours(value, HOSTNAME)


def _split(pieces: list[bytes]) -> bytes:
    splitter = HeaderSplitter()
    rest = b"".join([splitter.feed(piece) for piece in pieces])
    assert splitter.done
    assert splitter.header + rest == b"".join(pieces)
    assert b"\r\n\r\n" not in splitter.header[:-1]
    return splitter.header


def _check_cleaned(header: bytes, cleaned: bytes) -> None:
    """No field claiming to be ours is left for any reader, and nothing else is missing."""
    for value in email.message_from_bytes(cleaned).get_all(NAME, []):
        plain = str(value).encode("utf-8", "surrogateescape")
        while (shorter := _COMMENT.sub(b"", plain)) != plain:
            plain = shorter
        assert not _CLAIM.match(plain), cleaned
    kept = [
        text for name, text in fields_of(header) if not is_forged(name, text.partition(b":")[2])
    ]
    assert cleaned == b"".join(kept)


def _check_removed(header: bytes, name: str, number: int) -> None:
    wanted = name.lower().encode("ascii", "replace")
    at = [place for place, one in enumerate(fields_of(header)) if wanted and one[0] == wanted]
    if number > 0:
        at = at[number - 1 : number]
    elif number < 0:
        at = at[number : len(at) + number + 1] if -number <= len(at) else []
    left = [text for place, (_, text) in enumerate(fields_of(header)) if place not in at]
    assert remove(header, [(name, number)]) == b"".join(left), (header, name, number)


FILTER_TARGETS = {"http": http, "rspamd": rspamd, "milter": milter}
