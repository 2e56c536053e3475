"""The socket of the directory process, and the proposals that go over it."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from metad.cluster import local
from metad.cluster.local import LocalServer, ask, request, socket_path
from metad.cluster.proposals import DirectoryProposals, DirectProposals
from metad.cluster.view import View
from metad.errors import ClusterError
from metad.limits import CLUSTER_LOCAL_CLIENTS, CLUSTER_LOCAL_FRAME
from tests.cluster.views import make_member, make_view

VIEW = make_view(make_member(1))


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Shorter than pytest's, which has the user's name in it: a socket's path must be short."""
    with TemporaryDirectory(prefix="metad-") as made:
        yield Path(made)


async def echo(message: local.Message) -> local.Message:
    return {"said": message["what"]}


async def refuse(_: local.Message) -> local.Message:
    raise ClusterError("not today")


async def stumble(_: local.Message) -> local.Message:
    raise KeyError("what")


def serve(home: Path, test: Callable[[Path, list[str]], Awaitable[None]]) -> None:
    path = socket_path(home)
    path.parent.mkdir()
    lines: list[str] = []

    async def main() -> None:
        server = LocalServer(path, lines.append)
        for op, handler in (("echo", echo), ("refuse", refuse), ("stumble", stumble)):
            server.register(op, handler)
        await server.start()
        try:
            await test(path, lines)
        finally:
            await server.close()

    asyncio.run(main())


def test_a_command_and_a_process_get_their_answers(tmp_path):
    async def test(path: Path, lines: list[str]) -> None:
        message = {"op": "echo", "what": b"x" * 100_000}
        assert (await request(path, message))["said"] == message["what"]
        assert (await asyncio.to_thread(ask, path, message))["said"] == message["what"]
        assert not lines

    serve(tmp_path, test)


def test_a_path_may_be_longer_than_the_address_of_a_socket(tmp_path):
    """Bound, replaced, and asked by a process and by a command."""
    home = tmp_path / ("d" * 100) / ("e" * 100)
    home.mkdir(parents=True)

    async def test(path: Path, lines: list[str]) -> None:
        assert len(os.fsencode(path)) > 200
        message = {"op": "echo", "what": 1}
        assert (await request(path, message))["said"] == 1
        assert (await asyncio.to_thread(ask, path, message))["said"] == 1
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        second = LocalServer(path, lines.append)
        second.register("echo", echo)
        await second.start()
        assert (await request(path, message))["said"] == 1
        await second.close()

    serve(home, test)
    assert not socket_path(home).exists()
    with pytest.raises(ClusterError, match="cannot be asked: No such file"):
        ask(socket_path(home), {})
    with pytest.raises(ClusterError, match="cannot be asked: No such file"):
        asyncio.run(request(socket_path(home), {}))


def test_only_the_owner_may_ask(tmp_path):
    async def test(path: Path, _: list[str]) -> None:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600

    serve(tmp_path, test)
    assert not socket_path(tmp_path).exists()


def test_a_socket_that_a_killed_process_left_is_replaced(tmp_path):
    path = socket_path(tmp_path)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    path.parent.rename(tmp_path / "kept")

    async def test(path: Path, _: list[str]) -> None:
        assert (await request(path, {"op": "echo", "what": 1}))["said"] == 1

    async def again() -> None:
        server = LocalServer(path, print)
        server.register("echo", echo)
        await server.start()
        await test(path, [])
        await server.close()

    (tmp_path / "kept").rename(path.parent)
    asyncio.run(again())


def test_refusals_and_bugs_are_told(tmp_path):
    async def test(path: Path, lines: list[str]) -> None:
        for op, reason in (("refuse", "not today"), ("stumble", "failed"), (None, "knows no")):
            with pytest.raises(ClusterError, match=reason):
                await request(path, {"op": op})
            with pytest.raises(ClusterError, match=reason):
                await asyncio.to_thread(ask, path, {"op": op})
        assert len(lines) == 2
        assert all("the request stumble" in line for line in lines)

    serve(tmp_path, test)


@pytest.mark.parametrize(
    "sent",
    [
        (CLUSTER_LOCAL_FRAME + 1).to_bytes(4, "big"),
        b"\0\0\0\1\xc1",
        b"\0\0\0\1\x05",
        b"\0\0\0\x09abc",
        b"\0",
    ],
)
def test_what_is_no_frame_ends_the_connection(tmp_path, sent):
    async def test(path: Path, _: list[str]) -> None:
        answers, requests = await asyncio.open_unix_connection(str(path))
        requests.write(sent)
        requests.write_eof()
        async with asyncio.timeout(30):
            assert await answers.read() == b""
        requests.close()
        assert (await request(path, {"op": "echo", "what": 1}))["said"] == 1

    serve(tmp_path, test)


def test_too_long_a_request_is_not_sent(tmp_path):
    async def test(path: Path, _: list[str]) -> None:
        message = {"op": "echo", "what": bytes(CLUSTER_LOCAL_FRAME)}
        with pytest.raises(ClusterError, match="longer than"):
            await request(path, message)
        with pytest.raises(ClusterError, match="longer than"):
            await asyncio.to_thread(ask, path, message)

    serve(tmp_path, test)


@pytest.mark.slow
def test_clients_are_bounded(tmp_path):
    async def test(path: Path, lines: list[str]) -> None:
        opened = [
            await asyncio.open_unix_connection(str(path)) for _ in range(CLUSTER_LOCAL_CLIENTS)
        ]
        with pytest.raises(ClusterError, match="cannot be asked"):
            await request(path, {"op": "echo", "what": 1}, 20)
        for _, writer in opened:
            writer.close()
        async with asyncio.timeout(30):
            while True:
                try:
                    await request(path, {"op": "echo", "what": 1})
                except ClusterError:
                    continue
                break

    serve(tmp_path, test)


@pytest.mark.slow
def test_a_process_that_is_away_or_mute_is_told(tmp_path):
    path = tmp_path / "directory"
    with pytest.raises(ClusterError, match="cannot be asked: No such file"):
        ask(path, {})
    with pytest.raises(ClusterError, match="cannot be asked: No such file"):
        asyncio.run(request(path, {}))
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        with pytest.raises(ClusterError, match="does not answer in time"):
            ask(path, {}, 0.05)
        with pytest.raises(ClusterError, match="does not answer in time"):
            asyncio.run(request(path, {}, 0.05))


def test_an_operation_has_one_handler(tmp_path):
    server = LocalServer(tmp_path / "directory", print)
    server.register("echo", echo)
    with pytest.raises(ValueError, match="already"):
        server.register("echo", refuse)


# --- Proposals ------------------------------------------------------------------------------------


def test_without_etcd_a_view_is_adopted_at_once():
    adopted: list[View] = []
    answers: list[str] = []
    DirectProposals(adopted.append).propose(VIEW, answers.append)
    assert (adopted, answers) == ([VIEW], [""])


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ClusterError("it is older"), "it is older"), (OSError(28, "no space"), "no space")],
)
def test_without_etcd_a_view_that_cannot_be_kept_is_told(error, reason):
    def adopt(view: View) -> None:
        raise error

    answers: list[str] = []
    DirectProposals(adopt).propose(VIEW, answers.append)
    assert answers == [reason]


def test_with_etcd_the_directory_is_asked(tmp_path):
    views: list[View] = []

    async def take(message: local.Message) -> local.Message:
        views.append(View.decode(message["view"]))
        if len(views) > 1:
            raise ClusterError("another was first")
        return {}

    async def main() -> None:
        path = tmp_path / "directory"
        server = LocalServer(path, print)
        server.register("propose", take)
        await server.start()
        proposals = DirectoryProposals(asyncio.get_running_loop(), path)
        answers: asyncio.Queue[str] = asyncio.Queue()
        for _ in range(2):
            proposals.propose(VIEW, answers.put_nowait)
            assert answers.empty()
        async with asyncio.timeout(30):
            assert {await answers.get(), await answers.get()} == {"", "another was first"}
        await server.close()
        proposals.propose(VIEW, answers.put_nowait)
        async with asyncio.timeout(30):
            assert "cannot be asked" in await answers.get()
        assert views == [VIEW, VIEW]

    asyncio.run(main())
