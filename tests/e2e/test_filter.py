"""A hub with rspamd, here a stand-in that does what each test wants."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.support.clients import (
    AWKWARD,
    SENDER,
    Pop3Line,
    SmtpLine,
    deliver,
    in_time,
    message,
    stuffed,
    unstuffed,
)
from tests.support.hub import HOSTNAME, PASSWORD, address
from tests.support.rspamd_fake import CLEAN, FakeRspamd
from tests.support.wide_hub import WideHub, smtp

BOXES = [f"box{number:02}" for number in range(60)]
WISHES = ["calm", "calm+junk", "strict", "open"]
COUNTED = ("checks", "refused", "junk", "failures", "microseconds")
BAD = [
    "silent", "close", "drop", "garbage", "json", "huge", "endless", "500", "chunked", "long",
]  # fmt: skip
SPAM = {"action": "add header", "score": 7.5, "required_score": 15.0, "symbols": {}}
REJECT = {"action": "reject", "score": 20.0, "required_score": 15.0, "symbols": {}}


@pytest.fixture(scope="module")
def rspamd() -> Iterator[FakeRspamd]:
    with FakeRspamd() as fake:
        yield fake


@pytest.fixture(scope="module")
def hub(rspamd: FakeRspamd) -> Iterator[WideHub]:
    kinds = ["smtp", "pop3", "lmtp", "starttls"]
    settings = f'[filter]\nrspamd = "{rspamd.address}"\ndeadline = "2s"\nsize = "1MiB"'
    with WideHub(kinds, [*BOXES, *WISHES], settings, workers=1) as hub:
        hub.run("user", "set", address("calm"), "--spam-mark", "12", "--spam-refuse", "30")
        hub.run("user", "set", address("strict"), "--spam-refuse", "5")
        hub.run("user", "set", address("open"), "--spam-filter", "off")
        yield hub


@pytest.fixture(autouse=True)
def honest(rspamd: FakeRspamd) -> None:
    rspamd.answer = dict(CLEAN)
    rspamd.mode = "answer"
    rspamd.forget()


@pytest.fixture(scope="module")
def boxes() -> Iterator[str]:
    return iter(BOXES)


@pytest.fixture
def box(boxes: Iterator[str]) -> str:
    return next(boxes)


def drop(hub: WideHub, name: str) -> list[bytes]:
    """All mail of a mailbox; each message has the size that LIST shows."""
    with Pop3Line(hub) as pop3:
        pop3.say(f"USER {address(name)}")
        pop3.say(f"PASS {PASSWORD}")
        sizes = [int(line.split()[1]) for line in pop3.listing("LIST").split(b"\r\n")[:-2]]
        found = [unstuffed(pop3.listing(f"RETR {n}")) for n in range(1, len(sizes) + 1)]
        pop3.say("QUIT")
    assert [len(one) for one in found] == sizes
    return found


def header(octets: bytes) -> bytes:
    return octets.partition(b"\r\n\r\n")[0] + b"\r\n"


def field(octets: bytes, name: str) -> list[bytes]:
    unfolded = re.sub(rb"\r\n[ \t]", b" ", header(octets))
    return re.findall(rb"(?im)^%b: ([^\r]*)" % name.encode(), unfolded)


def test_rspamd_gets_the_message_and_its_envelope(
    hub: WideHub, rspamd: FakeRspamd, box: str
) -> None:
    sent = message()
    reply = deliver(hub, sent, box)
    (request,) = rspamd.requests
    assert request.body == sent
    shown = {
        name: request.fields[name]
        for name in ("from", "rcpt", "ip", "helo", "hostname", "queue-id")
    }
    assert shown == {
        "from": [SENDER],
        "rcpt": [address(box)],
        "ip": ["127.0.0.1"],
        "helo": ["client.example.test"],
        "hostname": ["localhost"],
        "queue-id": [reply.rpartition(b" ")[2].decode()],
    }
    # No session is authenticated: there is no SMTP AUTH.
    assert "user" not in request.fields
    (got,) = drop(hub, box)
    assert got.endswith(sent)
    assert field(got, "X-Spam") == []
    assert field(got, "X-Spam-Score") == [b"0.50"]


def test_rspamd_hears_of_tls(hub: WideHub, rspamd: FakeRspamd, box: str) -> None:
    with smtp(hub, "starttls") as client:
        client.say("STARTTLS", b"220")
        client.secure(hub.trust)
        client.say("EHLO client.example.test")
        client.deliver(message(), box)
    assert rspamd.requests[0].fields["tls-version"][0].startswith("TLSv1.")
    assert rspamd.requests[0].fields["tls-cipher"] != [""]


def test_a_connection_is_kept(hub: WideHub, rspamd: FakeRspamd, box: str) -> None:
    for _ in range(3):
        deliver(hub, message(), box)
    assert len({one.connection for one in rspamd.requests}) == 1


def test_a_connection_that_rspamd_closed_meanwhile_costs_no_message(
    hub: WideHub, rspamd: FakeRspamd, box: str
) -> None:
    rspamd.mode = "once"
    for _ in range(3):
        deliver(hub, message(), box)
    assert [field(one, "X-Metad-Filter") for one in drop(hub, box)] == [[]] * 3


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (REJECT, b"550 5.7.1 Message refused as spam"),
        (REJECT | {"messages": {"smtp_message": "5.7.1 Gtube\r\n pattern"}},
         b"550 5.7.1 Gtube   pattern"),
        (REJECT | {"action": "discard"}, b"550 5.7.1 Message refused as spam"),
        (SPAM | {"action": "soft reject"}, b"451 4.7.1 Try again later"),
        (SPAM | {"action": "greylist"}, b"451 4.7.1 Try again later"),
    ],
)  # fmt: skip
def test_a_refusal_is_rspamds(
    hub: WideHub, rspamd: FakeRspamd, box: str, answer: dict, reply: bytes
) -> None:
    rspamd.answer = answer
    with SmtpLine(hub) as client:
        assert client.deliver(message(), box, code=reply[:3]) == reply
        rspamd.answer = CLEAN
        client.deliver(message(), box)  # and the session goes on
    assert len(drop(hub, box)) == 1


def test_spam_is_marked(hub: WideHub, rspamd: FakeRspamd, box: str) -> None:
    rspamd.answer = SPAM
    sent = message()
    deliver(hub, sent, box)
    (got,) = drop(hub, box)
    assert got.endswith(sent)
    assert field(got, "X-Spam") == [b"Yes"]
    assert field(got, "X-Spam-Score") == [b"7.50"]


def test_a_subject_is_not_rewritten_but_the_message_marked(
    hub: WideHub, rspamd: FakeRspamd, box: str
) -> None:
    rspamd.answer = SPAM | {"action": "rewrite subject", "subject": "*** SPAM"}
    sent = message()
    deliver(hub, sent, box)
    (got,) = drop(hub, box)
    assert got.endswith(sent)
    assert field(got, "X-Spam") == [b"Yes"]
    assert "wants to rewrite a subject" in hub.log.read_text()


def test_headers_of_rspamd_are_added_and_removed(
    hub: WideHub, rspamd: FakeRspamd, box: str
) -> None:
    rspamd.answer = CLEAN | {
        "milter": {
            "add_headers": {
                "X-Second": {"value": "two", "order": 2},
                "X-First": {"value": "folded\r\n\tvalue", "order": 1},
                "X-Many": [{"value": "a", "order": 3}, {"value": "b", "order": 4}],
            },
            "remove_headers": {"X-Old": 0, "X-Numbered": -1, "X-Missing": 0},
        }
    }
    fields = b"X-Old: 1\r\nX-Numbered: first\r\nx-old : 2\r\n folded\r\nX-Numbered: last\r\n"
    sent = message()
    deliver(hub, fields + sent, box)
    (got,) = drop(hub, box)
    assert got.endswith(b"X-Numbered: first\r\n" + sent)
    assert field(got, "X-Old") == []
    assert field(got, "X-Many") == [b"a", b"b"]
    assert field(got, "X-First") == [b"folded value"]
    assert got.index(b"X-First:") < got.index(b"X-Second:") < got.index(b"Received:")


def test_authentication_results_are_ours_alone(hub: WideHub, rspamd: FakeRspamd, box: str) -> None:
    rspamd.answer = CLEAN | {
        "symbols": {
            "R_SPF_ALLOW": {"score": -0.2, "options": ["+ip4:127.0.0.0/8"]},
            "R_DKIM_ALLOW": {"score": -0.2, "options": ["client.example.test:s=mail"]},
            "DMARC_POLICY_ALLOW": {"score": -0.5, "options": ["client.example.test", "reject"]},
        }
    }
    ours = f"Authentication-Results: {HOSTNAME.upper()}; dkim=pass\r\n header.d=bank\r\n".encode()
    hidden = b'authentication-results:\r\n (a (nested) comment)\r\n "%b" 1; spf=pass\r\n'
    other = b"Authentication-Results: other.example; spf=fail\r\n"
    sent = message()
    deliver(hub, ours + hidden % HOSTNAME.encode() + b"X-Spam: No\r\n" + other + sent, box)
    (got,) = drop(hub, box)
    assert got.endswith(other + sent)
    assert field(got, "X-Spam") == []
    first, second = field(got, "Authentication-Results")
    assert first.decode() == (
        f"{HOSTNAME}; spf=pass smtp.mailfrom={SENDER}; "
        "dkim=pass header.d=client.example.test header.s=mail; "
        "dmarc=pass (p=reject) header.from=client.example.test"
    )
    assert second == b"other.example; spf=fail"
    assert rspamd.requests[0].body == other + sent


def test_a_message_whose_first_field_is_removed_keeps_its_shape(hub: WideHub, box: str) -> None:
    """The following line is not a field, so an empty line must precede it."""
    deliver(hub, b"X-Spam: No\r\nno field at all\r\n\r\ntext\r\n", box)
    (got,) = drop(hub, box)
    assert got.endswith(b"\r\n\r\nno field at all\r\n\r\ntext\r\n")


@pytest.mark.parametrize("body", [b"", b"\r\n", b"\r\ntext\r\n", b"Subject: x\r\n", b".x: y\r\n"])
def test_messages_of_odd_shapes_arrive_as_they_were(hub: WideHub, box: str, body: bytes) -> None:
    deliver(hub, body, box)
    (got,) = drop(hub, box)
    assert got.endswith(body)


@pytest.mark.parametrize("size", [100_000, 900_000, 1_500_000])
def test_a_large_message_is_read_back_and_delivered_whole(
    hub: WideHub, rspamd: FakeRspamd, box: str, size: int
) -> None:
    sent = message(AWKWARD + b"line\r\n.dot\r\n" * (size // 12))
    deliver(hub, sent, box)
    (got,) = drop(hub, box)
    assert got.endswith(sent)
    if size < 1 << 20:
        assert rspamd.requests[0].body == sent
    else:
        assert rspamd.requests == []
        assert field(got, "X-Metad-Filter") == [b"unchecked (too large)"]


def test_a_header_above_the_limit_is_refused(hub: WideHub, box: str) -> None:
    with SmtpLine(hub) as client:
        client.deliver(b"X: " + b"y" * 900 + b"\r\n" + b"X: y\r\n" * 30_000 + message(), box,
                       code=b"552 5.3.4")  # fmt: skip
        client.deliver(message(), box)


@pytest.mark.parametrize("mode", BAD)
def test_whatever_rspamd_does_the_message_is_accepted_and_marked(
    hub: WideHub, rspamd: FakeRspamd, box: str, mode: str
) -> None:
    rspamd.mode = mode
    sent = message()
    deliver(hub, sent, box)
    (got,) = drop(hub, box)
    assert got.endswith(sent)
    assert field(got, "X-Metad-Filter") == [b"unchecked (rspamd failed)"]
    rspamd.mode = "answer"
    deliver(hub, sent, box)
    assert field(drop(hub, box)[1], "X-Metad-Filter") == []


@pytest.mark.parametrize(
    "answer",
    [
        {}, {"action": "explode", "score": 1}, {"action": "reject"}, {"action": 7, "score": 1},
        {"action": "reject", "score": "high"}, CLEAN | {"symbols": [1]},
        CLEAN | {"symbols": {"X": 1}}, CLEAN | {"milter": 3},
        CLEAN | {"milter": {"add_headers": {"X": {"value": 3}}}},
        CLEAN | {"milter": {"add_headers": {"X Y": {"value": "z"}}}},
        CLEAN | {"milter": {"add_headers": {"X": "a\r\nBcc: b"}}},
        CLEAN | {"milter": {"add_headers": {"X": "a\0b"}}},
        CLEAN | {"milter": {"add_headers": {"X": "a" * 3000}}},
        CLEAN | {"milter": {"add_headers": {f"X-{n}": "a" for n in range(60)}}},
        CLEAN | {"milter": {"remove_headers": {"X": "all"}}},
        {"error": "overloaded"},
    ],
)  # fmt: skip
def test_an_answer_that_is_nonsense_is_a_failure(
    hub: WideHub, rspamd: FakeRspamd, box: str, answer: dict
) -> None:
    rspamd.answer = answer
    deliver(hub, message(), box)
    rspamd.answer = CLEAN
    deliver(hub, message(), box)  # one failure does not open the breaker
    got, _ = drop(hub, box)[-2:]
    assert field(got, "X-Metad-Filter") == [b"unchecked (rspamd failed)"]


def test_recipients_of_another_kind_come_in_a_transaction_of_their_own(
    hub: WideHub, rspamd: FakeRspamd, box: str
) -> None:
    rspamd.answer = SPAM
    with SmtpLine(hub) as client:
        client.say(f"MAIL FROM:<{SENDER}> BODY=8BITMIME")
        client.say(f"RCPT TO:<{address(box)}>")
        client.say(f"RCPT TO:<{address('open')}>", b"452 4.5.3")
        client.deliver_in(message(), code=b"250")
        client.deliver(message(), "open")
        client.deliver(message(), "strict", code=b"550")
        client.deliver(message(), "calm")
    assert [field(one, "X-Spam") for one in drop(hub, box)] == [[b"Yes"]]
    assert [field(one, "X-Spam") for one in drop(hub, "open")] == [[]]
    assert [field(one, "X-Spam") for one in drop(hub, "calm")] == [[]]
    assert drop(hub, "strict") == []


def test_lmtp_answers_each_recipient_by_its_own_scores(
    hub: WideHub, rspamd: FakeRspamd, box: str
) -> None:
    before = {name: len(drop(hub, name)) for name in ("calm", "open", "strict")}
    rspamd.answer = REJECT  # 20: calm is marked at 12 and refused at 30
    for sent in (message(), message(b"large\r\n" * 20_000)):
        with smtp(hub, "lmtp", hello="LHLO") as client:
            client.say(f"MAIL FROM:<{SENDER}>")
            for name in (box, "calm", "open", "strict", "calm"):
                client.say(f"RCPT TO:<{address(name)}>")
            client.say("DATA", b"354")
            client.send(stuffed(sent))
            assert [client.reply(b"")[:3] for _ in range(5)] == [
                b"550", b"250", b"250", b"550", b"250",
            ]  # fmt: skip
            client.say("QUIT", b"221")
        assert len(rspamd.requests) == 1
        rspamd.requests.clear()
        calm = drop(hub, "calm")[before["calm"]]
        assert calm.endswith(sent)
        assert field(calm, "X-Spam") == [b"Yes"]
        (opened,) = drop(hub, "open")[before["open"] :]
        assert opened.endswith(sent)
        assert field(opened, "X-Spam") == []
        before = {name: count + 1 for name, count in before.items()}
    assert drop(hub, box) == []


def test_quarantined_mail_goes_to_the_second_mailbox(
    hub: WideHub, rspamd: FakeRspamd, box: str
) -> None:
    before = len(drop(hub, "calm"))
    rspamd.answer = SPAM | {"action": "quarantine", "score": 20.0}
    deliver(hub, message(), "calm")
    deliver(hub, message(), box)  # without a second mailbox it stays here, marked
    assert len(drop(hub, "calm")) == before
    (got,) = drop(hub, "calm+junk")
    assert field(got, "X-Spam") == [b"Yes"]
    assert [field(one, "X-Spam") for one in drop(hub, box)] == [[b"Yes"]]


def test_a_client_that_goes_away_while_rspamd_is_asked_costs_nothing(
    hub: WideHub, rspamd: FakeRspamd, box: str
) -> None:
    rspamd.mode = "silent"
    client = SmtpLine(hub)
    client.say(f"MAIL FROM:<{SENDER}>")
    client.say(f"RCPT TO:<{address(box)}>")
    client.say("DATA", b"354")
    client.send(stuffed(message()))
    rspamd.wait()
    client.drop()
    rspamd.mode = "answer"
    deliver(hub, message(), box)
    assert len(drop(hub, box)) == 1


def test_other_sessions_are_served_while_rspamd_is_slow(
    hub: WideHub, rspamd: FakeRspamd, box: str
) -> None:
    rspamd.mode = "silent"
    with SmtpLine(hub) as slow, SmtpLine(hub) as other:
        slow.say(f"MAIL FROM:<{SENDER}>")
        slow.say(f"RCPT TO:<{address(box)}>")
        slow.say("DATA", b"354")
        slow.send(stuffed(message()) + b"NOOP\r\n")
        rspamd.wait()
        for _ in range(50):
            other.say("NOOP")
        rspamd.mode = "answer"
        other.deliver(message(), box)
        slow.reply(b"250 2.0.0 Ok: queued")
        slow.reply(b"250")
    assert len(drop(hub, box)) == 2


def test_status_counts_checks(hub: WideHub, rspamd: FakeRspamd, box: str) -> None:
    before = hub.status()
    deliver(hub, message(), box)
    rspamd.answer = REJECT
    with SmtpLine(hub) as client:
        client.deliver(message(), box, code=b"550")
    rspamd.answer = SPAM | {"action": "quarantine", "score": 20.0}
    deliver(hub, message(), "calm")
    rspamd.mode = "drop"
    deliver(hub, message(), box)
    after = hub.status()
    counted = {name: after[f"filter_{name}"] - before[f"filter_{name}"] for name in COUNTED}
    assert counted.pop("microseconds") > 0
    assert counted == {"checks": 4, "refused": 1, "junk": 1, "failures": 1}


def test_user_show_tells_what_a_user_gets(hub: WideHub) -> None:
    shown = hub.run("user", "show", address("calm")).stdout
    assert "marked at 12, refused at 30" in shown
    assert "off" in hub.run("user", "show", address("open")).stdout


def test_what_a_user_gets_is_exported_and_imported(hub: WideHub) -> None:
    rows = hub.run("user", "export", "--no-secrets").stdout
    columns = rows.splitlines()[0].split(",")
    line = next(one for one in rows.splitlines() if one.startswith(address("calm")))
    row = dict(zip(columns, line.split(","), strict=True))
    assert (row["spam_mark"], row["spam_refuse"], row["spam_filter"]) == ("12", "30", "")
    table = hub.home / "users.csv"
    table.write_text(f"address,spam_filter,spam_mark\n{address('box59')},no,7.5\n")
    hub.run("user", "import", "--format", "csv", str(table))
    shown = json.loads(hub.run("user", "show", address("box59"), "--json").stdout)
    assert (shown["spam_filter"], shown["spam_mark"]) == (False, 7.5)


def test_the_breaker_opens_and_closes() -> None:
    with FakeRspamd() as rspamd:
        settings = f'[filter]\nrspamd = "{rspamd.address}"\nfailure = "defer"'
        with WideHub(["smtp", "pop3"], ["alice"], settings, workers=1) as hub:
            rspamd.down()
            with SmtpLine(hub) as client:
                for _ in range(6):
                    client.deliver(message(), "alice", code=b"451 4.7.1")
            assert "asked less often" in hub.log.read_text()
            rspamd.up()
            assert in_time(lambda: is_accepted(hub))
            assert "answers again" in hub.log.read_text()


def is_accepted(hub: WideHub) -> bool:
    """Whether a message is accepted now; the breaker's pause is a second."""
    with SmtpLine(hub) as client:
        return client.deliver(message(), "alice", code=b"").startswith(b"250")
