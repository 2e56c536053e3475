"""A slow or new filter: its memory, other layers, a reload, large messages by LMTP, a stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.clients import SENDER, SmtpLine, deliver, fetch, message, stuffed
from tests.support.hub import Hub, address
from tests.support.rspamd_fake import CLEAN, FakeRspamd
from tests.support.wide_hub import WideHub, smtp

REJECT = {"action": "reject", "score": 20.0, "required_score": 15.0, "symbols": {}}
# Clients whose messages wait for a filter at once, and how large these are.
WAITING = 150
SIZE = 200_000


@pytest.fixture
def rspamd() -> Iterator[FakeRspamd]:
    with FakeRspamd() as fake:
        yield fake


def own_memory(hub: Hub) -> int:
    """Bytes of private memory of the worker."""
    (worker,) = [one["pid"] for one in hub.status()["workers"]]
    lines = Path(f"/proc/{worker}/smaps_rollup").read_text().splitlines()
    kinds = ("Private_Clean:", "Private_Dirty:")
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(kinds))


def test_messages_that_wait_for_a_filter_stay_within_the_declared_memory(
    rspamd: FakeRspamd,
) -> None:
    """150 messages of 200 KB, three times what limits.memory leaves them, and then all at once."""
    rspamd.mode = "silent"
    settings = f'[filter]\nrspamd = "{rspamd.address}"\ndeadline = "120s"\nconnections = 8\n'
    settings += "[limits]\nmemory = 16777216\n"
    with WideHub(["smtp", "pop3"], ["alice"], settings, workers=1) as hub:
        shown = json.loads(hub.run("config", "show", "--json").stdout)["memory"]
        with ExitStack() as stack:
            clients = [stack.enter_context(SmtpLine(hub)) for _ in range(WAITING)]
            wire = stuffed(message((b"x" * 78 + b"\r\n") * (SIZE // 80)))
            for client in clients:
                client.say(f"MAIL FROM:<{SENDER}> BODY=8BITMIME")
                client.say(f"RCPT TO:<{address('alice')}>")
                client.say("DATA", b"354")
                client.send(wire)
            for _ in range(8):
                rspamd.wait()
            used = own_memory(hub)
            assert used < shown["worker"]
            # The memory of the messages alone, if all of them were in memory.
            assert used < WAITING * SIZE + (8 << 20)
            rspamd.mode = "answer"
            rspamd.down()
            rspamd.up()
            for client in clients:
                client.reply(b"250")
    assert shown["filters"] > 0


def test_a_layer_that_cannot_give_a_message_back(rspamd: FakeRspamd) -> None:
    settings = f'[filter]\nrspamd = "{rspamd.address}"'
    with WideHub(["smtp", "pop3"], ["alice"], settings, workers=1, layer="null") as hub:
        for size in (10, 100_000, 1_500_000):
            sent = message(b"line\r\n.dot\r\n" * (size // 11))
            rspamd.forget()
            deliver(hub, sent, "alice")
            assert rspamd.requests[0].body == sent


def test_a_reload_turns_a_filter_on_and_off(rspamd: FakeRspamd) -> None:
    rspamd.answer = REJECT
    with WideHub(["smtp", "pop3"], ["alice"], workers=1) as hub:
        deliver(hub, message(), "alice")
        plain = hub.config.read_text()
        hub.config.write_text(f'{plain}\n[filter]\nrspamd = "{rspamd.address}"\n')
        hub.run("reload")
        with SmtpLine(hub) as client:
            client.deliver(message(), "alice", code=b"550 5.7.1")
        hub.config.write_text(plain)
        hub.run("reload")
        deliver(hub, message(), "alice")
        assert len(fetch(hub, "alice")) == 2
        assert len(rspamd.requests) == 1


def test_lmtp_makes_copies_of_a_message_in_a_file(rspamd: FakeRspamd) -> None:
    settings = f'[filter]\nrspamd = "{rspamd.address}"'
    names = ["alice", "bob", "carol"]
    with WideHub(["lmtp", "smtp", "pop3"], names, settings, workers=1) as hub:
        hub.run("user", "set", address("alice"), "--spam-refuse", "30", "--spam-mark", "5")
        hub.run("user", "set", address("bob"), "--spam-filter", "off")
        rspamd.answer = REJECT
        sent = message(b"large\r\n.dot\r\n" * 80_000)
        with smtp(hub, "lmtp", hello="LHLO") as client:
            client.say(f"MAIL FROM:<{SENDER}>")
            for name in names:
                client.say(f"RCPT TO:<{address(name)}>")
            client.say("DATA", b"354")
            client.send(stuffed(sent))
            assert [client.reply(b"")[:3] for _ in names] == [b"250", b"250", b"550"]
            client.say("QUIT", b"221")
        (alice,), (bob,) = fetch(hub, "alice"), fetch(hub, "bob")
        assert b"\r\nX-Spam: Yes\r\n" in alice
        assert b"X-Spam: Yes" not in bob
        assert alice.endswith(sent)
        assert bob.endswith(sent)
        assert fetch(hub, "carol") == []


@pytest.mark.long
def test_a_hub_that_stops_lets_a_message_that_is_being_checked_finish(rspamd: FakeRspamd) -> None:
    rspamd.mode = "silent"
    settings = f'[filter]\nrspamd = "{rspamd.address}"\ndeadline = "2s"'
    with WideHub(["smtp", "pop3"], ["alice"], settings, workers=1) as hub:
        with SmtpLine(hub) as client:
            client.say(f"MAIL FROM:<{SENDER}>")
            client.say(f"RCPT TO:<{address('alice')}>")
            client.say("DATA", b"354")
            client.send(stuffed(message()))
            rspamd.wait()
            hub.stop()
            client.reply(b"250")
            client.reply(b"421")
        rspamd.answer, rspamd.mode = CLEAN, "answer"
        hub.start()
        assert len(fetch(hub, "alice")) == 1


@pytest.fixture
def other_ways(rspamd: FakeRspamd) -> Iterator[WideHub]:
    settings = (
        f'[filter]\nrspamd = "{rspamd.address}"\nsize = 1000\noversize = "partial"\n'
        f'spam = "junk"\njunk = "{address("quarantine")}"\nmixed = "mark"\n'
        'authserv_id = "mail.example.test"\n'
    )
    names = ["alice", "strict", "open", "quarantine"]
    with WideHub(["smtp", "pop3"], names, settings, workers=1) as hub:
        hub.run("user", "set", address("strict"), "--spam-refuse", "5")
        hub.run("user", "set", address("open"), "--spam-filter", "off")
        yield hub


def test_the_settings_that_are_not_the_defaults(rspamd: FakeRspamd, other_ways: WideHub) -> None:
    hub = other_ways
    # A large message is partly checked.
    sent = message(b"line\r\n.dot\r\n" * 1000)
    deliver(hub, sent, "alice")
    assert rspamd.requests[0].body == sent[:1000]
    assert len(fetch(hub, "alice", delete=True)) == 1
    # Spam goes to one mailbox for all.
    rspamd.answer = CLEAN | {"action": "add header", "score": 7.0}
    rspamd.answer["symbols"] = {"R_SPF_ALLOW": {"score": 0.0}}
    deliver(hub, message(), "alice")
    assert fetch(hub, "alice") == []
    (got,) = fetch(hub, "quarantine", delete=True)
    assert b"\r\nX-Spam: Yes\r\n" in got
    assert b"Authentication-Results: mail.example.test; spf=pass" in got
    # Recipients of different kinds share a transaction, and their spam is only marked.
    rspamd.answer = REJECT
    with SmtpLine(hub) as client:
        client.deliver(message(), "strict", code=b"550")
        client.deliver(message(), "strict", "open", "alice")
    (got,) = fetch(hub, "quarantine")
    assert b"\r\nX-Spam: Yes\r\n" in got
