"""The client, against a real etcd."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from metad.cluster import etcd as client
from metad.cluster import etcd_json
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import (
    CompactedError,
    EtcdError,
    LongAnswerError,
    equals,
    missing,
    puts,
    reads,
)
from metad.errors import ConfigError
from tests.cluster.directory_kit import config
from tests.support.etcd import EtcdCluster, TlsEtcd, need_etcd
from tests.support.hub import free_ports

pytestmark = pytest.mark.slow  # they start etcd

need_etcd()


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdCluster]:
    with EtcdCluster() as one:
        yield one


async def put(etcd: Etcd, key: str, value: bytes, lease: int = 0) -> int:
    outcome = await etcd.transact([], [puts(key, value, lease)])
    assert outcome.succeeded
    return outcome.revision


def test_what_is_put_is_read(server):
    async def main():
        async with Etcd(config(server.urls)) as etcd:
            assert (await etcd.get("/t/none")).rows == []
            revision = await put(etcd, "/t/one", b"\0\xff value")
            found = await etcd.get("/t/one")
            assert found.rows == [etcd_json.Row("/t/one", b"\0\xff value", revision)]
            assert found.revision >= revision

    asyncio.run(main())


def test_pages_of_a_prefix_are_of_one_revision(server):
    async def main():
        async with Etcd(config(server.urls)) as etcd:
            for number in range(7):
                await put(etcd, f"/pages/{number}", b"before")
            pages = []
            async with aclosing(etcd.prefix("/pages/", page=3)) as reading:
                async for one in reading:
                    pages.append(one)
                    await put(etcd, "/pages/6", b"after")
                    await put(etcd, "/pages/9", b"after")
            assert [len(one.rows) for one in pages] == [3, 3, 1]
            assert len({one.revision for one in pages}) == 1
            assert {row.value for one in pages for row in one.rows} == {b"before"}
            empty = [one async for one in etcd.prefix("/nothing/")]
            assert [one.rows for one in empty] == [[]]

    asyncio.run(main())


def test_pages_of_large_rows_are_smaller(server, monkeypatch):
    monkeypatch.setattr(client, "ETCD_ANSWER", 1_000_000)

    async def main():
        async with Etcd(config(server.urls)) as etcd:
            for number in range(6):
                await put(etcd, f"/large/{number}", b"x" * 300_000)
            pages = [(len(one.rows), one.more) async for one in etcd.prefix("/large/", page=5)]
            assert pages == [(2, True), (2, True), (2, False)]
            await put(etcd, "/large/7", b"x" * 1_000_000)
            with pytest.raises(LongAnswerError):
                assert [one async for one in etcd.prefix("/large/", page=5)]

    asyncio.run(main())


def test_a_transaction_compares(server):
    async def main():
        async with Etcd(config(server.urls)) as etcd:
            made = await etcd.transact([missing("/cas")], [puts("/cas", b"1")])
            assert made.succeeded
            again = await etcd.transact([missing("/cas")], [puts("/cas", b"2")], [reads("/cas")])
            assert not again.succeeded
            assert [row.value for row in again.found[0]] == [b"1"]
            (row,) = again.found[0]
            assert (await etcd.transact([equals("/cas", b"1")], [puts("/cas", b"3")])).succeeded
            stale = etcd_json.unchanged("/cas", row.mod)
            assert not (await etcd.transact([stale], [puts("/cas", b"4")])).succeeded
            absent = etcd_json.unchanged("/not there", 0)
            assert (await etcd.transact([absent], [etcd_json.deletes("/cas")])).succeeded
            assert (await etcd.get("/cas")).rows == []

    asyncio.run(main())


def test_a_key_goes_with_its_lease(server):
    async def main():
        async with Etcd(config(server.urls)) as etcd:
            lease = await etcd.grant(60)
            await put(etcd, "/leased", b"x", lease)
            assert (await etcd.get("/leased")).rows[0].lease == lease
            assert await etcd.keep_alive(lease) == 60
            await etcd.revoke(lease)
            assert (await etcd.get("/leased")).rows == []
            assert await etcd.keep_alive(lease) == 0

    asyncio.run(main())


def test_a_watch_tells_of_changes_and_deletions(server):
    async def main():
        async with Etcd(config(server.urls)) as etcd:
            first = await put(etcd, "/watched/a", b"1")
            seen: list[etcd_json.Change] = []
            end = etcd_json.end_of_prefix("/watched/")
            async with aclosing(etcd.watch("/watched/", end, first)) as changes:
                begun = False
                async for one in changes:
                    seen += one.changes
                    if not begun:
                        begun = True
                        assert one.changes == []
                        await put(etcd, "/elsewhere", b"2")
                        await etcd.transact([], [etcd_json.deletes("/watched/a")])
                        await put(etcd, "/watched/b", b"3" * 1_000_000)
                    if len(seen) == 3:
                        break
            assert [(one.key, one.row and one.row.value[:1]) for one in seen] == [
                ("/watched/a", b"1"),
                ("/watched/a", None),
                ("/watched/b", b"3"),
            ]
            assert seen[0].mod == first

    asyncio.run(main())


def test_what_does_not_fit_in_one_answer_comes_in_pieces_that_say_so(server):
    """etcd cuts anywhere, also within a revision."""

    async def main():
        async with Etcd(config(server.urls)) as etcd:
            many = [puts(f"/pieces/{number:02}", b"x" * 60_000) for number in range(20)]
            first, *_, last = [(await etcd.transact([], many)).revision for _ in range(4)]
            pieces: list[etcd_json.Changes] = []
            async with aclosing(etcd.watch("/pieces/", "/pieces0", first)) as changes:
                async for one in changes:
                    if one.changes:
                        pieces.append(one)
                        if not one.more:
                            break
            assert [one.more for one in pieces[:-1]] == [True] * (len(pieces) - 1) != []
            mods = [{change.mod for change in one.changes} for one in pieces]
            assert any(one & another for one, another in pairwise(mods))
            assert set.union(*mods) == set(range(first, last + 1))

    asyncio.run(main())


def test_a_compacted_revision_is_told(server):
    async def main():
        async with Etcd(config(server.urls)) as etcd:
            old = await put(etcd, "/compacted", b"1")
            await put(etcd, "/compacted", b"2")
            compacted = server.compact()
            with pytest.raises(CompactedError) as told:
                async with aclosing(etcd.watch("/compacted", "/compacted0", old)) as changes:
                    async for _ in changes:
                        pass
            assert told.value.revision == compacted
            with pytest.raises(CompactedError):
                async for _ in etcd.prefix("/compacted", old):
                    pass
            assert (await etcd.get("/compacted")).rows[0].value == b"2"

    asyncio.run(main())


def test_an_endpoint_that_refuses_connections_costs_nothing(server):
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"

    async def main():
        async with Etcd(config((dead, *server.urls))) as etcd:
            await put(etcd, "/endpoint", b"1")  # a transaction too: it was not sent before
            assert etcd.endpoint == server.urls[0]
            assert (await etcd.get("/endpoint")).rows[0].value == b"1"

    asyncio.run(main())


def test_what_is_not_etcd_and_nothing_at_all_are_told(server):
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"

    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n[1, 2]")
        await writer.drain()
        writer.close()

    async def main():
        async with Etcd(config((dead,))) as etcd:
            with pytest.raises(EtcdError, match="refused"):
                await etcd.get("/x")
            with pytest.raises(EtcdError):
                async for _ in etcd.watch("/x", "/y", 0):
                    pass
        other = await asyncio.start_server(answer, "127.0.0.1", 0)
        host, port = other.sockets[0].getsockname()
        async with Etcd(config((f"http://{host}:{port}",))) as etcd:
            with pytest.raises(EtcdError, match="not etcd"):
                await etcd.get("/x")
        other.close()

    asyncio.run(main())


def test_a_refusal_has_its_reason(server):
    async def main():
        async with Etcd(config(server.urls)) as etcd:
            with pytest.raises(EtcdError, match=r"etcd refuses: .*key is not provided"):
                await etcd.transact([], [puts("", b"1")])
            many = [puts(f"/many/{number}", b"") for number in range(129)]
            with pytest.raises(EtcdError, match="too many operations"):
                await etcd.transact([], many)

    asyncio.run(main())


def test_a_watch_that_is_cut_is_told_and_another_one_begins():
    async def main(one: EtcdCluster):
        async with Etcd(config(one.urls)) as etcd:
            with pytest.raises(EtcdError, match="watch on etcd ended"):
                async with aclosing(etcd.watch("/w", "/x", 0)) as changes:
                    async for _ in changes:
                        one.stop(signal.SIGKILL)
            one.start()
            revision = await put(etcd, "/w", b"1")
            async with aclosing(etcd.watch("/w", "/x", revision)) as changes:
                async for found in changes:
                    if found.changes:
                        break
            assert found.changes[0].row.value == b"1"

    with EtcdCluster() as one:
        asyncio.run(main(one))


@pytest.mark.long
def test_of_three_the_leader_is_killed_and_one_hangs():
    """A request goes to the next endpoint; without a majority there is no answer, and it is over in
    time."""

    async def main(three: EtcdCluster):
        async with Etcd(config(three.urls)) as etcd:
            await put(etcd, "/three", b"1")
            leader = three.leader
            leader.end(signal.SIGKILL)
            three.wait()
            assert (await etcd.get("/three")).rows[0].value == b"1"
            await put(etcd, "/three", b"2")
            leader.start()
            three.wait()
            hung = next(one for one in three.servers if one.url == etcd.endpoint)
            hung.pause()
            async with asyncio.timeout(10):
                assert (await etcd.get("/three")).rows[0].value == b"2"
            other = next(one for one in three.servers if one is not hung and not one.leads)
            other.pause()
            async with asyncio.timeout(10):
                with pytest.raises(EtcdError, match="etcd does not answer"):
                    await etcd.get("/three")
            for one in (hung, other):
                one.go_on()

    with EtcdCluster(3) as three:
        asyncio.run(main(three))


def test_tls_with_certificates_on_both_sides(tmp_path):
    async def main(one: TlsEtcd) -> None:
        files: dict[str, Any] = {
            "etcd_ca": one.ca,
            "etcd_certificate": one.certificate,
            "etcd_key": one.key,
        }
        async with Etcd(replace(config(one.urls), **files)) as etcd:
            await put(etcd, "/tls", b"1")
            assert (await etcd.get("/tls")).rows[0].value == b"1"
            async with aclosing(etcd.watch("/tls", "/tlt", 0)) as changes:
                async for found in changes:
                    assert found.changes == []
                    break
        async with Etcd(replace(config(one.urls), etcd_ca=one.ca)) as etcd:
            with pytest.raises(EtcdError, match="does not answer"):
                await etcd.get("/tls")
        async with Etcd(config(one.urls)) as etcd:
            with pytest.raises(EtcdError, match="certificate"):
                await etcd.get("/tls")
        for name in files:
            with pytest.raises(ConfigError, match=r"cluster.etcd_ca, etcd_certificate, etcd_key"):
                Etcd(replace(config(one.urls), **{**files, name: tmp_path / "none"}))

    with TlsEtcd() as one:
        asyncio.run(main(one))


IMPORTS = """
import asyncio, sys
import uvloop
from pathlib import Path
from metad.config.parse import parse
from metad.master.preload import preload
text = '[cluster]\\naddress = "127.0.0.1:1"\\netcd = ["{url}"]\\n'
config = parse(text, None, Path("/srv/m"), {{"HOME": "/"}})
preload(config)
import metad.workers.directory
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import EtcdError, puts
before = set(sys.modules)

async def main():
    async with Etcd(config.cluster) as etcd:
        await etcd.transact([], [puts("/imports", b"x" * 1_000_000)])
        async for _ in etcd.prefix("/imports"):
            pass
        async for _ in etcd.watch("/imports", "/importt", 0):
            break
    try:
        async with Etcd(config.cluster) as etcd:
            etcd._endpoints = ("http://127.0.0.1:1",)
            await etcd.get("/x")
    except EtcdError:
        pass

uvloop.new_event_loop().run_until_complete(main())
print(*sorted(set(sys.modules) - before))
"""


def test_a_client_imports_nothing_later(server):
    """In a chroot, or confined, it no longer could."""
    script = IMPORTS.format(url=server.urls[0])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
