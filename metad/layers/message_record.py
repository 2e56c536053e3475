"""A message as stored in the log: its envelope, with the exact size that each mailbox shows."""

from __future__ import annotations

from collections.abc import Sequence

from metad.layers.base import Done, Envelope
from metad.protocol.trace import IN_FRONT_SIZE
from metad.store.log import record
from metad.store.log.encode import Append
from metad.system.osio import Buffer


def append_message(
    envelope: Envelope, parts: Sequence[Buffer] | None, wire_octets: int, done: Done, now_ns: int
) -> Append:
    """The record of a message, with the exact size that POP3 shows in each mailbox.

    `wire_octets`: the size of the body, without the trace.  `now_ns`: the wall clock, not hub time:
    expiry depends on when the message really arrived.
    """
    message_id, client, helo, sender, given, trace, octets, stuffed, uid, time_us = envelope
    trace_octets = len(trace)
    octets += IN_FRONT_SIZE + len(sender.encode()) + trace_octets
    shown: tuple[record.RecipientFields, ...]
    if len(given) == 1:  # nearly all messages
        ((mailbox, address),) = given
        shown = ((mailbox, address, octets + len(address.encode())),)
    else:
        shown = tuple([(m, a, octets + len(a.encode())) for m, a in given])
    if not time_us:
        time_us = now_ns // 1000
    kept = (time_us, client, helo, sender, shown, stuffed, uid)
    packed = record.pack_envelope(kept)
    item = Append(message_id, packed, parts, trace_octets + wire_octets, done, shown)
    item.uid = uid
    return item
