"""The Message-ID of a message, for the log."""

from __future__ import annotations

from metad.loglines import clean

# Octets at the beginning of a message that are searched for its Message-ID.
SEARCHED = 4096
_NAME = b"\nmessage-id:"


def find_message_id(head: bytes) -> str:
    """The Message-ID without its brackets, from the first octets of a message; "" if there is
    none."""
    at = head.find(b"\r\nMessage-ID: <", 0, SEARCHED)  # as most programs spell it
    if at >= 0 and head.find(b"\r\n\r\n", 0, at + 4) < 0:
        value, bracket, _ = head[at + 15 : at + 512].partition(b">\r\n")
        if bracket and value.isascii() and (text := value.decode()).isprintable():
            return text
    return _find_anyhow(head)


def _find_anyhow(head: bytes) -> str:
    end = head.find(b"\r\n\r\n", 0, SEARCHED)
    head = head[: end if end >= 0 else SEARCHED]
    at = (b"\n" + head.lower()).find(_NAME)
    if at < 0:
        return ""
    value = head[at + len(_NAME) - 1 : at + 512]
    # RFC 5322 section 3.2.2: the field may be folded directly after its name.
    line = value.lstrip(b" \t\r\n").partition(b"\r\n")[0].strip()
    return clean(line.strip(b"<>").decode("utf-8", "replace"))
