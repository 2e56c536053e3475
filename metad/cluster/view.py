"""The view: who is a member of the cluster, in which state, and how many copies there are.

Rules of this file:

* A view never changes.  A change makes another one, with the next epoch (`changed`).
* All nodes compute the same of one view, on any machine: integers only, no floating point.
* A view has one encoding, canonical JSON, so that nodes can compare digests.  What is not exactly
  that encoding is refused.  An unknown field would change what the view means.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from metad.errors import ClusterError
from metad.limits import CLUSTER_COPIES, CLUSTER_VIEW, CLUSTER_WEIGHT, KIB

FORMAT = 1
DIGEST_SIZE = 16
MOST_NUMBER = 0xFFFF  # a node's number takes two bytes of each message id
MOST_EPOCH = 0xFFFFFFFF  # and an epoch four bytes of each frame's head
# Mailboxes of which a view remembers something.
LINES: Final = 4096
_MAKER = slice(8, 10)  # where a message id has the number of the node that made it
_HEX32 = re.compile(r"[0-9a-f]{32}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"[0-9A-Za-z.:\[\]%-]{1,64}")


class Membership(StrEnum):
    """What a member takes part in."""

    ENTERING = "entering"  # it is written to while too few are active
    ACTIVE = "active"
    DRAINING = "draining"  # active, and the last in every line
    ABSENT = "absent"
    REMOVED = "removed"  # its number is never used again


SERVING = frozenset({Membership.ACTIVE, Membership.DRAINING})


@dataclass(frozen=True, slots=True)
class Member:
    """One node.  `fingerprint`: SHA-256 of its certificate in DER.  `healed`: the mail that it has
    is on enough other members, so its absence does not count."""

    number: int
    address: str
    fingerprint: str
    state: Membership
    healed: bool
    weight: int = 100

    def __post_init__(self) -> None:
        _check(_is_within(self.number, 1, MOST_NUMBER), "number")
        _check(_is_text(self.address, _ADDRESS), "address")
        _check(_is_text(self.fingerprint, _HEX64), "fingerprint")
        _check(isinstance(self.state, Membership), "state")
        _check(isinstance(self.healed, bool), "healed")
        _check(_is_within(self.weight, 1, CLUSTER_WEIGHT), "weight")


@dataclass(frozen=True)
class View:
    """`copies` is the number of copies that rule Write counts; `read_copies` that of rule Read.
    They differ while `copies` is being changed.  `alone`: "refuse" or "accept" mail on fewer."""

    cluster: str
    epoch: int
    members: tuple[Member, ...]
    copies: int
    read_copies: int
    alone: str

    def __post_init__(self) -> None:
        _check(_is_text(self.cluster, _HEX32), "cluster")
        _check(_is_within(self.epoch, 1, MOST_EPOCH), "epoch")
        _check(_is_within(self.copies, 1, CLUSTER_COPIES), "copies")
        _check(_is_within(self.read_copies, 1, CLUSTER_COPIES), "read_copies")
        _check(self.alone in ("refuse", "accept"), "alone")
        numbers = [member.number for member in self.members]
        _check(bool(numbers) and numbers == sorted(set(numbers)), "members")

    # -- numbers of members, each in ascending order

    def those(self, *states: Membership) -> tuple[int, ...]:
        return tuple(member.number for member in self.members if member.state in states)

    @cached_property
    def active(self) -> tuple[int, ...]:
        """Those that serve, draining ones included."""
        return self.those(*SERVING)

    @cached_property
    def keeping(self) -> tuple[int, ...]:
        """The active ones that do not drain."""
        return self.those(Membership.ACTIVE)

    @cached_property
    def counting(self) -> tuple[int, ...]:
        """Those whose copies count in rule Write."""
        return self.keeping if len(self.keeping) >= self.copies else self.active

    @cached_property
    def entering(self) -> tuple[int, ...]:
        return self.those(Membership.ENTERING)

    @cached_property
    def unhealed(self) -> tuple[int, ...]:
        """Those that do not serve and may have the only copy of a message."""
        away = (one for one in self.members if one.state not in SERVING and not one.healed)
        return tuple(member.number for member in away)

    @cached_property
    def short(self) -> bool:
        """Whether fewer than `copies` members are active."""
        return len(self.active) < self.copies

    def member(self, number: int) -> Member | None:
        return self._by_number.get(number)

    @cached_property
    def _by_number(self) -> dict[int, Member]:
        return {member.number: member for member in self.members}

    # -- where mail belongs

    def line(self, mailbox: int) -> tuple[int, ...]:
        """The active members in the order in which they take mail of this mailbox."""
        known = self._lines
        line = known.get(mailbox)
        if line is None:
            box = mailbox.to_bytes(4, "big")
            line = tuple([number for group in self._groups for number in _ranked(box, group)])
            if len(known) >= LINES:
                known.clear()
            known[mailbox] = line
        return line

    @cached_property
    def _lines(self) -> dict[int, tuple[int, ...]]:
        return {}

    @cached_property
    def first_peers(self) -> dict[tuple[int, int], tuple[int, ...] | None]:
        """What rules.first_peers has found, by member and mailbox."""
        return {}

    def home(self, mailbox: int) -> int:
        """The first in line.  Raises ClusterError if no member is active."""
        line = self.line(mailbox)
        if not line:
            raise ClusterError("no member of the cluster is active")
        return line[0]

    def expected(self, mailbox: int, message_id: bytes) -> tuple[int, ...]:
        """Where copies belong: home, the message's maker unless it drains, the rest of the line."""
        line, number = self.line(mailbox), int.from_bytes(message_id[_MAKER], "big")
        maker = (number,) if number in self.keeping else ()
        return tuple(dict.fromkeys((*line[:1], *maker, *line)))[: self.copies]

    @cached_property
    def _groups(self) -> tuple[tuple[Member, ...], ...]:
        """Active members, then draining ones; a group that is empty is left out."""
        both = (
            tuple(member for member in self.members if member.state is state)
            for state in (Membership.ACTIVE, Membership.DRAINING)
        )
        return tuple(group for group in both if group)

    # -- changes

    def changed(self, **values: Any) -> View:
        """Another view, of the next epoch."""
        return replace(self, epoch=self.epoch + 1, **values)

    def with_member(self, number: int, **values: Any) -> tuple[Member, ...]:
        """The members, one of them changed: for `changed(members=...)`."""
        return tuple(
            replace(member, **values) if member.number == number else member
            for member in self.members
        )

    # -- encoding

    @cached_property
    def _encoded(self) -> bytes:
        values = asdict(self) | {"format": FORMAT}
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode("ascii")

    def encode(self) -> bytes:
        return self._encoded

    @cached_property
    def digest(self) -> bytes:
        return blake2b(self._encoded, digest_size=DIGEST_SIZE).digest()

    @staticmethod
    def decode(data: bytes) -> View:
        """Raises ClusterError for whatever `encode` does not make."""
        if len(data) > CLUSTER_VIEW:
            raise ClusterError(f"a view is longer than {CLUSTER_VIEW // KIB} KiB")
        try:
            view = _read(json.loads(data))
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ClusterError("a view cannot be read") from None
        if view.encode() != data:
            raise ClusterError("a view is not in its canonical encoding")
        return view


_MEMBER_FIELDS = {field.name for field in fields(Member)}
_VIEW_FIELDS = {field.name for field in fields(View)} | {"format"}


def _read(found: Any) -> View:
    """Raises ClusterError, and what a value of another type raises."""
    _check(isinstance(found, dict) and found.get("format") == FORMAT, "format")
    _check(found.keys() == _VIEW_FIELDS, "set of fields")
    members = tuple(_read_member(one) for one in found.pop("members"))
    del found["format"]
    return View(members=members, **found)


def _read_member(found: Any) -> Member:
    _check(isinstance(found, dict) and found.keys() == _MEMBER_FIELDS, "set of a member's fields")
    return Member(**found | {"state": Membership(found["state"])})


def _check(good: bool, what: str) -> None:
    if not good:
        raise ClusterError(f"a view has a bad {what}")


def _is_within(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_text(value: object, pattern: re.Pattern[str]) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _ranked(box: bytes, group: tuple[Member, ...]) -> list[int]:
    """Rendezvous hashing by weight: each member's share of the mailboxes is its weight's."""
    hashes = [(xxh3_64_intdigest(box + one.number.to_bytes(2, "big")), one) for one in group]
    if len({one.weight for one in group}) == 1:  # the order of the hashes is the order
        return [number for _, number in sorted((-value, one.number) for value, one in hashes)]
    scores = ((_score(value, one.weight), one.number) for value, one in hashes)
    return [number for _, number in sorted(scores)]


def _score(value: int, weight: int) -> tuple[int, int]:
    """Smaller is better: -log2 of the hash as a fraction, divided by the weight; then the hash."""
    return (_minus_log2(value) << 32) // weight, -value


def _minus_log2(value: int) -> int:
    """-log2((value + 1) / 2^64), times 2^32, digit by digit: the same on every machine."""
    x = value + 1
    whole = x.bit_length() - 1
    mantissa = x << 64 - whole  # between 1 and 2, times 2^64
    digits = 0
    for _ in range(32):
        mantissa = mantissa * mantissa >> 64
        digits <<= 1
        if mantissa >> 65:
            mantissa >>= 1
            digits |= 1
    return (64 - whole << 32) - digits
