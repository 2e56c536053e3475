"""Workers of two nodes keep the users of one: what they ask, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import msgpack
import pytest

from metad.cluster.answers import Answer, Answered, LinkFailed, Refused
from metad.errors import ClusterError
from metad.users.database import UserDatabase
from metad.users.mirror import UserMirror
from metad.workers.user_mirror import UserMirroring
from tests.cluster.test_mail import TWO

Hook = Callable[[list[Any]], Answer | None]
ODD_ROW = msgpack.packb(((1, 0), [(99, b"of no table", b"")], None))


class Worker:
    """One worker; what it asks, the other node's worker answers at once."""

    def __init__(self, number: int, place: Path, *, asks: bool = True) -> None:
        self.number = number
        place.mkdir()
        self.users = UserDatabase(place / "users", create=True, iterations=4096)
        self.mirror = UserMirror(self.users)
        self.lines: list[str] = []
        self.asked: list[str] = []
        self.other: Worker
        self.hook: Hook = lambda request: None
        layer: Any = SimpleNamespace(peers=self, requests=self)
        self.mirroring = UserMirroring(layer, self.users, self.lines.append, asks=asks)

    def view(self) -> Any:
        return TWO

    def register(self, kind: int, handler: Callable[..., None]) -> None:
        self.handler = handler

    def request(
        self,
        member: int,
        kind: int,
        parts: Sequence[bytes],
        answered: Callable[[Answer], None],
        patience_s: float,
    ) -> None:
        body = b"".join(parts)
        request = msgpack.unpackb(body)
        self.asked.append(request[0])
        answer = self.hook(request)
        if answer is not None:
            answered(answer)
            return

        def reply(outcome: Any) -> None:
            answered(outcome if isinstance(outcome, Refused) else Answered(b"".join(outcome)))

        self.other.handler(body, reply)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Worker, Worker]]:
    one, two = Worker(1, tmp_path / "one"), Worker(2, tmp_path / "two")
    one.other, two.other = two, one
    list(one.users.add_many((f"user{number}@example.test", None) for number in range(5000)))
    one.mirror.lead(1)
    two.mirror.follow(1, empty=True)
    yield one, two
    one.users.close()
    two.users.close()


@pytest.mark.slow
def test_first_a_whole_copy_then_what_changes(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    two.mirroring.tick()
    assert two.asked.count("page") > 1
    assert two.users.account("user4999@example.test")
    two.asked.clear()
    two.mirroring.tick()
    assert two.asked == ["lineage"]
    one.users.add("new@example.test")
    two.mirroring.tick()
    assert two.asked[1:] == ["lineage", "changes"]
    assert two.users.account("new@example.test") == one.users.account("new@example.test")
    one.mirroring.tick()  # it takes changes: nothing is newer elsewhere
    assert one.asked == ["lineage"]


def test_another_worker_of_the_node_only_answers(tmp_path: Path) -> None:
    worker = Worker(1, tmp_path / "one", asks=False)
    worker.mirroring.tick()
    assert not worker.asked
    worker.users.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer", [LinkFailed("cut"), Refused("no"), Answered(b"\xc1"), Answered(ODD_ROW)]
)
@pytest.mark.parametrize("at", [1, 3])
def test_a_copy_that_breaks_off_is_begun_again(
    pair: tuple[Worker, Worker], answer: Answer, at: int
) -> None:
    _, two = pair
    two.hook = lambda request: answer if len(two.asked) > at else None
    two.mirroring.tick()
    assert two.users.lost
    assert not two.users.account("user1@example.test")
    two.hook = lambda request: None
    two.mirroring.tick()
    assert not two.users.lost
    assert two.users.account("user1@example.test")


class FullDisk:
    """An environment whose write transactions fail: at once, when a row is put, or at the end."""

    def __init__(self, real: Any, at: str) -> None:
        self._real = real
        self._at = at

    def begin(self, *tables: Any, write: bool = False) -> Any:
        if write:
            self._fails("begin")
            return Failing(self._real.begin(write=True), self._fails)
        return self._real.begin(*tables)

    def _fails(self, at: str) -> None:
        if at == self._at:
            raise lmdb.DiskError("No space left on device")


class Failing:
    """Its transaction."""

    def __init__(self, real: Any, fails: Callable[[str], None]) -> None:
        self._real = real
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        self._fails(name)
        return getattr(self._real, name)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["begin", "put", "commit"])
def test_a_disk_that_was_full_only_delays_a_copy(pair: tuple[Worker, Worker], at: str) -> None:
    _, two = pair
    mirror: Any = two.mirroring._mirror
    real, mirror._env = mirror._env, FullDisk(mirror._env, at)
    two.mirroring.tick()
    assert two.lines[-1].startswith("warning: users of node 1: ")
    assert two.lines[-1].endswith("No space left on device")
    mirror._env = real
    two.mirroring.tick()
    assert two.users.account("user4999@example.test")


@pytest.mark.slow
def test_changes_that_are_not_kept_any_more_lead_to_a_whole_copy(
    pair: tuple[Worker, Worker],
) -> None:
    one, two = pair
    two.mirroring.tick()
    for _ in range(3):
        one.users.set_disabled("user1@example.test", disabled=True)
    with one.users.env.begin(one.users.changes_table, write=True) as txn:
        txn.delete((1).to_bytes(8, "big"))
    two.asked.clear()
    two.mirroring.tick()
    assert two.asked[:3] == ["lineage", "changes", "page"]
    assert two.mirror.lineage()[0] == one.mirror.lineage()[0]


@pytest.mark.slow
def test_the_node_that_took_over_later_wins(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    two.mirroring.tick()
    two.mirror.lead(5)
    two.users.add("new@example.test")
    one.users.add("lost@example.test")
    one.mirroring.tick()
    assert one.users.account("new@example.test")
    assert not one.users.account("lost@example.test")
    two.asked.clear()
    two.mirroring.tick()
    assert two.asked == ["lineage"]


@pytest.mark.slow
def test_the_log_names_the_users_whom_the_other_node_does_not_have(
    pair: tuple[Worker, Worker],
) -> None:
    """Both have gone on alone, and each has added some."""
    one, two = pair
    two.mirroring.tick()
    for node, epoch, names in ((one, 3, "abcdefg"), (two, 4, "ax")):
        node.mirror.go_on_alone(epoch, node.number - 1, 2)
        for name in names:
            node.users.add(f"{name}@example.test")
    one.mirroring.tick()
    assert one.lines[-1] == (
        "warning: users: the users of node 2 have replaced those of this node; 6 addresses that "
        "were here are not among them: b@example.test, c@example.test, d@example.test, "
        "e@example.test, f@example.test, ..."
    )
    assert one.users.account("x@example.test")
    assert not any("replaced" in line for line in two.lines)  # its copy of before had nothing more


@pytest.mark.slow
def test_a_request_that_cannot_be_read_is_refused(pair: tuple[Worker, Worker]) -> None:
    one, two = pair
    for body in (b"", b"\xc1", msgpack.packb(["page"]), msgpack.packb(["page", [0, 1, 2]])):
        with pytest.raises(ClusterError):
            one.handler(body, lambda outcome: None)
    refusals: list[Any] = []
    one.handler(msgpack.packb(["nothing"]), refusals.append)
    two.handler(msgpack.packb(["page", [0, b"", b""]]), refusals.append)
    assert [one.text for one in refusals] == [
        "users: an unknown request 'nothing'",
        "the users here are a copy themselves",
    ]
