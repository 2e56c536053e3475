"""Maildirs: files left by other servers, and files placed by their owners."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from pathlib import Path

import pytest

from metad.cli.mail.foreign import BadItem, Foreign, Item, Note
from metad.cli.mail.maildir import MaildirWriter, decompressed, read_maildir
from metad.cli.mail.uidlist import UIDL_FORMAT, check_format
from metad.errors import CannotCreateError, DataError, OsError, UsageError
from tests.support.import_items import items_of

MESSAGE = b"Subject: x\n\nhello\n"
GZIPPED = gzip.compress(MESSAGE, mtime=0)
STORED = MESSAGE.replace(b"\n", b"\r\n")


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    for part in ("cur", "new", "tmp"):
        (tmp_path / "Maildir" / part).mkdir(parents=True)
    return tmp_path / "Maildir"


def read(inbox: Path, uidl_format: str = UIDL_FORMAT) -> list[Item]:
    return list(items_of(read_maildir(inbox, uidl_format)))


def test_a_name_that_is_not_utf8_is_read_and_shown(inbox: Path) -> None:
    Path(os.fsdecode(os.fsencode(inbox) + b"/cur/1.\xfc.host:2,S")).write_bytes(MESSAGE)
    (item,) = read(inbox)
    assert isinstance(item, Foreign)
    assert item.octets == STORED
    assert item.place.isprintable()
    assert r"\xfc" in item.place


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_what_dovecots_zlib_plugin_compressed_is_decompressed(inbox, compress) -> None:
    (inbox / "cur" / "1.a.host,S=18:2,SZ").write_bytes(compress(MESSAGE))
    (item,) = read(inbox)
    assert item == Foreign(item.place, STORED, time_us=item.time_us)


@pytest.mark.parametrize(
    ("octets", "reason"),
    [
        (b"\x28\xb5\x2f\xfdxyz", "zstd"),
        (b"\x04\x22\x4d\x18xyz", "LZ4"),
        (GZIPPED[:-9], "too early"),
        (GZIPPED[:12] + b"\xff" * 20, "damaged"),
        (b"BZh91AY&SYxyzxyzxyz", "damaged"),
    ],
    ids=["zstd", "lz4", "cut", "garbage", "bzip2"],
)
def test_what_cannot_be_decompressed_is_named_and_the_rest_read(inbox, octets, reason) -> None:
    (inbox / "cur" / "1.a.host:2,").write_bytes(octets)
    (inbox / "cur" / "2.b.host:2,").write_bytes(MESSAGE)
    bad, good = read(inbox)
    assert isinstance(bad, BadItem)
    assert reason in bad.reason
    assert bad.place.endswith("cur/1.a.host:2,")
    assert isinstance(good, Foreign)


def test_a_bomb_of_zeros_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metad.cli.mail.maildir._LARGEST", 1 << 16)
    with pytest.raises(ValueError, match="larger than"):
        decompressed(gzip.compress(bytes(1 << 20)))


@pytest.mark.parametrize("missing", ["new", "cur"])
def test_a_maildir_may_lack_an_empty_directory(inbox: Path, missing: str) -> None:
    (inbox / missing).rmdir()
    (part,) = {"cur", "new"} - {missing}
    (inbox / part / "1.a.host").write_bytes(MESSAGE)
    assert len(read(inbox)) == 1


def test_a_directory_without_both_is_no_maildir(inbox: Path) -> None:
    (inbox / "new").rmdir()
    (inbox / "cur").rmdir()
    with pytest.raises(DataError, match="neither cur nor new"):
        read(inbox)


def test_subfolders_are_named(inbox: Path) -> None:
    (inbox / ".Sent").mkdir()
    (inbox / ".Trash").mkdir()
    (inbox / ".note").write_text("")
    (inbox / "new" / "1.a.host").write_bytes(MESSAGE)
    message, note = read(inbox)
    assert isinstance(message, Foreign)
    assert isinstance(note, Note)
    assert "2 subfolders not imported: .Sent, .Trash" in note.text


def test_a_link_to_a_secret_is_not_delivered(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root only")
    (inbox / "new" / "1.a.host").symlink_to(tmp_path / "secret")
    (inbox / "new" / "2.b.host").write_bytes(MESSAGE)
    bad, good = read(inbox)
    assert isinstance(bad, BadItem)
    assert isinstance(good, Foreign)


def test_a_linked_maildir_and_a_linked_part_are_refused(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(inbox)
    with pytest.raises(OsError):
        read(tmp_path / "link")
    (inbox / "new").rmdir()
    (inbox / "new").symlink_to(tmp_path)
    with pytest.raises(OsError):
        read(inbox)


def test_a_pipe_holds_up_nothing(inbox: Path) -> None:
    os.mkfifo(inbox / "new" / "1.a.host")
    (inbox / "new" / "2.b.host").write_bytes(MESSAGE)
    assert len(read(inbox)) == 1


@pytest.mark.parametrize("bad", ["%m", "%08Xu%g", "%", "%v", "fixed", "%%"])
def test_a_format_of_unique_ids_that_cannot_work_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match="--uidl-format"):
        check_format(bad)


@pytest.mark.parametrize("good", [UIDL_FORMAT, "%u.%v", "%f", "%%%u"])
def test_formats_of_dovecot_are_taken(good: str) -> None:
    assert check_format(good) == good


def test_what_is_written_is_read_back_in_order_with_its_ids(tmp_path: Path) -> None:
    writer = MaildirWriter(tmp_path / "out")
    for number in range(3):
        writer.write(Foreign("", STORED, f"id{number}", 1_600_000_000_000_000 + number))
    writer.close()
    items = read(tmp_path / "out")
    assert [one.uid for one in items if isinstance(one, Foreign)] == ["id0", "id1", "id2"]
    with pytest.raises(CannotCreateError):
        MaildirWriter(tmp_path / "out")
