"""The view: one encoding, one digest, the same placement everywhere; nothing else is read."""

from __future__ import annotations

import json
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metad.cluster.view import Member, Membership, View
from metad.errors import ClusterError
from tests.cluster.views import make_member, make_view, random_view
from tests.support.sizes import SEED, reached, scaled

TWO = make_view(make_member(1), make_member(2))


@pytest.mark.slow
def test_a_view_is_read_as_it_was_written() -> None:
    random = Random(f"{SEED} views")
    for _ in range(scaled(300)):
        view = random_view(random)
        again = View.decode(view.encode())
        assert again == view
        assert again.digest == view.digest


def test_the_encoding_stays_what_it_is() -> None:
    """Nodes of different releases compare digests."""
    assert TWO.digest.hex() == "9583bbafd38c79bdb9d7fe9ff1691391"
    assert json.loads(TWO.encode())["members"][0] == {
        "number": 1,
        "address": "127.0.0.2:7525",
        "fingerprint": f"{1:064x}",
        "state": "active",
        "healed": False,
        "weight": 100,
    }


def test_placement_stays_what_it_is() -> None:
    """Another order in another release would put mail where the other does not look for it."""
    three = make_view(*(make_member(number) for number in (1, 2, 3)))
    heavy = make_view(make_member(1), make_member(2, weight=300), make_member(3, weight=57))
    assert [three.line(mailbox) for mailbox in range(5)] == [
        (2, 1, 3),
        (1, 2, 3),
        (2, 3, 1),
        (2, 1, 3),
        (1, 3, 2),
    ]
    assert [heavy.line(mailbox) for mailbox in range(5)] == [
        (2, 1, 3),
        (2, 1, 3),
        (2, 3, 1),
        (2, 1, 3),
        (1, 2, 3),
    ]


def test_every_change_has_a_digest_of_its_own() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"copies": 1},
        {"read_copies": 1},
        {"alone": "accept"},
        {"cluster": "ab" * 16},
        {"members": TWO.members[:1]},
        {"members": TWO.with_member(2, state=Membership.ABSENT)},
        {"members": TWO.with_member(2, healed=True)},
        {"members": TWO.with_member(2, weight=101)},
        {"members": TWO.with_member(2, address="127.0.0.9:1")},
        {"members": TWO.with_member(2, fingerprint="f" * 64)},
    ]
    views = [TWO, *(TWO.changed(**change) for change in changes)]
    assert len({view.digest for view in views}) == len(views)
    assert {view.epoch for view in views[1:]} == {2}


# -- placement


@pytest.mark.slow
def test_a_share_of_the_mailboxes_is_the_share_of_the_weight() -> None:
    weights = {1: 100, 2: 300, 3: 600}
    view = make_view(*(make_member(number, weight=weight) for number, weight in weights.items()))
    homes = Counter(view.home(mailbox) for mailbox in range(20_000))
    for number, weight in weights.items():
        assert homes[number] == pytest.approx(20 * weight, rel=0.05)


def test_equal_weights_are_as_no_weights() -> None:
    """The quick way for equal weights gives the order of the general one."""
    plain = make_view(*(make_member(number) for number in range(1, 8)))
    light = make_view(*(make_member(number, weight=7) for number in range(1, 8)))
    odd = make_member(9, Membership.ACTIVE, weight=1)
    general = make_view(*light.members, odd)
    for mailbox in range(300):
        assert plain.line(mailbox) == light.line(mailbox)
        assert tuple(n for n in general.line(mailbox) if n != 9) == light.line(mailbox)


def test_a_member_that_goes_moves_only_its_own_mailboxes() -> None:
    three = make_view(*(make_member(number, weight=100 * number) for number in (1, 2, 3)))
    gone = three.changed(members=three.with_member(3, state=Membership.ABSENT))
    for mailbox in range(300):
        assert gone.line(mailbox) == tuple(n for n in three.line(mailbox) if n != 3)


def test_a_draining_member_is_last_in_every_line() -> None:
    view = make_view(make_member(1), make_member(2, Membership.DRAINING), make_member(3))
    assert {view.line(mailbox)[-1] for mailbox in range(50)} == {2}
    by_the_draining = bytes(8) + b"\0\2" + bytes(6)
    assert 2 not in view.expected(5, by_the_draining)


def test_the_maker_is_expected_to_have_it() -> None:
    view = make_view(*(make_member(number) for number in (1, 2, 3, 4)))
    for mailbox in range(50):
        home, *rest = view.line(mailbox)
        for maker in (1, 2, 3, 4):
            expected = view.expected(mailbox, bytes(8) + maker.to_bytes(2, "big") + bytes(6))
            assert expected == ((home, maker) if maker != home else (home, rest[0]))


def test_a_cluster_without_an_active_member_has_no_home() -> None:
    with pytest.raises(ClusterError, match="no member of the cluster is active"):
        make_view(make_member(1, Membership.ABSENT)).home(1)


# -- what is refused


def spoiled(**values: Any) -> bytes:
    found = json.loads(TWO.encode()) | values
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode()


def spoiled_member(**values: Any) -> bytes:
    members = json.loads(TWO.encode())["members"]
    return spoiled(members=[members[0] | values, members[1]])


REFUSED = {
    "nothing": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "a number": b"7",
    "no UTF-8": b"\xff\xff",
    "too deep": b"[" * 60_000,
    "a long number": b'{"format":' + b"9" * 60_000 + b"}",
    "too long": b" " * (64 * 1024 + 1),
    "blanks": TWO.encode() + b" ",
    "a key twice": TWO.encode().replace(b'"epoch":1', b'"epoch":1,"epoch":1'),
    "a later format": spoiled(format=2),
    "another field": spoiled(more=1),
    "a field less": TWO.encode().replace(b'"epoch":1,', b""),
    "epoch 0": spoiled(epoch=0),
    "an epoch above 32 bits": spoiled(epoch=1 << 32),
    "epoch true": spoiled(epoch=True),
    "epoch 1.0": spoiled(epoch=1.0),
    "no copies": spoiled(copies=0),
    "many copies": spoiled(copies=9),
    "no copies for Read": spoiled(read_copies=0),
    "another way alone": spoiled(alone="perhaps"),
    "an odd cluster": spoiled(cluster="C0FFEE00" * 4),
    "no members": spoiled(members=[]),
    "members that are none": spoiled(members=7),
    "a member that is none": spoiled(members=[7]),
    "a member twice": spoiled(members=json.loads(TWO.encode())["members"][:1] * 2),
    "members in another order": spoiled(members=json.loads(TWO.encode())["members"][::-1]),
    "number 0": spoiled_member(number=0),
    "number above 16 bits": spoiled_member(number=1 << 16),
    "a state that is none": spoiled_member(state="asleep"),
    "a state that is a list": spoiled_member(state=[]),
    "healed 1": spoiled_member(healed=1),
    "weight 0": spoiled_member(weight=0),
    "an address with a line end": spoiled_member(address="a\n"),
    "an address that is none": spoiled_member(address=None),
    "a short fingerprint": spoiled_member(fingerprint="ab"),
    "a member's field more": spoiled_member(more=1),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_encode_does_not_make_is_refused(what: str) -> None:
    with pytest.raises(ClusterError, match="view"):
        View.decode(REFUSED[what])


def taken_or_refused(data: bytes) -> None:
    try:
        view = View.decode(data)
    except ClusterError:
        return
    assert view.encode() == data


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
)


@pytest.mark.slow
@given(st.binary(max_size=200))
@settings(max_examples=scaled(50), deadline=None)
def test_any_bytes_are_refused(data: bytes) -> None:
    taken_or_refused(data)


@pytest.mark.slow
@given(field=st.sampled_from(sorted(json.loads(TWO.encode()))), value=VALUES)
@settings(max_examples=scaled(100), deadline=None)
def test_any_value_of_a_field_is_taken_or_refused(field: str, value: object) -> None:
    taken_or_refused(spoiled(**{field: value}))


@pytest.mark.slow
@given(field=st.sampled_from(sorted(Member.__slots__)), value=VALUES)
@settings(max_examples=scaled(100), deadline=None)
def test_any_value_of_a_member_s_field_is_taken_or_refused(field: str, value: object) -> None:
    taken_or_refused(spoiled_member(**{field: value}))


def test_flipped_bits_are_taken_or_refused() -> None:
    random = Random(f"{SEED} bits")
    tried = scaled(500)
    for _ in range(tried):
        data = bytearray(TWO.encode())
        for _ in range(random.randint(1, 3)):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        taken_or_refused(bytes(data))
    reached("row 13, random and mutated input: cluster view", tried)
