"""Header fields of a message on the wire: split off, removed, and created to be prepended.

Sans-IO.  Rules of this file:

* The header ends at the first empty line, or with the message, and nowhere else: everything that a
  reader might take for a field is examined.
* A field is removed with its continuation lines, in any case and with any blanks before its colon.
* A header above the limit is refused, not partly parsed: a field could be hidden beyond the limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from metad import limits

# Octets of a header.  Postfix: 100 KiB (header_size_limit), Sendmail 32 KiB (MaxHeadersLength).
HEADER_LIMIT: Final = 128 * limits.KIB
_LINE: Final = 998  # RFC 5322 section 2.1.1
_FOLD: Final = 78
_NAME: Final = re.compile(r"[!-9;-~]{1,70}")
_FOLDING: Final = re.compile(r"\r?\n(?=[ \t])|\r?\n\Z")
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# One field with its continuation lines.
_FIELD: Final = re.compile(
    rb"^([!-9;-~]++)[ \t]*+:((?:[^\n]*+\n)(?:[ \t][^\n]*+\n)*)", re.MULTILINE
)
# The end of the header: an empty line, or the final dot line without one before it.
_END: Final = re.compile(rb"(?:\A|(?<=\r\n))(?:(\r\n)|\.\r\n)")

# Returns whether to remove a field, given its name in lower case and its value.
Test = Callable[[bytes, bytes], bool]


class FieldError(ValueError):
    """A field that is not allowed in a header."""


def make_field(name: str, value: str) -> bytes:
    """A complete field, folded.  Raises FieldError."""
    if not _NAME.fullmatch(name):
        raise FieldError(f"{name[:70]!a} is not a header field name")
    if "\n" in value or "\r" in value:
        value = _FOLDING.sub("", value.replace("\r\r", "\r"))
    value = value.strip()
    if _CONTROLS.search(value):
        raise FieldError(f"{name}: a control character in its value")
    lines = _folded(f"{name}: {value}")
    if any(len(line) > _LINE for line in lines):
        raise FieldError(f"{name}: a line that is too long")
    return b"\r\n".join(lines) + b"\r\n"


def _folded(text: str) -> list[bytes]:
    """Folds into lines of at most 78 octets where there are blanks."""
    lines: list[bytes] = []
    line = b""
    for number, word in enumerate(text.encode("utf-8", "replace").replace(b"\t", b" ").split(b" ")):
        if number > 1 and word and line.strip() and len(line) + 1 + len(word) > _FOLD:
            lines.append(line.rstrip())
            line = b"\t" + word
        else:
            line += (b" " if number else b"") + word
    return [*lines, line.rstrip()]


class HeaderSplitter:
    """Splits the wire octets of one message, fed in pieces, into header and rest.

    `header`: complete with the empty line, once `feed` has returned something or `done`.
    `too_large`: it is above the limit; then no more is kept.
    """

    __slots__ = ("_held", "_searched", "done", "header", "too_large")

    def __init__(self) -> None:
        self.header = b""
        self.done = False
        self.too_large = False
        self._held = bytearray()
        self._searched = 0

    @property
    def held(self) -> int:
        """Octets held."""
        return len(self._held) + len(self.header)

    def feed(self, piece: bytes) -> bytes:
        """The part of the piece after the header."""
        if self.done:
            return piece
        held = self._held
        held += piece
        found = _END.search(held, self._searched)
        if found is None and len(held) <= HEADER_LIMIT:
            self._searched = max(0, len(held) - 4)
            return b""
        # An empty line is the header's; the final dot line is the body's.
        end = len(held) if found is None else found.end() if found[1] else found.end() - 3
        del found  # it exports the buffer
        text = bytes(held)
        held.clear()
        self.done = True
        self.too_large = end > HEADER_LIMIT
        self.header = b"" if self.too_large else text[:end]
        return text[end:]


def without(header: bytes, test: Test) -> bytes:
    """The header without the fields that `test` finds."""
    return _FIELD.sub(lambda one: b"" if test(one[1].lower(), one[2]) else one[0], header)


def remove(header: bytes, fields: Sequence[tuple[str, int]]) -> bytes:
    """The header without `Verdict.remove`: 0: all of a name, n: the n-th, -n: from the end."""
    names = [one[1].lower() for one in _FIELD.finditer(header)]
    wanted: set[tuple[bytes, int]] = set()
    for given, number in fields:
        name = given.lower().encode("ascii", "replace")
        count = names.count(name)
        if number == 0:
            wanted.update((name, n) for n in range(1, count + 1))
        else:
            wanted.add((name, number if number > 0 else count + 1 + number))
    if not wanted.intersection((name, n) for name in set(names) for n in range(1, len(names) + 1)):
        return header
    seen: dict[bytes, int] = {}

    def test(name: bytes, _: bytes) -> bool:
        seen[name] = seen.get(name, 0) + 1
        return (name, seen[name]) in wanted

    return without(header, test)
