"""What the SMTP machine reports to its session.

Rules of this file:

* Events are tuples: cheap to make, compared by value.  Every event is true in a condition.
* Addresses have no angle brackets or source route; otherwise they are as sent by the client.
"""

from __future__ import annotations

from typing import NamedTuple

from metad.errors import Reply


class MailFrom(NamedTuple):
    """MAIL: answer with `answer`.  `sender` is "" for the null path; `size` in octets."""

    sender: str
    size: int | None
    utf8: bool


class RcptTo(NamedTuple):
    """RCPT: answer with `answer`.  A mailbox, or "postmaster", in any case, without a domain."""

    address: str


class BodyChunk(NamedTuple):
    """Wire octets to store as they are: dots stuffed.  More will follow."""

    data: bytes


class EndOfMessage(NamedTuple):
    """The message is complete: answer with `answer` or `answer_each`.

    `octets`: its size as SIZE counts it (RFC 1870: unstuffed, without the final dot line).
    `stuffed_dots`: octets that are in the chunks but not in `octets`, except for the final line.
    `starts_with_header`: the first line is a header field or empty, so that a trace header can be
    put right before it; otherwise an empty line is needed between them. `received`: the number of
    Received: fields in its header. `rest`: its last octets, after those of the chunks before; they
    end in the final dot line.
    """

    octets: int
    stuffed_dots: int
    starts_with_header: bool
    received: int
    rest: bytes = b""


class Aborted(NamedTuple):
    """The message that has begun must be discarded; needs no answer.

    `reply` is the machine's refusal, None if the client gave the message up or disconnected.
    """

    reply: Reply | None


class StartTls(NamedTuple):
    """Write the output (the 220), start TLS as the server, then call `tls_started`."""

    reply: Reply


Event = MailFrom | RcptTo | BodyChunk | EndOfMessage | Aborted | StartTls
