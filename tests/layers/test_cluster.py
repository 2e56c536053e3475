"""The layer of a cluster: two and three nodes, their stores and links real, in one process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from metad.cluster.own_marks import IS_REFUSED
from metad.cluster.view import Membership
from metad.errors import MailboxInUseError, RefusedError
from metad.layers.bench import make_envelope, stuff
from metad.layers.own_mailbox import OwnMailbox
from metad.store.index.rows import Batch
from metad.store.log import footer, record
from metad.store.log.place import Message, Place
from tests.support.cluster_bench import ClusterBench, Node
from tests.support.sizes import reached

pytestmark = pytest.mark.slow

BOX = 5
TEXT = b"Subject: a test\r\n\r\n.dot\r\nand more\r\n"


def here(node: Node, mailbox: int = BOX) -> int:
    """How many messages lie on a node itself."""
    node.layer.log.committer.enter_now()
    node._bench.until(lambda: not node.layer.log.is_behind(mailbox, 1 << 62), "entered")
    return int(node.layer.log.index.usage(mailbox).messages)


def test_a_message_is_on_both_nodes_before_250_and_both_serve_it(two: ClusterBench) -> None:
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    assert (here(a), here(b)) == (1, 1)
    assert a.texts(BOX) == b.texts(BOX)
    assert a.texts(BOX)[0].endswith(b"Subject: a test\r\n\r\n..dot\r\nand more\r\n.\r\n")
    assert b.send([BOX], TEXT) is None
    listing = a.listing(BOX)
    assert len(listing) == 2
    assert listing == b.listing(BOX)


def test_a_large_message_that_waits_in_a_file(two: ClusterBench) -> None:
    a, b = two.nodes
    large = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * 100_000
    assert a.stream([BOX, BOX + 1], large) is None
    assert b.texts(BOX) == a.texts(BOX)
    assert len(b.texts(BOX + 1)[0]) > len(large)


def test_one_of_two_down(two: ClusterBench) -> None:
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    b.stop()
    assert isinstance(a.send([BOX], TEXT), RefusedError)
    assert len(a.listing(BOX)) == 1
    assert isinstance(a.delete(BOX, 1), RefusedError)


@pytest.mark.parametrize("is_sent", [False, True], ids=["before-it-is-sent", "after"])
def test_a_link_that_is_lost_under_a_copy_costs_no_message(
    two: ClusterBench, is_sent: bool
) -> None:
    """Regression: the client got 451 although the other node was reached again in a moment."""
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    outcome: list[RefusedError | None] = []
    a.layer.deliver(make_envelope(a.layer, [BOX], TEXT), stuff(TEXT), outcome.append)
    if is_sent:
        a.layer.copies.flush()
        a.layer.links.flush()
    a.layer.links._dialed[2].close("lost")
    two.until(lambda: bool(outcome), "an answer")
    assert outcome == [None]
    assert (here(a), here(b)) == (2, 2)
    assert a.listing(BOX) == b.listing(BOX)


def test_refused_mail_and_refused_deletions_are_known_to_both_once_they_have_met(
    two: ClusterBench,
) -> None:
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    assert a.send([BOX], TEXT) is None
    b.stop()
    assert isinstance(a.send([BOX], TEXT), RefusedError)
    assert isinstance(a.delete(BOX, 1), RefusedError)
    b.start()
    two.until(lambda: two.tick() or here(b) == 1, "b has heard of the deletion")
    assert a.listing(BOX) == b.listing(BOX)
    assert len(b.listing(BOX)) == 1


def test_what_is_deleted_on_one_node_is_gone_on_both(two: ClusterBench) -> None:
    a, b = two.nodes
    for _ in range(3):
        assert a.send([BOX], TEXT) is None
    before = a.listing(BOX)
    assert b.delete(BOX, 1, 3) is None
    assert a.listing(BOX) == b.listing(BOX) == before[1:2]
    assert (here(a), here(b)) == (1, 1)


def test_a_copy_that_comes_after_its_tombstone_shows_nowhere(two: ClusterBench) -> None:
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    a.stop()
    message_id = bytes.fromhex(b.listing(BOX)[0][0])
    two.wait(lambda done: b.layer.entomb(BOX, message_id, done))
    assert b.listing(BOX) == []
    a.start()
    assert a.listing(BOX) == []  # the union leaves out what any member has a tombstone for
    two.until(lambda: two.tick() or here(a) == 0, "a has heard of it")


def test_a_mailbox_is_locked_across_nodes(two: ClusterBench) -> None:
    a, b = two.nodes
    for first, second in ((a, b), (b, a)):
        drop = first.open(BOX)
        with pytest.raises(MailboxInUseError):
            second.try_open(BOX)
        drop.close()
        second.open(BOX).close()


def test_a_session_that_ends_while_the_home_is_refused_leaves_no_lock(two: ClusterBench) -> None:
    """The operator may let the home go on (`metad cluster alone`) while the link lives."""
    a, b = two.nodes
    box = next(one for one in range(1, 100) if a.layer.peers.view().line(one)[0] == b.number)
    drop = a.open(box)
    b.layer.marks._own._cells[IS_REFUSED] = 1
    drop.close()
    two.until(lambda: box not in b.layer.log.locks._held, "the lock is given back")
    b.layer.marks._own._cells[IS_REFUSED] = 0
    b.open(box).close()


def test_the_lock_of_a_node_that_is_gone_is_free(two: ClusterBench) -> None:
    a, b = two.nodes
    home = two.view.home(BOX)
    near, far = (a, b) if home == 1 else (b, a)
    far.open(BOX)
    with pytest.raises(MailboxInUseError):
        near.try_open(BOX)
    far.stop()
    near.open(BOX).close()


def test_a_session_fetches_what_lies_elsewhere(three: ClusterBench) -> None:
    a, b, c = three.nodes
    sent = [b"Subject: %d\r\n\r\n%d\r\n" % (number, number) for number in range(40)]
    for text in sent:
        assert a.send([BOX], text) is None
    assert sorted((here(a), here(b), here(c))) in ([0, 40, 40], [40, 40, 40])
    texts = [node.texts(BOX) for node in three.nodes]
    assert texts[0] == texts[1] == texts[2]
    assert len({len(one) for one in texts}) == 1
    listings = [node.listing(BOX) for node in three.nodes]
    assert listings[0] == listings[1] == listings[2]


def test_three_nodes_go_on_without_any_one(three: ClusterBench) -> None:
    a, b, c = three.nodes
    count = 0
    for gone in (a, b, c):
        rest = [node for node in three.nodes if node is not gone]
        gone.stop()
        for node in rest:
            assert node.send([BOX], TEXT) is None
            count += 1
            assert len(node.listing(BOX)) == count
        gone.start()
        assert len(gone.listing(BOX)) == count


def test_one_of_three_alone_lists_nothing(three: ClusterBench) -> None:
    a, b, c = three.nodes
    assert a.send([BOX], TEXT) is None
    b.stop()
    c.stop()
    with pytest.raises(RefusedError, match="do not answer"):
        a.open(BOX)


# --- Nodes that come, and come back ---------------------------------------------------------------


def test_a_node_that_joins_gets_all_mail_and_then_counts() -> None:
    with ClusterBench(2, copies=1, entering=2) as bench:
        a, b = bench.nodes
        for _ in range(30):
            assert a.send([BOX, BOX + 1], TEXT) is None
        assert a.delete(BOX, 1) is None
        view = bench.settle()
        assert view.active == (1, 2)
        assert (view.copies, view.read_copies) == (2, 2)
        assert (here(b), here(b, BOX + 1)) == (29, 30)
        assert a.listing(BOX) == b.listing(BOX)
        a.stop()
        assert len(b.listing(BOX)) == 29
        assert isinstance(b.send([BOX], TEXT), RefusedError)  # now there must be two copies


def alone(node: Node) -> None:
    """What `metad cluster alone` does: the operator says that the other node is off."""
    view = node.layer.peers.view()
    other = next(one.number for one in view.members if one.number != node.number)
    members = view.with_member(other, state=Membership.ABSENT, healed=False)
    node.layer.adopt(view.changed(members=members, alone="accept"))


def test_a_node_that_is_alone_by_command_takes_mail_and_the_other_gets_it_later(
    two: ClusterBench,
) -> None:
    a, b = two.nodes
    for _ in range(4):
        assert a.send([BOX], TEXT) is None
    two.settle()
    b.stop()
    alone(a)
    assert a.send([BOX], TEXT) is None
    assert a.delete(BOX, 1, 2) is None
    assert len(a.listing(BOX)) == 3
    b.start()
    view = two.settle()
    assert view.active == (1, 2)
    assert view.alone == "refuse"
    assert (here(a), here(b)) == (3, 3)
    assert a.listing(BOX) == b.listing(BOX)


def test_the_node_with_the_greater_number_may_be_the_one_that_goes_on(two: ClusterBench) -> None:
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    a.stop()
    alone(b)
    assert b.send([BOX], TEXT) is None
    assert b.delete(BOX, 1) is None
    a.start()
    assert two.settle().active == (1, 2)
    assert a.listing(BOX) == b.listing(BOX)
    assert (here(a), here(b)) == (1, 1)


def test_a_node_that_was_away_lists_what_came_meanwhile(
    three: ClusterBench,
) -> None:
    a, _, c = three.nodes
    assert a.send([BOX], TEXT) is None
    three.settle()
    c.stop()
    for _ in range(10):
        assert a.send([BOX], TEXT) is None
    c.start()
    three.settle()
    counts = [here(node) for node in three.nodes]
    assert all(count >= 10 for count in counts[:2])
    assert [len(node.listing(BOX)) for node in three.nodes] == [11, 11, 11]


def test_a_copy_takes_no_memory_once_it_is_stored(two: ClusterBench) -> None:
    a, b = two.nodes
    for _ in range(3):
        assert a.send([BOX], TEXT) is None
    assert [node.layer.log.budget.used for node in (a, b)] == [0, 0]


def test_a_node_that_takes_no_mail_leaves_it_to_two_others(three: ClusterBench) -> None:
    a, b, c = three.nodes
    a.layer.log.committer.blocked = True
    assert a.send([BOX], TEXT) is None
    a.layer.log.committer.blocked = False
    assert (here(a), here(b), here(c)) == (0, 1, 1)
    assert len(a.listing(BOX)) == 1


MANY = 20_000


def enter_many(node: Node) -> None:
    """So many messages of a mailbox, in the index alone."""
    messages = []
    for number in range(MANY):
        its = (1_700_000_000_000_000 + number).to_bytes(8, "big") + bytes(8)
        entries = footer.message_entries(its, number, 50, (record.Recipient(BOX, "", 1000),))
        messages.append(Message(its, Place(900, number, 50), entries))
    node.layer.log.index.apply(Batch(900, 1, 1 << 20, messages, []))


def test_a_poll_of_a_large_mailbox_sends_no_list(two: ClusterBench) -> None:
    a, b = two.nodes
    for node in two.nodes:
        enter_many(node)
    assert len(a.listing(BOX)) == MANY  # the links are up
    sent = two.bytes_written()
    a.open(BOX).close()
    poll = two.bytes_written() - sent
    # Whole lists, as an asker without a list gets them.
    whole = len(two.wait(OwnMailbox(b.layer.log, b.layer.tombstones, BOX).list).pack())
    assert whole > 20 * MANY
    assert poll < 1000
    reached(f"cluster: bytes on a link for a poll of {MANY:,} messages", poll)
    assert a.send([BOX], TEXT) is None
    assert len(b.listing(BOX)) == len(a.listing(BOX)) == MANY + 1


def test_the_first_session_on_an_old_copy_of_a_disk_is_refused(
    two: ClusterBench, tmp_path: Path
) -> None:
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    two.settle()
    b.stop()
    shutil.copytree(b.data, tmp_path / "copy")
    b.start()
    assert b.send([BOX], TEXT) is None
    two.settle()
    b.stop()
    shutil.rmtree(b.data)
    shutil.copytree(tmp_path / "copy", b.data)
    b.start()
    with pytest.raises(RefusedError, match="empty it and join again"):
        b.open(BOX)
    with pytest.raises(RefusedError, match="empty it and join again"):
        b.send([BOX], TEXT)
    assert len(a.listing(BOX)) == 2


def test_what_a_member_lost_between_its_last_mark_and_its_start_is_sent_again(
    two: ClusterBench, tmp_path: Path
) -> None:
    a, b = two.nodes
    assert a.send([BOX], TEXT) is None
    two.settle()
    shutil.copytree(b.data, tmp_path / "copy")
    assert a.send([BOX], TEXT) is None  # no second passes: no beat is told
    b.stop()
    shutil.rmtree(b.data)
    shutil.copytree(tmp_path / "copy", b.data)
    b.start()
    assert here(b) == 1
    two.until(lambda: two.tick() or here(b) == 2, "b has both")
    a.stop()
    assert len(b.listing(BOX)) == 2


def test_a_node_that_enters_takes_no_mail() -> None:
    with ClusterBench(2, copies=1, entering=2) as bench:
        a, b = bench.nodes
        with pytest.raises(RefusedError, match="not an active member"):
            b.send([BOX], TEXT)
        assert (here(a), here(b)) == (0, 0)
