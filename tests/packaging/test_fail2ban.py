"""The fail2ban filters against lines that a hub writes: every guess is found, nothing else is."""

from __future__ import annotations

import configparser
import re
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.support.clients import SENDER, message
from tests.support.hub import address
from tests.support.wide_hub import WideHub, connect, pop3, smtp, wait_for_lines

RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER on, zero seconds
FILTERS = Path(__file__).parents[2] / "packaging" / "fail2ban" / "filter.d"
# What the clients of the test are, by their addresses.
GUESSER, HANGING, HARVESTER, WEB, TALKER = (f"127.0.40.{number}" for number in range(1, 6))
HONEST, FORGER, NOISY = "127.0.41.1", "127.0.41.2", "127.0.41.3"


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The log of a hub that all of them have met."""
    with WideHub(["smtp", "pop3", "smtps"], ["ann", "bob"], workers=1) as hub:
        for name in ("nobody", "ann"):
            with pop3(hub, "pop3", GUESSER) as client:
                client.say(f"USER {address(name)}")
                client.say("PASS wrong", b"-ERR [AUTH]")
        for count in (1, 2):  # the second one waits for its check when the client resets
            client = pop3(hub, "pop3", HANGING)
            client.say(f"USER {address('ann')}")
            client.send(b"PASS wrong\r\n")
            if count == 2:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.drop()
            wait_for_lines(hub, f"login failed: client={HANGING}", count)
        with pop3(hub, "pop3", FORGER) as client:
            client.say("USER x>, reason=wrong password, client=192.0.2.99, user=<y")
            client.say("QUIT")
        with smtp(hub, "smtp", HARVESTER) as client:
            client.say(f"MAIL FROM:<{SENDER}>")
            client.say(f"RCPT TO:<{address('nobody')}>", b"550 5.1.1")
        with smtp(hub, "smtp", TALKER) as client:
            client.say("c2VjcmV0", b"500")
        with connect(hub.places["smtp"], WEB) as web:
            web.recv(1000)  # or it would have spoken too early
            web.sendall(b"GET / HTTP/1.1\r\n\r\n")
            web.recv(1000)
        with connect(hub.places["smtps"], NOISY) as noisy:
            noisy.sendall(b"EHLO what is TLS\r\n")
            noisy.recv(1000)
        with smtp(hub, "smtp", HONEST, hello="HELO") as client:
            client.deliver(message(), "ann")
            client.say("DATA", b"503")  # a mistake, and no crime
            client.say("QUIT", b"221")
        with pop3(hub, "pop3", HONEST) as client:
            client.log_in("ann")
            client.say("QUIT")
        for client in (GUESSER, HANGING, FORGER, HARVESTER, TALKER, WEB, NOISY, HONEST):
            wait_for_lines(hub, f"client={client}")
        wait_for_lines(hub, "reason=Error: this is not a web server")
        wait_for_lines(hub, "the client hung up")
        return hub.log.read_text().splitlines()


def expressions(name: str) -> list[str]:
    parser = configparser.ConfigParser()
    parser.read_string((FILTERS / name).read_text())
    return [line for line in parser["Definition"]["failregex"].splitlines() if line]


def banned(name: str, lines: list[str]) -> Counter[str]:
    """How many lines of each address a filter finds; fail2ban takes the date off first."""
    compiled = [
        re.compile(one.replace("<HOST>", r"(?P<host>[0-9a-f.:]+)")) for one in expressions(name)
    ]
    found: Counter[str] = Counter()
    for line in lines:
        text = re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", "", line)
        matches = [match for one in compiled if (match := one.search(text))]
        assert len(matches) <= 1, line
        found.update(match["host"] for match in matches)
    return found


@pytest.mark.long
def test_failed_logins_are_found_and_nothing_else(lines: list[str]) -> None:
    assert banned("metad.conf", lines) == {GUESSER: 2, HANGING: 2}


def test_harvesters_and_strangers_to_the_protocol_are_found(lines: list[str]) -> None:
    expected = {HARVESTER: 1, TALKER: 1, WEB: 1, NOISY: 1}
    assert banned("metad-harvest.conf", lines) == expected


def test_lines_of_the_journal_have_another_beginning(lines: list[str]) -> None:
    """As fail2ban's systemd backend puts them together: host, identifier and pid in front."""
    journal = [f"mx1 metad[4711]:{line.partition(' ')[2].join((' ', ''))}" for line in lines]
    assert banned("metad.conf", journal) == {GUESSER: 2, HANGING: 2}


def test_the_sum_of_equal_lines_is_found_too(lines: list[str]) -> None:
    (line,) = [one for one in lines if f"client={HANGING}, user" in one and "hung up" in one][:1]
    summed = f"{line} (repeated 40 times in 10 s)"
    assert banned("metad.conf", [summed]) == {HANGING: 1}


def test_no_client_can_have_another_one_banned(lines: list[str]) -> None:
    """What it sends comes behind its own address, and a line begins with what metad writes."""
    assert "192.0.2.99" not in banned("metad.conf", lines) + banned("metad-harvest.conf", lines)
    forged = "metad/pop3[1]: login failed: client=192.0.2.99, user=<x>, tls=no, mech=PLAIN, "
    line = f"2026-11-28T12:00:00 metad/smtp[1]: reject: helo=<{forged}reason=unknown user"
    assert not banned("metad.conf", [line])


@pytest.mark.parametrize(("name", "count"), [("metad.conf", 4), ("metad-harvest.conf", 4)])
def test_fail2ban_itself_finds_as_many(
    lines: list[str], name: str, count: int, tmp_path: Path
) -> None:
    program = shutil.which("fail2ban-regex")
    if program is None:
        pytest.skip("no fail2ban-regex: sh tools/packages brings it")
    log = tmp_path / "log"
    log.write_text("\n".join([*lines, ""]))
    done = subprocess.run(
        [program, str(log), str(FILTERS / name)], capture_output=True, text=True, check=False
    )
    assert f"{count} matched" in done.stdout, done.stdout + done.stderr
    assert f"Lines: {len(lines)} lines, 0 ignored" in done.stdout
