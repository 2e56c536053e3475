"""Records: bytes made and verified; nothing passes that was not made for this log and life."""

from __future__ import annotations

import random

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.store.log import record

SECRET = b"s" * 32
SEED = record.seed_of(SECRET, 7, 1000)
ID = bytes(range(16))


def made(
    envelope: bytes = b"env", body: bytes = b"body", seed: int = SEED, life: int = 1000
) -> bytes:
    payload = record.digest_payload(envelope, [body], seed)
    return record.make_header(record.MESSAGE, life, 5, ID, payload) + envelope + body


def test_a_header_has_72_bytes_at_the_documented_offsets() -> None:
    data = made(b"env", b"body!")
    assert record.HEADER_SIZE == 72
    assert data[:4] == b"mRec"
    assert data[4:8] == b"\1\1\0\0"
    assert int.from_bytes(data[8:16], "little") == 1000
    assert int.from_bytes(data[16:24], "little") == 5
    assert int.from_bytes(data[24:28], "little") == 3
    assert int.from_bytes(data[28:32], "little") == 5
    assert data[32:48] == ID


def test_a_record_comes_back_as_it_was_made() -> None:
    data = made()
    header = record.parse_header(data, SEED, 1000)
    assert header is not None
    assert (header.kind, header.sequence, header.id) == (record.MESSAGE, 5, ID)
    assert header.size == len(data)
    assert record.payload_is_good(header, data[record.HEADER_SIZE :], SEED)


@pytest.mark.slow
@given(st.binary(max_size=60), st.lists(st.binary(max_size=40), max_size=6))
def test_a_digest_is_the_same_however_the_body_is_cut(envelope: bytes, chunks: list[bytes]) -> None:
    whole = record.digest_payload(envelope, [b"".join(chunks)], SEED)
    assert record.digest_payload(envelope, chunks, SEED) == whole
    assert whole.body_size == sum(map(len, chunks))


def test_every_flipped_bit_of_a_header_is_found() -> None:
    data = bytearray(made())
    for bit in range(record.HEADER_SIZE * 8):
        data[bit // 8] ^= 1 << bit % 8
        assert record.parse_header(data, SEED, 1000) is None, f"bit {bit}"
        data[bit // 8] ^= 1 << bit % 8


def test_every_flipped_bit_of_a_payload_is_found() -> None:
    data = bytearray(made())
    header = record.parse_header(data, SEED, 1000)
    assert header is not None
    for bit in range(record.HEADER_SIZE * 8, len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        assert not record.payload_is_good(header, data[record.HEADER_SIZE :], SEED), f"bit {bit}"
        data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("cut", range(record.HEADER_SIZE))
def test_a_header_that_is_cut_off_is_none(cut: int) -> None:
    assert record.parse_header(made()[:cut], SEED, 1000) is None


def test_a_record_of_another_log_or_life_or_store_does_not_verify() -> None:
    data = made()
    for seed in (
        record.seed_of(SECRET, 8, 1000),
        record.seed_of(SECRET, 7, 1001),
        record.seed_of(b"t" * 32, 7, 1000),
    ):
        assert record.parse_header(data, seed, 1000) is None


def test_each_store_log_and_life_has_its_own_seed() -> None:
    seeds = {
        record.seed_of(secret, number, life)
        for secret in (SECRET, b"t" * 32)
        for number in (1, 2, 1 << 31)
        for life in (1, 2, 1 << 40)
    }
    assert len(seeds) == 18


def test_a_header_with_another_life_than_its_seed_is_none() -> None:
    assert record.parse_header(made(life=999), SEED, 1000) is None


@pytest.mark.parametrize("kind", [0, 32, 255])
def test_a_header_of_an_unknown_kind_is_none(kind: int) -> None:
    payload = record.digest_payload(b"", [], SEED)
    assert record.parse_header(record.make_header(kind, 1000, 0, ID, payload), SEED, 1000) is None


def test_a_header_is_found_at_an_offset() -> None:
    assert record.parse_header(b"xx" + made(), SEED, 1000, 2) is not None


def test_random_bytes_are_no_header() -> None:
    rng = random.Random(1)
    for _ in range(500):
        assert record.parse_header(b"mRec" + rng.randbytes(68), SEED, 1000) is None


RECIPIENTS = st.builds(
    record.Recipient, st.integers(0, 2**32 - 1), st.text(max_size=80), st.integers(0, 2**32 - 1)
)
ENVELOPES = st.builds(
    record.Envelope,
    st.integers(0, 2**63),
    st.text(max_size=45),
    st.text(max_size=80),
    st.text(max_size=80),
    st.lists(RECIPIENTS, max_size=5).map(tuple),
    st.integers(0, 2**31),
)


@pytest.mark.slow
@given(ENVELOPES)
def test_an_envelope_comes_back_as_it_was_packed(envelope: record.Envelope) -> None:
    assert record.unpack_envelope(record.pack_envelope(envelope)) == envelope


@pytest.mark.parametrize(
    "data",
    [b"", b"\xc1", b"\x90", msgpack.packb(1), msgpack.packb([1, 2, 3, 4, 5]),
     msgpack.packb([0, "", "", "", [1], 0]), msgpack.packb([0, "", "", "", 3, 0])],
)  # fmt: skip
def test_what_is_no_envelope_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        record.unpack_envelope(data)


def test_a_deletion_comes_back_as_it_was_packed() -> None:
    ids = bytes(range(48))
    found = record.unpack_deletion(record.pack_deletion(77), ids)
    assert found == record.Deletion(77, ids)
    assert found.each() == [ids[:16], ids[16:32], ids[32:]]


@pytest.mark.parametrize(
    ("envelope", "body"),
    [(b"", b""), (msgpack.packb("x"), b""), (msgpack.packb(1), b"123"), (b"\xc1", bytes(16))],
)
def test_what_is_no_deletion_is_a_value_error(envelope: bytes, body: bytes) -> None:
    with pytest.raises(ValueError):
        record.unpack_deletion(envelope, body)


def test_a_deletion_in_groups_keeps_what_was_told_of_each_id() -> None:
    ids = [number.to_bytes(16, "big") for number in range(600)]
    told = [b"%018d" % number for number in range(600)]
    for its in (told, []):
        whole = record.Deletion(7, b"".join(ids), told=b"".join(its))
        groups = list(whole.groups(250))
        assert [len(one.each()) for one in groups] == [250, 250, 100]
        assert b"".join(one.ids for one in groups) == whole.ids
        assert b"".join(one.told for one in groups) == whole.told
        assert [one.told[:18] for one in groups] == (
            [its[0], its[250], its[500]] if its else [b""] * 3
        )
