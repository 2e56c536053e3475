"""The POP3 client of an import, against servers that behave badly."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from metad.cli.mail import popclient
from metad.cli.mail.foreign import BadItem, Foreign, Item
from metad.cli.mail.popclient import Account, PopClient, ServerError
from metad.errors import UnavailableError
from tests.support.import_items import items_of

Script = dict[bytes, bytes]
ONE = b"Subject: 1\r\n\r\nbody\r\n"


@contextlib.contextmanager
def server(script: Script, end: bytes = b"\r\n") -> Iterator[int]:
    """Answers each command by its longest prefix in the script; otherwise +OK."""

    def serve() -> None:
        client, _ = sock.accept()
        # A client may hang up in the middle of an answer.
        with contextlib.suppress(ConnectionError), client, client.makefile("rwb") as stream:
            stream.write(b"+OK old" + end)
            stream.flush()
            for line in stream:
                command = line.rstrip()
                known = [one for one in script if command.startswith(one)]
                answer = script[max(known, key=len)] if known else b"+OK" + end
                if not answer:
                    return
                stream.write(answer)
                stream.flush()
                if command == b"QUIT":
                    return

    with socket.create_server(("127.0.0.1", 0)) as sock:
        thread = threading.Thread(target=serve)
        thread.start()
        yield sock.getsockname()[1]
        thread.join()


def fetch(script: Script, end: bytes = b"\r\n") -> list[Item]:
    got: list[Item] = []
    with (
        server({b"CAPA": b"-ERR" + end} | script, end) as port,
        PopClient(Account("127.0.0.1", port, False, "ann", password=b"pw")) as client,
    ):
        got.extend(items_of(client.messages()))
    return got


def listed(*uids: bytes) -> Script:
    lines = b"".join(b"%d %b\r\n" % (number, uid) for number, uid in enumerate(uids, 1))
    return {b"STAT": b"+OK %d 100\r\n" % len(uids), b"UIDL": b"+OK\r\n" + lines + b".\r\n"}


def test_a_dot_between_lone_line_feeds_does_not_end_a_message() -> None:
    text = b"Subject: 1\r\n\r\nbefore\n.\r\nafter\r\n"
    (item,) = fetch(listed(b"a") | {b"RETR": b"+OK\r\n" + text + b".\r\n"})
    assert isinstance(item, Foreign)
    assert b"after" in item.octets


def test_a_server_with_lone_line_feeds_is_understood() -> None:
    script = {b"STAT": b"+OK 1 9\n", b"UIDL": b"+OK\n1 a\n.\n", b"RETR": b"+OK\nS: x\n\n..y\n.\n"}
    (item,) = fetch(script, end=b"\n")
    assert isinstance(item, Foreign)
    assert (item.octets, item.uid) == (b"S: x\r\n\r\n.y\r\n", "a")


def test_without_uidl_everything_comes_without_ids() -> None:
    script = {b"STAT": b"+OK 2 9\r\n", b"UIDL": b"-ERR what\r\n",
              b"RETR": b"+OK\r\n" + ONE + b".\r\n"}  # fmt: skip
    items = fetch(script)
    assert [one.uid for one in items if isinstance(one, Foreign)] == ["", ""]


def test_a_message_that_the_server_refuses_is_named_and_the_rest_come() -> None:
    good = b"+OK\r\n" + ONE + b".\r\n"
    script = listed(b"a", b"b", b"c", b"d") | {b"RETR": good, b"RETR 2": b"-ERR lost it\r\n"}
    items = fetch(script)
    assert [type(one) for one in items] == [Foreign, BadItem, Foreign, Foreign]
    assert isinstance(items[1], BadItem)
    assert "message 2" in items[1].place
    assert "lost it" in items[1].reason


def test_a_unique_id_that_rfc_1939_forbids_is_dropped_not_the_message() -> None:
    script = listed(b"with space", b"x" * 71, "ü".encode())
    items = fetch(script | {b"RETR": b"+OK\r\n" + ONE + b".\r\n"})
    assert [one.uid for one in items if isinstance(one, Foreign)] == ["", "", ""]


def test_a_list_that_is_shorter_than_the_mailbox_is_not_taken_for_complete() -> None:
    script = listed(b"a") | {b"STAT": b"+OK 3 99\r\n", b"RETR": b"+OK\r\n" + ONE + b".\r\n"}
    with pytest.raises(ServerError, match="only 1 of 3"):
        fetch(script)


@pytest.mark.parametrize("cut", [b"", b"+OK\r\nSubject: 1\r\n"])
def test_a_connection_that_ends_early_is_not_taken_for_complete(cut: bytes) -> None:
    script = listed(b"a", b"b") | {b"RETR": b"+OK\r\n" + ONE + b".\r\n", b"RETR 2": cut}
    got: list[Item] = []
    with (
        server({b"CAPA": b"-ERR\r\n", b"QUIT": b""} | script) as port,
        contextlib.closing(PopClient(Account("127.0.0.1", port, False, "ann"))) as client,
    ):
        messages = items_of(client.messages())
        got.append(next(messages))
        if cut:
            client._socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises((UnavailableError, ServerError)):
            got.append(next(messages))
    assert len(got) == 1


def test_a_message_that_is_too_large_is_named_and_the_rest_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Regression: it was read into memory, however large."""
    monkeypatch.setattr(popclient, "LARGEST", 1000)
    monkeypatch.setattr(popclient, "ENDLESS", 100_000)
    large = b"+OK\r\n" + (b"x" * 78 + b"\r\n") * 100 + b".\r\n"
    good = b"+OK\r\n" + ONE + b".\r\n"
    items = fetch(listed(b"a", b"b") | {b"RETR": good, b"RETR 1": large})
    assert [type(one) for one in items] == [BadItem, Foreign]
    assert isinstance(items[0], BadItem)
    assert items[0].reason == "larger than 1,000 bytes"


def test_a_server_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(popclient, "LARGEST", 1000)
    monkeypatch.setattr(popclient, "ENDLESS", 2000)
    endless = b"+OK\r\n" + (b"x" * 78 + b"\r\n") * 1000 + b".\r\n"
    with pytest.raises(ServerError, match="does not end"):
        fetch(listed(b"a") | {b"RETR": endless})
    monkeypatch.setattr(popclient, "LINES", 5)
    with pytest.raises(ServerError, match="more than 5 lines"):
        fetch(listed(*(b"%d" % number for number in range(9))))
