"""The MX records of a domain, asked of the name servers in /etc/resolv.conf.

Python's own resolver knows addresses only.  This asks one question and reads one answer (RFC 1035),
which is all that `metad doctor` needs; a name server that is asked has its own cache and validates.

Rule of this file: whatever comes back, facts or DnsError come out.
"""

from __future__ import annotations

import secrets
import socket
import struct
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
SECONDS = 3.0
_MX, _IN = 15, 1
_HEAD = struct.Struct(">6H")
_FIELDS = struct.Struct(">HHIH")
_TRUNCATED = 0x0200
_NO_SUCH_NAME = 3
_MOST_LABELS = 128


class DnsError(Exception):
    """The question could not be answered; `str()` says why."""


def servers(path: Path = RESOLV_CONF) -> list[tuple[str, int]]:
    """The name servers that the system asks.  Raises DnsError."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError as problem:
        raise DnsError(f"{path}: {problem.strerror}") from None
    words = [line.split() for line in lines]
    found = [
        (word[1].partition("%")[0], 53) for word in words if word[:1] == ["nameserver"] and word[1:]
    ]
    return found or [("127.0.0.1", 53)]


def mail_exchangers(domain: str, asked: list[tuple[str, int]]) -> list[tuple[int, str]]:
    """Preference and name of each MX, the preferred one first; empty if there is none.

    Raises DnsError.
    """
    problem = "no name server"
    for server in asked:
        try:
            return sorted(_ask(domain, server))
        except (OSError, ValueError, IndexError, struct.error) as error:
            problem = f"{server[0]}: {getattr(error, 'strerror', None) or error or 'no answer'}"
    raise DnsError(problem)


def _ask(domain: str, server: tuple[str, int]) -> list[tuple[int, str]]:
    number = secrets.randbelow(1 << 16)
    question = _HEAD.pack(number, 0x0100, 1, 0, 0, 0) + _packed(domain)
    answer = _by_udp(question, server)
    if struct.unpack_from(">H", answer, 2)[0] & _TRUNCATED:
        answer = _by_tcp(question, server)
    return read_answer(answer, number)


def _packed(domain: str) -> bytes:
    labels = domain.rstrip(".").encode("idna").split(b".")
    name = b"".join(bytes([len(one)]) + one for one in labels) + b"\0"
    return name + struct.pack(">HH", _MX, _IN)


def _by_udp(question: bytes, server: tuple[str, int]) -> bytes:
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect(server)
        sock.send(question)
        while (answer := sock.recv(65_535))[:2] != question[:2]:
            continue
        return answer


def _by_tcp(question: bytes, server: tuple[str, int]) -> bytes:
    with socket.create_connection(server, SECONDS) as sock, sock.makefile("rb") as source:
        sock.sendall(struct.pack(">H", len(question)) + question)
        (size,) = struct.unpack(">H", source.read(2))
        return source.read(size)


def read_answer(answer: bytes, number: int) -> list[tuple[int, str]]:
    """The MX records of a reply.  Raises ValueError, IndexError, struct.error."""
    its, flags, questions, answers, _, _ = _HEAD.unpack_from(answer)
    code = flags & 15
    if its != number or not flags & 0x8000:
        raise ValueError("not the answer to the question")
    if code == _NO_SUCH_NAME:
        return []
    if code:
        raise ValueError(f"the name server answers with error {code}")
    at = _HEAD.size
    for _ in range(questions):
        at = _name(answer, at)[1] + 4
    found: list[tuple[int, str]] = []
    for _ in range(answers):
        at = _name(answer, at)[1]
        kind, _, _, size = _FIELDS.unpack_from(answer, at)
        at += _FIELDS.size
        if kind == _MX:
            (preference,) = struct.unpack_from(">H", answer, at)
            found.append((preference, _name(answer, at + 2)[0].lower()))
        at += size
    return found


def _name(answer: bytes, at: int) -> tuple[str, int]:
    """The name at an offset, and where it ends."""
    labels: list[str] = []
    end = -1
    for _ in range(_MOST_LABELS):
        size = answer[at]
        if size >= 0xC0:
            end = at + 2 if end < 0 else end
            at = (size & 0x3F) << 8 | answer[at + 1]
        elif size:
            labels.append(answer[at + 1 : at + 1 + size].decode("ascii", "replace"))
            at += 1 + size
        else:
            return ".".join(labels), at + 1 if end < 0 else end
    raise ValueError("a name without an end")
