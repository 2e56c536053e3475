"""Footer entries: 36 octets each, sorted as octets by mailbox and id."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.store.log import footer, record
from metad.store.log.place import Place
from metad.store.log.tail import entries_from, records_of

ID = bytes(range(16))


def test_an_entry_has_36_bytes_at_the_documented_offsets() -> None:
    packed = footer.message_entries(ID, 512, 100, (record.Recipient(9, "", 77),))
    assert packed.hex() == (
        "00000009" + ID.hex() + "00000200" + "00000064" + "0000004d" + "01" + "000000"
    )


def test_a_message_has_an_entry_per_recipient() -> None:
    recipients = tuple(record.Recipient(m, "", m * 10) for m in (3, 1, 2))
    found = footer.unpack(footer.message_entries(ID, 512, 100, recipients))
    assert [(e.mailbox, e.octets) for e in found] == [(3, 30), (1, 10), (2, 20)]
    assert {(e.id, e.offset, e.size, e.kind) for e in found} == {(ID, 512, 100, record.MESSAGE)}


def test_a_deletion_has_an_entry_per_id() -> None:
    found = footer.unpack(footer.deletion_entries(record.Deletion(4, ID + bytes(16)), 1024, 99))
    assert [(e.mailbox, e.id, e.octets, e.kind) for e in found] == [
        (4, ID, 0, record.DELETION),
        (4, bytes(16), 0, record.DELETION),
    ]


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(min_size=16, max_size=16))))
def test_sorted_bytes_are_sorted_by_mailbox_and_id(keys: list[tuple[int, bytes]]) -> None:
    packed = [footer.ENTRY.pack(mailbox, each, 0, 0, 0, 1) for mailbox, each in keys]
    assert [footer.ENTRY.unpack(e)[:2] for e in sorted(packed)] == sorted(keys)


def test_records_are_made_of_their_entries() -> None:
    two = (record.Recipient(1, "", 5), record.Recipient(2, "", 6))
    first = footer.message_entries(ID, 512, 100, two)
    second = footer.message_entries(bytes(16), 612, 80, two[:1])
    gone = record.Deletion(1, ID + bytes(16), 1024)
    entries = first + second + footer.deletion_entries(gone, 1024, 99)
    messages, deletions = records_of(7, entries)
    assert [(m.id, m.place, m.entries) for m in messages] == [
        (ID, Place(7, 512, 100), first),
        (bytes(16), Place(7, 612, 80), second),
    ]
    assert deletions == [gone]
    for start in (512, 513, 612, 700, 1024, 1025):
        left = [m for m in messages if m.place.offset >= start]
        assert records_of(7, entries_from(entries, start)) == (left, [gone] if start < 1025 else [])
