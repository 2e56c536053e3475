"""Decodes a message from its wire format: dots unstuffed, no final dot line, LF if wanted.

Rules of this file: pieces of any size give the same result; no Python loop runs per octet; only the
last few octets are held back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from metad.system.osio import Buffer

_END = b".\r\n"


class Unstuffer:
    """Takes the wire octets of one message in pieces and returns the message."""

    __slots__ = ("_before", "_cr", "_held", "_lf")

    def __init__(self, *, lf: bool) -> None:
        """`lf`: lines end in LF, as in files, not in CR LF."""
        self._lf = lf
        self._before = b"\r\n"  # the last two octets returned, as they arrived
        self._held = b""  # at most as long as the final dot line
        self._cr = b""  # a CR whose LF has not arrived yet

    def feed(self, piece: Buffer) -> bytes:
        text = self._held + piece
        cut = max(0, len(text) - len(_END))
        text, self._held = text[:cut], bytes(text[cut:])
        return self._convert(bytes(text))

    def finish(self) -> bytes:
        """The rest.  Raises ValueError if the input does not end in a final dot line."""
        if self._held != _END or self._before != b"\r\n":
            raise ValueError("a message without its end")
        return self._cr

    def _convert(self, text: bytes) -> bytes:
        before = self._before
        whole = before + text
        self._before = whole[-2:]
        # The two preceding octets are shorter than any pattern, so they are not changed.
        text = whole.replace(b"\r\n.", b"\r\n")[2:]
        if not self._lf:
            return text
        text = self._cr + text
        self._cr = b"\r" if text.endswith(b"\r") else b""
        return text[: len(text) - len(self._cr)].replace(b"\r\n", b"\n")


def unstuffed(chunks: Iterable[Buffer], *, lf: bool) -> Iterator[bytes]:
    """A whole message, from the chunks of its wire octets.  Raises ValueError."""
    unstuffer = Unstuffer(lf=lf)
    for chunk in chunks:
        yield unstuffer.feed(chunk)
    yield unstuffer.finish()
