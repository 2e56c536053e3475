"""A filter that hangs under load, and one that is removed while a message waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.clients import (
    SENDER,
    Pop3Line,
    SmtpLine,
    deliver,
    fetch,
    in_time,
    message,
    stranger,
    stuffed,
)
from tests.support.hub import address
from tests.support.rspamd_fake import FakeRspamd
from tests.support.sizes import reached, sized
from tests.support.wide_hub import Smtp, WideHub, smtp

UNCHECKED = b"\r\nX-Metad-Filter: unchecked (rspamd failed)\r\n"
CHECKED = b"\r\nX-Spam-Score: 0.50\r\n"


@pytest.fixture
def rspamd() -> Iterator[FakeRspamd]:
    with FakeRspamd() as fake:
        yield fake


def begin(client: Smtp | SmtpLine, name: str) -> None:
    """Send a whole message without waiting for the reply."""
    client.say(f"MAIL FROM:<{SENDER}>")
    client.say(f"RCPT TO:<{address(name)}>")
    client.say("DATA", b"354")
    client.send(stuffed(message(b"text\r\n")))


@pytest.mark.long
def test_a_crowd_waits_for_a_filter_that_hangs_and_other_clients_are_served(
    rspamd: FakeRspamd,
) -> None:
    rspamd.mode = "silent"
    waiting = sized(100, 1000)
    settings = f'[filter]\nrspamd = "{rspamd.address}"\ndeadline = "5s"\nhostname = false\n'
    with WideHub(["smtp", "pop3"], ["alice", "bob"], settings, workers=1) as hub:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(smtp(hub, "smtp", stranger())) for _ in range(waiting)]
            for client in clients:
                begin(client, "alice")
            rspamd.wait()
            with Pop3Line(hub) as reader, SmtpLine(hub) as other:
                reader.log_in("bob")
                for _ in range(20):
                    other.say("NOOP")
                    assert reader.count() == 0
            assert hub.status()["state"] == "serving"
            for client in clients:
                client.reply(b"250")
            # Now the filter is asked only once in a while.
            before = hub.status()["filter_failures"]
            assert before >= waiting
            deliver(hub, message(), "bob")
            rspamd.mode = "answer"
            assert in_time(lambda: is_checked(hub))
        found = fetch(hub, "alice")
    assert len(found) == waiting
    assert all(UNCHECKED in one for one in found)
    reached("clients that wait for a filter at once", waiting)


def is_checked(hub: WideHub) -> bool:
    """Whether a message is checked now; the breaker's pause is some seconds."""
    deliver(hub, message(), "bob")
    return CHECKED in fetch(hub, "bob", delete=True)[-1]


def test_a_reload_without_the_filter_leaves_the_waiting_message_to_the_old_worker(
    rspamd: FakeRspamd,
) -> None:
    rspamd.mode = "silent"
    settings = f'[filter]\nrspamd = "{rspamd.address}"\ndeadline = "120s"\n'
    with WideHub(["smtp", "pop3"], ["alice", "bob"], settings, workers=1) as hub:
        with SmtpLine(hub) as held:
            begin(held, "alice")
            rspamd.wait()
            text = hub.config.read_text()
            hub.config.write_text(text.replace(settings, ""))
            hub.run("reload")
            deliver(hub, message(), "bob")  # by the new worker, without a filter
            assert len(rspamd.requests) == 1
            # And back, while the old worker still waits.
            hub.config.write_text(text)
            hub.run("reload")
            rspamd.mode = "answer"
            deliver(hub, message(), "bob")
            rspamd.down()
            held.reply(b"250")
            held.say("QUIT", b"221")
        plain, checked = fetch(hub, "bob")
        (late,) = fetch(hub, "alice")
    assert CHECKED not in plain
    assert CHECKED in checked
    assert UNCHECKED in late
