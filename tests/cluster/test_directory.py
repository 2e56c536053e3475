"""Lease, word, view and proposals of nodes, against a real etcd."""

from __future__ import annotations

import asyncio
import errno
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from metad.cluster import restoring, seen
from metad.cluster.absence import leaving
from metad.cluster.directory_keys import Identity
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import puts, reads
from metad.cluster.view import Membership, View
from metad.errors import ClusterError
from metad.limits import CLUSTER_LEASE, CLUSTER_WORD
from tests.cluster.directory_kit import (
    ABSENT_AFTER,
    Node,
    PatientEtcd,
    begin,
    config,
    settle,
)
from tests.cluster.views import make_member, make_view
from tests.support.etcd import EtcdCluster, need_etcd

pytestmark = pytest.mark.slow  # they start etcd

need_etcd()


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdCluster]:
    with EtcdCluster() as one:
        yield one


class Cluster:
    """Three nodes, and an etcd with their directory."""

    def __init__(self, home: Path, etcd: Etcd, view: View) -> None:
        self.view = view
        self.etcd = etcd
        self.nodes = [Node(home / str(one.number), one.number, view) for one in view.members]
        self.directories = [node.directory(etcd) for node in self.nodes]


Test = Callable[[Cluster], Awaitable[None]]


def run(one: EtcdCluster, home: Path, test: Test, members: int = 3) -> None:
    """`test` with a cluster of its own, which is registered and has word."""

    async def main() -> None:
        async with PatientEtcd(config(one.urls)) as etcd:
            cluster = Cluster(home, etcd, fresh_view(home, members))
            await begin(etcd, cluster.view)
            await settle(*cluster.directories)
            assert all(node.has_word for node in cluster.nodes)
            await test(cluster)

    asyncio.run(main())


def fresh_view(home: Path, members: int) -> View:
    """Of a cluster that no other test has."""
    view = make_view(*(make_member(number) for number in range(1, members + 1)))
    return replace(view, cluster=home.name.encode().hex()[-32:].rjust(32, "0"))


def absent(view: View, number: int) -> View:
    return view.changed(members=view.with_member(number, state=Membership.ABSENT))


def test_word_comes_with_the_second_round_and_ends_by_itself(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        node = cluster.nodes[0]
        node.later_ns += int((CLUSTER_WORD + 0.1) * 1e9)
        assert not node.has_word
        await cluster.directories[0].round()
        assert node.has_word
        assert not node.lines

    run(server, tmp_path, test)


def test_a_node_that_is_refused_has_neither_word_nor_lease(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        node, one = cluster.nodes[1], cluster.directories[1]
        node.takes_part = False
        await one.round()
        assert not node.has_word
        (alive,) = (await cluster.etcd.get(one.keys.alive(2))).rows
        await cluster.etcd.revoke(alive.lease)  # as it ends by itself
        await settle(one)
        assert not node.has_word
        await cluster.directories[0].round()
        assert set(cluster.directories[0].leased()) == {1, 3}
        node.takes_part = True
        await settle(one)
        assert node.has_word

    run(server, tmp_path, test)


def test_a_node_that_is_refused_or_removed_changes_no_users(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        node, one = cluster.nodes[2], cluster.directories[2]
        one.check_member()
        node.takes_part = False
        with pytest.raises(ClusterError, match="no longer takes part"):
            one.check_member()
        node.takes_part = True
        await one.etcd.revoke(one._lease)  # it is stopped
        removed = cluster.view.with_member(3, state=Membership.REMOVED)
        await cluster.directories[0].propose(cluster.view.changed(members=removed))
        one.check_member()  # it does not know yet
        await one.round()
        with pytest.raises(ClusterError, match="was removed") as refused:
            one.check_member()
        assert "on another node" in refused.value.remedy

    run(server, tmp_path, test)


def test_a_directory_without_a_lease_has_no_word(server, tmp_path):
    async def main() -> None:
        async with PatientEtcd(config(server.urls)) as etcd:
            view = fresh_view(tmp_path, 1)
            node = Node(tmp_path / "1", 1, view)
            await begin(etcd, view)
            one = node.directory(etcd)
            await one.round()
            assert not node.has_word
            await one.round()
            assert node.has_word

    asyncio.run(main())


def test_a_lease_that_ended_gives_no_word_until_it_was_there_again(server, tmp_path):
    """Between its end and the next, another member may have gone on without this one."""

    async def test(cluster: Cluster) -> None:
        one, node = cluster.directories[0], cluster.nodes[0]
        row = one.found.alive[1]
        await cluster.etcd.revoke(row.lease)
        node.word.clear()
        await one.round()
        assert not node.has_word
        await one.round()
        assert node.has_word

    run(server, tmp_path, test)


def test_a_lease_under_another_node_of_this_number_gives_no_word(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        one, node = cluster.directories[0], cluster.nodes[0]
        other = await cluster.etcd.grant(CLUSTER_LEASE)
        await cluster.etcd.transact([], [puts(one.keys.alive(1), b"other", other)])
        node.word.clear()
        await one.round()
        assert not node.has_word

    run(server, tmp_path, test)


def test_a_proposal_is_everywhere_after_a_round(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        following = cluster.view.changed(copies=3)
        await cluster.directories[1].propose(following)
        assert cluster.nodes[1].view == following
        for one, node in zip(cluster.directories, cluster.nodes, strict=True):
            await one.round()
            assert node.view == following
            assert node.has_word
            assert node.file.load() == following

    run(server, tmp_path, test)


def test_a_newer_view_of_a_link_ends_the_word_of_the_old_one(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        following = cluster.view.changed(copies=3)
        await cluster.directories[1].propose(following)
        cluster.nodes[0].current.adopt(following)
        assert not cluster.nodes[0].has_word
        await cluster.directories[0].round()
        assert cluster.nodes[0].has_word

    run(server, tmp_path, test)


def test_of_two_proposals_one_wins(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        one, other = cluster.view.changed(copies=3), cluster.view.changed(alone="accept")
        outcomes = await asyncio.gather(
            cluster.directories[0].propose(one),
            cluster.directories[1].propose(other),
            return_exceptions=True,
        )
        lost = [found for found in outcomes if found is not None]
        assert len(lost) == 1
        assert isinstance(lost[0], ClusterError)
        await settle(*cluster.directories)
        assert len({node.view.digest for node in cluster.nodes}) == 1
        assert cluster.nodes[0].view == (other if outcomes[0] else one)

    run(server, tmp_path, test)


def test_a_late_proposal_is_refused_and_a_repeated_one_stands(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        following = cluster.view.changed(copies=3)
        await cluster.directories[0].propose(following)
        await cluster.directories[1].propose(following)
        with pytest.raises(ClusterError, match="is late: the cluster has 2"):
            await cluster.directories[1].propose(cluster.view.changed(alone="accept"))
        with pytest.raises(ClusterError, match="another cluster"):
            other = replace(following.changed(), cluster="ab" * 16)
            await cluster.directories[1].propose(other)

    run(server, tmp_path, test)


def test_a_member_with_a_lease_cannot_be_left_out(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        one = cluster.directories[0]
        for state in (Membership.ABSENT, Membership.REMOVED):
            members = cluster.view.with_member(3, state=state)
            with pytest.raises(ClusterError, match="still has a lease"):
                await one.propose(cluster.view.changed(members=members))
        await cluster.etcd.revoke(one.found.alive[3].lease)
        await one.propose(absent(cluster.view, 3))

    run(server, tmp_path, test)


def test_who_has_to_be_away_for_a_change():
    view = make_view(
        make_member(1), make_member(2, Membership.ABSENT), make_member(3, Membership.DRAINING)
    )
    gone = view.changed(members=view.with_member(2, state=Membership.REMOVED))
    drained = view.changed(members=view.with_member(3, state=Membership.REMOVED))
    back = view.changed(members=view.with_member(2, state=Membership.ENTERING))
    joined = view.changed(members=(*view.members, make_member(4, Membership.ENTERING)))
    assert [list(leaving(view, one)) for one in (gone, drained, back, joined, view)] == [
        [2], [], [], [], [],
    ]  # fmt: skip
    assert list(leaving(view, absent(view, 1))) == [1]


async def wait(cluster: Cluster, seconds: float, *which: int) -> None:
    """Rounds of these nodes, as if so much time passed."""
    for _ in range(int(seconds // 5) + 1):
        for number in which:
            cluster.nodes[number - 1].later_ns += 5_000_000_000
            await cluster.directories[number - 1].round()


def test_the_others_go_on_without_a_member_that_is_away(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        await cluster.etcd.revoke(cluster.directories[0].found.alive[3].lease)
        await wait(cluster, ABSENT_AFTER - 6, 1, 2)
        assert cluster.nodes[0].view == cluster.view
        await wait(cluster, ABSENT_AFTER, 1, 2)
        for number in (1, 2):
            assert cluster.nodes[number - 1].view.those(Membership.ABSENT) == (3,)
            assert cluster.nodes[number - 1].view.epoch == 2
        said = [line for node in cluster.nodes for line in node.lines]
        assert said == ["cluster: epoch 2: node 3 is absent"]

    run(server, tmp_path, test)


def test_a_member_that_is_back_in_time_stays(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        await cluster.etcd.revoke(cluster.directories[0].found.alive[3].lease)
        await wait(cluster, ABSENT_AFTER - 6, 1)
        await settle(cluster.directories[2])
        await wait(cluster, ABSENT_AFTER, 1)
        assert cluster.nodes[0].view == cluster.view

    run(server, tmp_path, test)


def test_two_copies_stay(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        await cluster.etcd.revoke(cluster.directories[0].found.alive[2].lease)
        await wait(cluster, 2 * ABSENT_AFTER, 1)
        assert cluster.nodes[0].view == cluster.view

    run(server, tmp_path, test, members=2)


def test_after_a_pause_of_etcd_no_member_is_away(tmp_path):
    """All leases have ended while it was stopped, and no node is gone."""

    async def main(one: EtcdCluster) -> None:
        async with PatientEtcd(config(one.urls)) as etcd:
            cluster = Cluster(tmp_path, etcd, fresh_view(tmp_path, 3))
            await begin(etcd, cluster.view)
            await settle(*cluster.directories)
            await asyncio.to_thread(one.stop, signal.SIGKILL)
            node, directory = cluster.nodes[0], cluster.directories[0]
            await directory.round()
            await directory.round()
            assert [line for line in node.lines if "etcd does not answer" in line] == node.lines
            assert len(node.lines) == 1
            with pytest.raises(ClusterError, match="does not answer"):
                await directory.propose(cluster.view.changed(copies=3))
            await asyncio.to_thread(one.start)
            await etcd.revoke(directory.found.alive[3].lease)
            node.later_ns += int(10 * ABSENT_AFTER * 1e9)
            assert not node.has_word
            await settle(directory)
            assert node.has_word
            assert node.lines[1:] == ["cluster: etcd answers again"]
            assert node.view == cluster.view
            assert not node.is_frozen

    with EtcdCluster() as one:
        asyncio.run(main(one))


def test_a_leader_that_is_killed_stops_no_proposal(tmp_path):
    async def main(three: EtcdCluster) -> None:
        async with Etcd(config(three.urls)) as etcd:
            cluster = Cluster(tmp_path, etcd, fresh_view(tmp_path, 3))
            await begin(etcd, cluster.view)
            await settle(*cluster.directories)
            three.leader.end(signal.SIGKILL)
            await asyncio.to_thread(three.wait)
            await cluster.directories[0].propose(cluster.view.changed(copies=3))
            await settle(*cluster.directories)
            assert [node.view.epoch for node in cluster.nodes] == [2, 2, 2]
            assert all(node.has_word for node in cluster.nodes)

    with EtcdCluster(3) as three:
        asyncio.run(main(three))


def test_etcd_moves_to_another_endpoint(tmp_path):
    """The process starts again with the new configuration; a word needs a new lease of it."""

    async def main(one: EtcdCluster) -> None:
        view = fresh_view(tmp_path, 1)
        node = Node(tmp_path / "1", 1, view)
        async with Etcd(config(one.urls)) as etcd:
            await begin(etcd, view)
            await settle(node.directory(etcd))
        one.stop()
        one.servers[0].move()
        one.start()
        async with Etcd(config(one.urls)) as etcd:
            again = node.directory(etcd)
            await settle(again)
            await again.propose(view.changed(copies=3))
            await again.round()
            assert node.has_word
            assert not node.is_frozen

    with EtcdCluster() as one:
        asyncio.run(main(one))


# --- Wiped and rolled back ------------------------------------------------------------------------


def test_a_wiped_etcd_is_not_trusted_until_it_is_restored(tmp_path):
    async def main(one: EtcdCluster) -> None:
        async with PatientEtcd(config(one.urls)) as etcd:
            cluster = Cluster(tmp_path, etcd, fresh_view(tmp_path, 3))
            await begin(etcd, cluster.view)
            await settle(*cluster.directories)
            first, node = cluster.directories[0], cluster.nodes[0]
            await first.propose(cluster.view.changed(copies=3))
            await asyncio.to_thread(one.wipe)
            await settle(*cluster.directories[:2])
            assert [node.is_frozen for node in cluster.nodes] == [True, True, False]
            assert not node.has_word
            assert "no directory of this cluster; mail goes on" in node.lines[-1]
            assert node.lines[-1].endswith("on the node with the greatest epoch")
            with pytest.raises(ClusterError, match=r"not trusted.*restore-directory"):
                await first.propose(node.view.changed(copies=2))
            rows = [row async for page in etcd.prefix("/metad/") for row in page.rows]
            assert rows == []  # nothing is written into it
            identity, view = await restoring.restore(etcd, node.view, node.seen.load(), 1)
            assert (identity.generation, view) == (2, node.view)
            await settle(*cluster.directories)
            assert [node.is_frozen for node in cluster.nodes] == [False, False, False]
            assert [node.view.epoch for node in cluster.nodes] == [2, 2, 2]
            assert all(node.has_word for node in cluster.nodes)
            assert node.lines[-1] == "cluster: the directory is trusted again"
            await first.propose(node.view.changed(copies=2))

    with EtcdCluster() as one:
        asyncio.run(main(one))


def test_an_old_snapshot_is_not_trusted_however_far_it_grows(tmp_path):
    async def main(one: EtcdCluster) -> None:
        async with PatientEtcd(config(one.urls)) as etcd:
            cluster = Cluster(tmp_path, etcd, fresh_view(tmp_path, 3))
            await begin(etcd, cluster.view)
            await settle(*cluster.directories)
            first, node = cluster.directories[0], cluster.nodes[0]
            snapshot = await asyncio.to_thread(one.snapshot)
            await first.propose(cluster.view.changed(copies=3))
            await asyncio.to_thread(one.restore, snapshot)
            await first.round()
            assert node.is_frozen
            assert "gone back to epoch 1; this node knows epoch 2" in node.lines[-1]
            for number in range(20):
                await etcd.transact([], [puts(f"/{number}", b"")])
            await etcd.transact([], [puts(first.keys.view, node.view.encode())])
            await first.round()
            assert node.is_frozen
            again = node.directory(etcd)  # nor after a start
            await settle(again)
            assert node.is_frozen
            assert not node.has_word
            with pytest.raises(ClusterError, match="not trusted"):
                await again.propose(node.view.changed(copies=2))
            await restoring.restore(etcd, node.view, node.seen.load(), 1)
            await settle(again)
            assert not node.is_frozen
            assert node.has_word

    with EtcdCluster() as one:
        asyncio.run(main(one))


def test_a_rollback_that_lost_no_view_is_noticed_by_revision_or_pulse(tmp_path):
    async def main(one: EtcdCluster) -> None:
        async with PatientEtcd(config(one.urls)) as etcd:
            view = fresh_view(tmp_path, 1)
            await begin(etcd, view)
            node = Node(tmp_path / "1", 1, view)
            snapshot = await asyncio.to_thread(one.snapshot)
            first = node.directory(etcd)
            await settle(first)
            assert node.seen.load().pulse == 1
            await asyncio.to_thread(one.restore, snapshot)
            await first.round()
            assert "gone back to revision" in node.lines[-1]
            known = node.seen.load()
            assert known is not None
            node.seen.keep(replace(known, frozen="", revision=1))
            again = node.directory(etcd)
            await again.round()
            assert "lost what this node wrote" in node.lines[-1]

    with EtcdCluster() as one:
        asyncio.run(main(one))


def test_a_node_that_was_off_when_etcd_was_set_back_reads_it_there(tmp_path):
    """However far etcd has grown meanwhile, and until it is restored."""

    async def main(one: EtcdCluster) -> None:
        async with PatientEtcd(config(one.urls)) as etcd:
            cluster = Cluster(tmp_path, etcd, fresh_view(tmp_path, 3))
            await begin(etcd, cluster.view)
            await settle(*cluster.directories)
            node, off, new = cluster.nodes
            snapshot = await asyncio.to_thread(one.snapshot)
            for number in range(9):
                await etcd.transact([], [puts(f"/{number}", b"")])
            await cluster.directories[0].round()
            await asyncio.to_thread(one.restore, snapshot)
            await cluster.directories[0].round()
            assert "gone back to revision" in node.lines[-1]
            for number in range(20):
                await etcd.transact([], [puts(f"/{number}", b"")])
            (new.home / seen.NAME).unlink()
            for other in (off, new):
                again = other.directory(etcd)
                await settle(again)
                assert "another node has found that etcd was set back" in other.lines[-1]
                assert not other.has_word
                with pytest.raises(ClusterError, match="not trusted"):
                    await again.propose(node.view.changed(copies=3))
            await restoring.restore(etcd, off.view, off.seen.load(), 2)
            await settle(*cluster.directories)
            assert [one.is_frozen for one in cluster.nodes] == [False, False, False]

    with EtcdCluster() as one:
        asyncio.run(main(one))


def test_a_node_that_is_refused_or_removed_does_not_tell_that_etcd_was_set_back(server, tmp_path):
    """It may be a copy of an old disk, or have been cut off for long."""

    async def test(cluster: Cluster) -> None:
        await settle(*cluster.directories)
        node, key = cluster.nodes[0], reads(cluster.directories[0].keys.set_back)
        known = node.seen.load()
        assert known is not None
        node.seen.keep(replace(known, revision=1 << 40))
        again = node.directory(cluster.etcd)
        node.takes_part = False
        await again.round()
        assert node.is_frozen
        assert not (await cluster.etcd.read(key)).found[0]
        node.takes_part = True
        await again.round()
        assert [row.value for row in (await cluster.etcd.read(key)).found[0]] == [b"1"]

    run(server, tmp_path, test)


def test_a_copy_of_etcd_is_not_trusted_until_the_directory_is_restored_in_it(tmp_path):
    """A node that was given it does not harm the others, and is well again in the old one."""

    async def main(old: EtcdCluster, new: EtcdCluster) -> None:
        async with PatientEtcd(config(old.urls)) as etcd, PatientEtcd(config(new.urls)) as copy:
            cluster = Cluster(tmp_path, etcd, fresh_view(tmp_path, 2))
            await begin(etcd, cluster.view)
            await settle(*cluster.directories)
            node = cluster.nodes[1]
            trusted = node.cells[4]
            assert trusted == (await etcd.read()).etcd
            snapshot = await asyncio.to_thread(old.snapshot)
            await asyncio.to_thread(new.restore, snapshot)
            moved = node.directory(copy)
            await settle(moved)
            assert node.is_frozen
            assert not node.has_word
            assert (moved.trusted, node.cells[4]) == (None, 0)
            assert "another etcd than before; mail goes on" in node.lines[-1]
            assert "correct cluster.etcd" in moved.status()["remedy"]
            with pytest.raises(ClusterError, match="another etcd than before"):
                await moved.propose(node.view.changed(copies=3))
            assert not (await copy.read(reads(moved.keys.set_back))).found[0]
            back = node.directory(etcd)
            await settle(back)
            assert node.has_word
            assert (node.is_frozen, node.cells[4]) == (False, trusted)
            await settle(moved)
            await restoring.restore(copy, node.view, node.seen.load(), 2)
            await settle(moved)
            assert not node.is_frozen
            assert node.cells[4] == (await copy.read()).etcd != trusted

    with EtcdCluster() as old, EtcdCluster() as new:
        asyncio.run(main(old, new))


def test_what_the_users_show_of_a_rollback_counts_for_the_directory_that_was_trusted(
    server, tmp_path
):
    async def test(cluster: Cluster) -> None:
        node, first = cluster.nodes[0], cluster.directories[0]
        assert first.trusted is not None
        await first.distrust(first.trusted._replace(generation=9), "another one was set back")
        assert not node.is_frozen
        await first.distrust(first.trusted, "etcd has gone back")
        await first.round()
        assert node.is_frozen
        assert "not trusted: etcd has gone back;" in node.lines[-1]

    run(server, tmp_path, test)


def test_an_etcd_that_is_out_of_space_is_told_until_it_is_not(tmp_path):
    async def main(one: EtcdCluster) -> None:
        async with PatientEtcd(config(one.urls)) as etcd:
            cluster = Cluster(tmp_path, etcd, fresh_view(tmp_path, 1))
            await begin(etcd, cluster.view)
            await settle(*cluster.directories)
            node, first = cluster.nodes[0], cluster.directories[0]
            for action, refuses in (("ACTIVATE", True), ("DEACTIVATE", False)):
                body = {"action": action, "memberID": "0", "alarm": "NOSPACE"}
                await asyncio.to_thread(one.servers[0].ask, "maintenance/alarm", body)
                first._pulsed_ns = 0
                await first.round()
                assert bool(node.cells[5]) == refuses
                assert node.has_word  # it answers
            assert "etcd refuses: etcdserver: mvcc: database space exceeded" in node.lines[0]

    with EtcdCluster() as one:
        asyncio.run(main(one))


def test_what_the_users_show_cannot_be_kept(server, tmp_path, monkeypatch):
    async def test(cluster: Cluster) -> None:
        node, first = cluster.nodes[0], cluster.directories[0]
        assert first.trusted is not None

        def keep(known: seen.Seen) -> None:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(node.seen, "keep", keep)
        with pytest.raises(ClusterError, match="etcd-seen: Input/output error"):
            await first.distrust(first.trusted, "etcd has gone back")
        assert not node.is_frozen  # nothing is relied upon that is not durable

    run(server, tmp_path, test)


def test_another_view_of_this_epoch_in_etcd_is_not_trusted(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        one, node = cluster.directories[0], cluster.nodes[0]
        other = replace(cluster.view, copies=3)
        await cluster.etcd.transact([], [puts(one.keys.view, other.encode())])
        await one.round()
        assert "another view of epoch 1" in node.lines[-1]
        _, view = await restoring.restore(cluster.etcd, node.view, node.seen.load(), 1)
        assert view == node.view.changed()
        await settle(one)
        assert not node.is_frozen
        assert node.view.epoch == 2

    run(server, tmp_path, test)


def test_a_node_with_an_older_view_does_not_restore(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        await cluster.directories[0].propose(cluster.view.changed(copies=3))
        with pytest.raises(ClusterError, match="etcd has epoch 2, this node epoch 1"):
            await restoring.restore(cluster.etcd, cluster.view, None, 2)
        with pytest.raises(ClusterError, match="has a directory of this cluster already"):
            await restoring.begin(cluster.etcd, cluster.view.changed().changed(), 1)

    run(server, tmp_path, test)


def test_a_restoration_from_an_old_node_is_not_trusted_by_a_newer_one(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        one, node = cluster.directories[0], cluster.nodes[0]
        await one.propose(cluster.view.changed(copies=3))
        keys, identity = one.keys, Identity("ab", 7)
        rows = [puts(keys.view, cluster.view.encode()), puts(keys.identity, identity.encode())]
        await cluster.etcd.transact([], rows)
        await one.round()
        assert node.is_frozen
        assert "gone back to epoch 1" in node.lines[-1]

    run(server, tmp_path, test)


def test_what_cannot_be_read_in_etcd_is_reported_and_gives_no_word(server, tmp_path):
    async def test(cluster: Cluster) -> None:
        one, node = cluster.directories[0], cluster.nodes[0]
        for key in (one.keys.view, one.keys.identity):
            before = (await cluster.etcd.get(key)).rows[0].value
            await cluster.etcd.transact([], [puts(key, b"{}")])
            node.word.clear()
            await one.round()
            assert not node.has_word
            assert "cannot be read" in node.lines[-1] or "has a bad" in node.lines[-1]
            await cluster.etcd.transact([], [puts(key, before)])
            await settle(one)
            assert node.has_word

    run(server, tmp_path, test)


def test_rounds_come_when_the_view_changes(server, tmp_path):
    """The watch: within a second, though rounds come every two."""

    async def test(cluster: Cluster) -> None:
        running = asyncio.create_task(cluster.directories[1].run())
        following = cluster.view
        for copies in (3, 2, 3, 2):
            following = following.changed(copies=copies)
            await cluster.directories[0].propose(following)
            async with asyncio.timeout(30):
                while cluster.nodes[1].view != following:
                    await asyncio.sleep(0.01)
        running.cancel()

    run(server, tmp_path, test)
