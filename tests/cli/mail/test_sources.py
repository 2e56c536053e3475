"""Sources of an import: templates, and unique ids that a source gives twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.cli.mail.foreign import BadItem, Foreign, Item, Note, Reached, SourceItem
from metad.cli.mail.import_mail import Result, _new_messages
from metad.cli.mail.privileged_read import Reading
from metad.cli.mail.sources import Source, expand, file_source, split_place
from metad.errors import DataError, MetadError, UsageError


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/var/vmail/%d/%n", "/var/vmail/example.org/ann"),
        ("/m/%u", "/m/ann@example.org"),
        ("/m/%n%%", "/m/ann%"),
    ],
)
def test_a_template_has_dovecots_variables(template: str, path: str) -> None:
    assert expand(template, "ann@example.org") == path


@pytest.mark.parametrize("template", ["/m/%h", "/m/%", "/m/all", "/m/%d"])
def test_a_template_that_cannot_tell_mailboxes_apart_is_refused(template: str) -> None:
    with pytest.raises(UsageError):
        file_source(f"maildir:{template}", "%u", template=True)


@pytest.mark.parametrize("address", ["../x@example.org", "..@example.org", "a@..", "a\0@b", "@x"])
def test_an_address_cannot_leave_the_template(address: str) -> None:
    with pytest.raises(UsageError):
        expand("/m/%d/%n", address)


@pytest.mark.parametrize("text", ["mbox:", "file:x", "mbox", ""])
def test_other_sources_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        split_place(text, "--from")


def stored(items: list[Item], known: set[str]) -> tuple[list[str], Result]:
    result = Result("ann@example.org")
    return [one.uid for one in _new_messages(items, known, result)], result


def test_two_messages_under_one_unique_id_are_both_imported_once() -> None:
    """Regression: with copied X-UIDL fields, the second message was dropped with exit code 0."""
    items: list[Item] = [Foreign("1", b"one", "same"), Foreign("2", b"two", "same")]
    known: set[str] = set()
    first, _ = stored(items, known)
    assert len(set(first)) == 2
    again, result = stored(items, known)
    assert again == []
    assert result.known == 2


def test_equal_messages_without_ids_are_numbered_and_known_again() -> None:
    items: list[Item] = [Foreign("1", b"same"), Foreign("2", b"same"), Foreign("3", b"other")]
    known: set[str] = set()
    assert len(set(stored(items, known)[0])) == 3
    assert stored(items, known)[0] == []


def test_bad_items_and_notes_are_kept_and_end_nothing() -> None:
    uids, result = stored([BadItem("x", "why"), Note("note"), Foreign("1", b"a", "u")], set())
    assert uids == ["u"]
    assert (result.bad, result.notes, result.exit_code) == (["x: why"], ["note"], 65)


@pytest.mark.slow
def test_the_helper_reads_each_mailbox_in_a_process_of_its_own() -> None:
    def read(address: str) -> Iterator[SourceItem]:
        yield Foreign("1", b"a" * 100_000, "u", 5, "s@x", address)
        if address == "bad@x":
            raise DataError("no Maildir")
        yield BadItem("p", "r")
        yield Note("n")
        yield Reached(1, 2)

    reading = Reading(Source(read))
    try:
        for _ in range(2):
            items = list(reading.read("ann@x"))
            assert items == list(read("ann@x"))
        with pytest.raises(MetadError, match="no Maildir") as caught:
            list(reading.read("bad@x"))
        assert caught.value.exit_code == 65
        assert len(list(reading.read("bob@x"))) == 4
    finally:
        reading.close()


def test_a_reader_that_dies_is_an_error_not_an_end(capfd: pytest.CaptureFixture[str]) -> None:
    def read(address: str) -> Iterator[Item]:
        yield Foreign("1", b"a")
        raise RuntimeError("bug")

    reading = Reading(Source(read, lambda _: Path("/")))
    try:
        with pytest.raises(MetadError, match="died"):
            list(reading.read("ann@x"))
    finally:
        reading.close()
    assert "bug" in capfd.readouterr().err
