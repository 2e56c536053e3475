"""Large messages at real nodes of a cluster: the copy travels while the message arrives."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.clients import SENDER, SmtpLine, bodies, in_time, message, shows, stuffed
from tests.support.cluster_hubs import ClusterOfHubs, NodeHub
from tests.support.hub import address

SIZE = 1_500_000


@pytest.fixture
def two() -> Iterator[ClusterOfHubs]:
    with ClusterOfHubs(2, ["ann"]) as cluster:
        yield cluster


@pytest.fixture
def three() -> Iterator[ClusterOfHubs]:
    with ClusterOfHubs(3, ["ann"]) as cluster:
        yield cluster


def large() -> bytes:
    return message(b"".join(b"%060d\r\n" % number for number in range(SIZE // 62)))


def waiting(node: NodeHub) -> int:
    """Bytes of messages without an end that a node has in files without a name."""
    place = f"{node.data}/spool/"
    total = 0
    for pid in node.pids():
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    path = f"/proc/{pid}/fd/{fd}"
                    if os.readlink(path).startswith(place):
                        total += os.stat(path).st_size
    return total


class Sending:
    """A client of a node that has sent two thirds of a large message."""

    def __init__(self, node: NodeHub) -> None:
        self.text = large()
        wire = stuffed(self.text)
        self.smtp = SmtpLine(node)
        self.smtp.say(f"MAIL FROM:<{SENDER}>")
        self.smtp.say(f"RCPT TO:<{address('ann')}>")
        self.smtp.say("DATA", b"354")
        self.smtp.send(wire[: SIZE * 2 // 3])
        self._rest = wire[SIZE * 2 // 3 :]

    def __enter__(self) -> Sending:
        return self

    def __exit__(self, *_: object) -> None:
        self.smtp.drop()

    def end(self) -> bytes:
        """The reply to its end."""
        self.smtp.send(self._rest)
        return self.smtp.line()


def taker(*nodes: NodeHub) -> NodeHub:
    """The node to which most of the message has come before its end."""
    found: list[NodeHub] = []

    def has_come() -> bool:
        found[:] = [node for node in nodes if waiting(node) > SIZE // 3]
        return bool(found)

    assert in_time(has_come), "nothing streams"
    return found[0]


def test_a_large_message_is_on_its_way_to_the_other_node_before_its_end(two: ClusterOfHubs) -> None:
    a, b = two.nodes
    with Sending(a) as sending:
        assert taker(b) is b
        assert bodies(b, "ann") == []
        assert sending.end().startswith(b"250")
    assert in_time(lambda: waiting(a) == waiting(b) == 0)
    a.kill()
    assert bodies(b, "ann") == [sending.text]


def test_nothing_remains_of_a_large_message_whose_client_hangs_up(two: ClusterOfHubs) -> None:
    a, b = two.nodes
    with Sending(a):
        taker(b)
    assert in_time(lambda: waiting(a) == waiting(b) == 0)
    assert bodies(a, "ann") == bodies(b, "ann") == []


@pytest.mark.long
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "stalls"])
def test_the_node_that_takes_the_copy_goes_away_meanwhile(
    three: ClusterOfHubs, how: signal.Signals
) -> None:
    a, b, c = three.nodes
    with Sending(a) as sending:
        gone = taker(b, c)
        other = c if gone is b else b
        stopped = gone.pids()
        if how == signal.SIGKILL:
            gone.kill()
        else:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
        assert sending.end().startswith(b"250")
    assert bodies(other, "ann") == bodies(a, "ann") == [sending.text]
    if how == signal.SIGKILL:
        gone.start()
    else:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    assert in_time(lambda: shows(gone, "ann", [sending.text]))
