"""New inputs from known ones: a simple mutator, deterministic for a seed.

For longer and smarter runs use campaign.py, with atheris if it is installed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
# Values that random octets seldom produce.
WORDS = (
    b"\r\n", b"\n", b"\r", b"\0", b".", b"\r\n.\r\n", b".\r\n", b"..", b" ", b"<", b">", b"@", b":",
    b"EHLO c\r\n", b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"DATA\r\n", b"BDAT 3 LAST\r\n",
    b"RSET\r\n", b"LHLO c\r\n", b"USER bob\r\n", b"PASS x\r\n", b"RETR 1\r\n", b"TOP 1 0\r\n",
    b"AUTH PLAIN\r\n", b"AUTH SCRAM-SHA-256\r\n", b"=", b"*", b"QUIT\r\n", b"\xff", b"\x80", b"%",
    b"PROXY TCP4 ", b"\r\n\r\n\x00\r\nQUIT\n", b"\x30\x82", b"[", b"]", b'"', b"n,,n=u,r=x",
)  # fmt: skip


def corpus(target: str) -> list[bytes]:
    """The corpus of a target, sorted by name."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


def mutants(target: str, seed: int, count: int) -> Iterator[bytes]:
    """`count` inputs made from the target's corpus."""
    dice = random.Random(f"{target} {seed}")
    known = corpus(target)
    for _ in range(count):
        octets = dice.choice(known)
        for _ in range(dice.randint(1, 6)):
            octets = _mutate(octets, known, dice)
        yield octets


def _mutate(octets: bytes, known: list[bytes], dice: random.Random) -> bytes:
    at = dice.randint(0, len(octets))
    end = min(len(octets), at + dice.choice((0, 1, 1, 2, 4, 16, 64)))
    new = dice.choice(
        (b"", octets[at:end] * 2, dice.choice(WORDS), dice.randbytes(dice.randint(1, 4)))
    )
    if dice.random() < 0.1:
        other = dice.choice(known)
        return octets[:at] + other[dice.randint(0, len(other)) :]
    return octets[:at] + new + octets[end:]
