"""Counts refusals, by reason.

Rule of this file: the reason follows from the enhanced status code of the reply (RFC 3463), so that
a new error needs no entry here; every refusal is counted in `Cell.REFUSED` and one reason.
"""

from __future__ import annotations

from metad.errors import Reply
from metad.system.shared_memory import Cell, ProcessRow

# By the code without its class: a mailbox is full for now (4.2.2) or permanently (5.2.2).
_REASONS = {
    "1.1": Cell.REFUSED_UNKNOWN,
    "1.3": Cell.REFUSED_SYNTAX,
    "1.7": Cell.REFUSED_SYNTAX,
    "2.1": Cell.REFUSED_DISABLED,
    "2.2": Cell.REFUSED_QUOTA,
    "3.0": Cell.REFUSED_FAILURE,
    "3.1": Cell.REFUSED_SPACE,
    "3.4": Cell.REFUSED_SIZE,
    "6.7": Cell.REFUSED_SYNTAX,
}


def count_refusal(row: ProcessRow, reply: Reply) -> None:
    """Count a refusal of the hub's own."""
    count_reason(row, reason(reply))


def count_reason(row: ProcessRow, cell: Cell) -> None:
    row.add(Cell.REFUSED)
    row.add(cell)


def reason(reply: Reply) -> Cell:
    """Why, by the reply."""
    subject = reply.enhanced[2:]
    if subject.startswith("5."):  # the protocol; 4.5.3 and 5.5.3: too many recipients
        return Cell.REFUSED_OTHER if subject == "5.3" else Cell.REFUSED_SYNTAX
    if subject.startswith("7."):  # policy: a temporary one means that there was too much
        return Cell.REFUSED_RATE if reply.code < 500 else Cell.REFUSED_RELAY
    return _REASONS.get(subject, Cell.REFUSED_OTHER)
