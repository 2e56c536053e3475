"""The HTTP/1.1 client that filters use: one request at a time on a persistent connection.

Sans-IO: `ResponseReader` takes octets and returns a response.  docs/decisions.md says why it is our
own.

Rules of this file:

* The server is not trusted: every length has a limit, and anything unexpected is an error.
* No chunked responses.  Servers that check mail send a length or close.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from metad import limits

# Octets: of a response's head, and of its body (rspamd: some KiB, with all symbols).
HEAD_LIMIT: Final = 16 * limits.KIB
BODY_LIMIT: Final = 512 * limits.KIB
# 1xx responses before the final one.
MOST_INTERIM: Final = 8

_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?\r\n")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*\r\n")
_LENGTH: Final = re.compile(rb"[0-9]{1,10}")
# Characters that must not be copied into a request header.
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f]")


class HttpError(Exception):
    """The server does not speak HTTP, sends too much, or stops halfway."""


class Response(NamedTuple):
    """`keep`: the connection may be used again."""

    status: int
    body: bytes
    keep: bool


def request(target: str, fields: list[tuple[str, str]], size: int) -> bytes:
    """The head of a POST.  Control characters in values become blanks."""
    lines = [f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n"]
    for name, value in fields:
        if not value.isprintable() or not value.isascii():
            lines.append(f"{name}: {_UNSAFE.sub(' ', value)}\r\n")
        else:
            lines.append(f"{name}: {value}\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("utf-8", "replace")


class ResponseReader:
    """One response.  `started`: some of it has arrived."""

    __slots__ = ("_body", "_data", "_head", "_interim", "_left", "started")

    def __init__(self) -> None:
        self.started = False
        self._data = b""
        self._head: tuple[int, bool] | None = None
        self._body = bytearray()
        self._interim = 0
        self._left: int | None = (
            None  # octets of the body that have not arrived yet; None: until the end
        )

    def feed(self, data: bytes) -> Response | None:
        """The response, once it is complete.  Raises HttpError."""
        self.started = True
        while self._head is None:
            self._data += data
            end = self._data.find(b"\r\n\r\n")
            if max(end, 0) > HEAD_LIMIT or (end < 0 and len(self._data) > HEAD_LIMIT):
                raise HttpError("its response has a head without an end")
            if end < 0:
                return None
            self._read_head(self._data[: end + 2])
            data, self._data = self._data[end + 4 :], b""
        return self._take(data)

    def eof(self) -> Response:
        """The server has closed.  Raises HttpError unless that is how its response ends."""
        if self._head is None or self._left is not None:
            raise HttpError("it closed the connection before its response was complete")
        return Response(self._head[0], bytes(self._body), False)

    def _take(self, data: bytes) -> Response | None:
        head = self._head
        if head is None:
            return None
        self._body += data
        if self._left is None:
            if len(self._body) > BODY_LIMIT:
                raise HttpError("its response is too large")
            return None
        self._left -= len(data)
        if self._left > 0:
            return None
        if self._left < 0:
            raise HttpError("it sends more than it announced")
        return Response(head[0], bytes(self._body), head[1])

    def _read_head(self, head: bytes) -> None:
        found = _STATUS.match(head)
        if found is None:
            raise HttpError("it does not speak HTTP")
        status, keep = int(found[2]), found[1] == b"1"
        fields = _fields(head, found.end())
        if status < 200:  # 100 Continue
            self._interim += 1
            if self._interim > MOST_INTERIM:
                raise HttpError("its response does not begin")
            return
        if b"transfer-encoding" in fields:
            raise HttpError("its response is chunked")
        connection = fields.get(b"connection", b"").lower()
        keep = connection == b"keep-alive" or (keep and connection != b"close")
        length = fields.get(b"content-length")
        if length is None:
            keep = False
        elif not _LENGTH.fullmatch(length):
            raise HttpError("its response has no length that is a number")
        else:
            self._left = int(length)
            if self._left > BODY_LIMIT:
                raise HttpError("its response is too large")
        self._head = status, keep


def _fields(head: bytes, start: int) -> dict[bytes, bytes]:
    fields: dict[bytes, bytes] = {}
    while start < len(head):
        found = _FIELD.match(head, start)
        if found is None:
            raise HttpError("its response has a malformed header")
        name = found[1].lower()
        if name == b"content-length" and fields.get(name, found[2]) != found[2]:
            raise HttpError("its response has two lengths")
        fields[name] = found[2]
        start = found.end()
    return fields
