"""The collector of a running hub: requested by `metad gc`, idle, short of space, killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Iterator

import pytest

from metad.control_client import request
from tests.support.clients import Pop3Line, SmtpLine, bodies, deliver, digest, fetch, in_time
from tests.support.hub import Hub

NAMES = ["alice", "bob", "carol"]
# Never automatic: these tests request what they want.
QUIET = "[collector]\nidle_seconds = 86400\n"
SMALL = {"log_size": "1MiB", "workers": 1}


@pytest.fixture
def own_hub() -> Iterator[Hub]:
    with Hub(NAMES, QUIET, **SMALL) as hub:
        yield hub


def text(dice: random.Random, size: int) -> bytes:
    """Lines of about `size` octets in total."""
    lines = (dice.randbytes(400).hex().encode() for _ in range(size // 800 + 1))
    return b"\r\n".join(lines) + b"\r\n"


def fill(hub: Hub, dice: random.Random, messages: int = 110) -> dict[str, list[str]]:
    """Some MiB of mail for one to three mailboxes each.  Returns digests by mailbox."""
    sent: dict[str, list[str]] = {name: [] for name in NAMES}
    with SmtpLine(hub) as one, SmtpLine(hub) as other:
        for number in range(messages):
            octets = b"Subject: %d\r\n\r\n" % number + text(dice, dice.randrange(60_000))
            names = dice.sample(NAMES, dice.randrange(1, 4))
            dice.choice([one, other]).deliver(octets, *names)
            for name in names:
                sent[name].append(digest(octets))
    return sent


def delete_some(hub: Hub, sent: dict[str, list[str]], every: int = 2) -> None:
    """Delete all but every n-th message of each mailbox."""
    for name in NAMES:
        with Pop3Line(hub) as pop:
            pop.log_in(name)
            count = pop.count()
            gone = [number for number in range(1, count + 1) if number % every]
            for number in gone:
                pop.say(f"DELE {number}")
            pop.say("QUIT")
        sent[name] = [one for at, one in enumerate(sent[name], 1) if not at % every]


def check(hub: Hub, sent: dict[str, list[str]]) -> None:
    """By digest, in order within what one connection sent."""
    for name in NAMES:
        assert sorted(digest(body) for body in bodies(hub, name)) == sorted(sent[name])


def states(hub: Hub) -> dict[int, str]:
    return {row["number"]: row["state"] for row in request(hub.data, "status")["logs"]}


def collector(hub: Hub) -> int:
    """Its pid; it starts together with the workers."""
    (found,) = [
        one["pid"] for one in request(hub.data, "status")["processes"] if one["role"] == "collector"
    ]
    return found


def test_gc_frees_logs_and_keeps_every_message(own_hub: Hub, dice: random.Random) -> None:
    sent = fill(own_hub, dice, 200)
    delete_some(own_hub, sent, every=12)
    before = list(states(own_hub).values())
    said = json.loads(own_hub.run("gc", "--json").stdout)
    after = list(states(own_hub).values())
    assert said["logs_freed"] >= 2
    assert said["bytes_freed"] == said["logs_freed"] << 20
    assert 0 < said["bytes_moved"] < said["bytes_freed"]
    assert after.count("free") >= before.count("free") + said["logs_freed"] - 2
    assert "collecting" not in after
    check(own_hub, sent)
    own_hub.stop()
    assert own_hub.run("fsck").returncode == 0
    own_hub.start()
    check(own_hub, sent)


def test_gc_full_leaves_nothing_dead(own_hub: Hub, dice: random.Random) -> None:
    sent = fill(own_hub, dice)
    delete_some(own_hub, sent)
    said = own_hub.run("gc", "--full").stdout
    assert "logs freed" in said
    rows = [row for row in request(own_hub.data, "status")["logs"] if row["state"] == "sealed"]
    assert all(row["live_bytes"] >= 0.9 * row["tail"] for row in rows if row["generation"])
    assert all(row["live_bytes"] >= 0.97 * row["tail"] for row in rows if not row["generation"])
    check(own_hub, sent)
    own_hub.kill()
    own_hub.start()
    check(own_hub, sent)


def test_a_collection_survives_kill_9_and_the_loss_of_the_index(
    own_hub: Hub, dice: random.Random
) -> None:
    sent = fill(own_hub, dice)
    delete_some(own_hub, sent)
    own_hub.run("gc", "--full")
    own_hub.kill()
    shutil.rmtree(own_hub.data / "index")
    own_hub.start()
    check(own_hub, sent)


def test_a_killed_collector_is_replaced_and_the_round_done(
    own_hub: Hub, dice: random.Random
) -> None:
    sent = fill(own_hub, dice)
    delete_some(own_hub, sent)
    asked = request(own_hub.data, "gc", full=True)
    for _ in range(3):
        pid = collector(own_hub)
        os.kill(pid, signal.SIGKILL)
        assert in_time(lambda pid=pid: replaced(own_hub, pid))  # type: ignore[misc]
    assert in_time(lambda: request(own_hub.data, "gc-progress")["done"] >= asked["round"])
    assert "collecting" not in states(own_hub).values()
    check(own_hub, sent)
    own_hub.restart()
    check(own_hub, sent)


def replaced(hub: Hub, pid: int) -> bool:
    progress = request(hub.data, "gc-progress")
    return progress.get("pid") not in (None, pid)


def test_senders_and_readers_do_not_notice(own_hub: Hub, dice: random.Random) -> None:
    """Collections while mail comes and goes."""
    done = threading.Event()
    failed: list[BaseException] = []

    def collect() -> None:
        try:
            while not done.is_set():
                own_hub.run("gc", "--full")
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        sent = fill(own_hub, dice, 50)
        delete_some(own_hub, sent)
        more = fill(own_hub, dice, 50)
    finally:
        done.set()
        thread.join()
    assert not failed
    check(own_hub, {name: sent[name] + more[name] for name in NAMES})


def test_an_idle_hub_collects_by_itself(dice: random.Random) -> None:
    settings = "[collector]\nidle_seconds = 0\nidle_load = 1000000\n"
    with Hub(NAMES, settings, **SMALL) as hub:
        sent = fill(hub, dice, 200)
        delete_some(hub, sent, every=12)
        assert in_time(lambda: request(hub.data, "gc-progress")["logs_freed"] >= 2)
        check(hub, sent)


def test_at_the_limit_mail_is_deferred_until_the_collector_made_room(dice: random.Random) -> None:
    settings = "[collector]\nidle_seconds = 86400\nlow_space = 60\nenough_space = 70\n"
    with Hub(NAMES, settings, **SMALL, size_limit="7MiB") as hub:
        kept = b"Subject: kept\r\n\r\nfrom the beginning\r\n"
        deliver(hub, kept, "alice")
        big = b"Subject: big\r\n\r\n" + text(dice, 200_000)
        accepted = fill_to_the_limit(hub, big)
        assert accepted < 60
        assert len(fetch(hub, "bob", delete=True)) == accepted
        assert in_time(lambda: takes(hub, big))
        assert len(states(hub)) <= 7
        assert [digest(body) for body in bodies(hub, "alice")] == [digest(kept)]


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_at_the_smallest_limit_mail_is_taken_again_whenever_most_is_deleted(
    dice: random.Random, workers: int
) -> None:
    """Regression: the collector's own logs counted as the workers', the log in use was not
    collected, and the reply stayed 452 until a restart."""
    logs = 2 * workers + 3
    with Hub(NAMES, log_size="1MiB", workers=workers, size_limit=f"{logs}MiB") as hub:
        big = b"Subject: big\r\n\r\n" + text(dice, 20_000)
        for _ in range(2):
            refused = 0
            while refused < 10 * workers:  # by each worker
                refused = 0 if takes(hub, big) else refused + 1
            assert delete_most(hub) > 10
            assert in_time(lambda: keeps_taking(hub, big, 10 * workers))
            assert len(states(hub)) <= logs


def delete_most(hub: Hub) -> int:
    """Delete nine of ten of bob's messages.  Returns how many he had."""
    with Pop3Line(hub) as pop:
        pop.log_in("bob")
        count = pop.count()
        for number in range(1, count + 1):
            if number % 10:
                pop.say(f"DELE {number}")
        pop.say("QUIT")
    return count


def keeps_taking(hub: Hub, octets: bytes, times: int) -> bool:
    """Whether it takes so many in a row; else what was taken of them does not fill it again."""
    taken = all(takes(hub, octets) for _ in range(times))
    if not taken:
        delete_most(hub)
    return taken


def fill_to_the_limit(hub: Hub, octets: bytes) -> int:
    """Send until 452.  Returns how many were accepted."""
    count = 0
    while takes(hub, octets):
        count += 1
        assert count < 100
    return count


def takes(hub: Hub, octets: bytes) -> bool:
    with SmtpLine(hub) as smtp:
        for command in ("MAIL FROM:<a@example.org>", "RCPT TO:<bob@example.test>", "DATA"):
            if smtp.say(command, b"").startswith(b"452"):
                return False
        smtp.send(octets + b".\r\n")
        answer = smtp.reply(b"")
        assert answer[:3] in (b"250", b"452")
        return answer.startswith(b"250")


def test_gc_without_a_hub_says_so(own_hub: Hub) -> None:
    own_hub.stop()
    done = own_hub.run("gc", check=False)
    assert done.returncode == 69
    assert "no hub is running" in done.stderr
    own_hub.start()


def test_a_log_that_cannot_be_collected_is_counted_and_the_exit_code_tells(
    own_hub: Hub, dice: random.Random
) -> None:
    """Regression: nothing was freed, and the exit code was 0."""
    sent = fill(own_hub, dice)
    delete_some(own_hub, sent)
    logs = json.loads(own_hub.run("store", "logs", "--json").stdout)["logs"]
    sealed = [one["log"] for one in logs if one["state"] == "sealed"]
    path = own_hub.data / "logs" / f"{sealed[0]:08d}.log"
    path.chmod(0)
    done = own_hub.run("gc", "--full", check=False)
    assert done.returncode == 71
    assert "logs that could not be collected: " in done.stderr
    assert f"log {sealed[0]} could not be collected: " in own_hub.log.read_text()
    path.chmod(0o600)
    own_hub.run("gc", "--full")
    assert {name: [digest(one) for one in bodies(own_hub, name)] for name in NAMES} == sent
