"""Postfix in front of the hub, as its relay: by SMTP with STARTTLS and by LMTP on a Unix socket."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.support import postfix
from tests.support.clients import digest, fetch, message
from tests.support.hub import DEADLINE, address
from tests.support.postfix import Postfix
from tests.support.wide_hub import WideHub

BOXES = [f"relay{number}" for number in range(2)]
SETTINGS = """\
relay_domains = example.test
relay_transport = {transport}
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[WideHub]:
    postfix.require()
    with WideHub(["pop3", "starttls", "lmtp-unix"], BOXES) as hub:
        yield hub


@pytest.mark.parametrize(
    ("kind", "transport", "word", "mailbox"),
    [
        ("starttls", "smtp:[127.0.0.1]:{port}", b" with ESMTPS id ", BOXES[0]),
        ("lmtp-unix", "lmtp:unix:{path}", b" with LMTP id ", BOXES[1]),
    ],
)
def test_what_postfix_relays_arrives(hub: WideHub, kind, transport, word, mailbox) -> None:
    place = hub.places[kind]
    path = place if isinstance(place, str) else ""
    port = place[1] if isinstance(place, tuple) else 0
    sent = [message() for _ in range(10)]
    way = transport.format(path=path, port=port)
    with Postfix(SETTINGS.format(transport=way)) as server:
        server.send(sent, address(mailbox))
        deadline = time.monotonic() + DEADLINE
        while len(found := fetch(hub, mailbox)) < len(sent):
            assert time.monotonic() < deadline, server.log()
    assert all(word in one for one in found)
    # Postfix prepends its own Received; the rest is as sent.
    bodies = {digest(one[one.index(b"From: Sender") :]) for one in found}
    assert bodies == {digest(one) for one in sent}
