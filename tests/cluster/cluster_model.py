# ruff: noqa: SIM102, SIM905 - a condition a line; names as they are in the walk
"""The cluster's protocol as a model: random walks over its rules.

One mailbox, up to eight nodes, one etcd.  A walk is a list of steps, each an action and a seed of
its own; between two messages of an action others may act.  Checked: nothing acknowledged is lost,
nothing listed goes missing, nothing deleted comes back, and a cluster left in quiet converges.

    python -m tests.cluster.cluster_model ...
        --seeds 2000                  the rules: no fault
        --seeds 2000 --settled        the same with settled homes (step 6)
        --mutant lone-lease           a rule left out: the shortest trace, status 1
        --all-mutants --seeds 900     by how many walks each mutant is caught

Time is in ticks.  Only the order of the bounds matters: LATE < LISTING < HOLD, PROMISE < LEASE.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections import Counter
from collections.abc import Iterable
from random import Random

ACTIVE, DRAINING, ENTERING, ABSENT, REMOVED = "active", "draining", "entering", "absent", "removed"
LATE, LISTING, HOLD, LEASE, PROMISE = 4, 8, 10, 8, 3
MOST_NODES = 8
MUTANTS = dict(
    line.split(": ", 1)
    for line in """\
no-epoch: Epoch: requests are served whatever epoch they carry
answer-epoch: Epoch: not compared again when a listing answers
two-epochs: Epoch: copies of two epochs are counted together
one-copy: Write: 250 after one copy
entering-unwritten: Write: not to entering members while few are active
one-missing-more: Read: one more may be missing
unhealed-uncounted: Read: unhealed members do not count as missing
lone-lease: Lone reader: needs no word of etcd
lone-entering: Lone reader: does not count entering members
own-tombstones: Read: only the node's own tombstones are applied
omit-at-once: Omit: tombstones are left out as soon as all active members have them
delete-on-one: Delete: +OK after one node
copy-over-tombstone: Tombstone: a late copy of a deleted message is entered
absent-unleased: Absent: marked while the lease still runs
enter-one-step: Enter: absent to active in one step
enter-unadopted: Enter: active before all adopted the view
enter-exchange-first: Enter: tombstones are exchanged before the view is adopted
enter-no-tombstones: Enter: without the tombstones
enter-no-copies: Enter: without the mail although few were active
heal-no-walk: Heal: marked without a walk
heal-unadopted: Walk: begins before all adopted the view
heal-no-tombstones: Walk: without the tombstones
forget-absent: Forget: absent members are not asked
forget-soon: Forget: as soon as all have it
trim-at-once: Trim: without the wait
trim-any: Trim: counts a member that may trim too
trim-deletes: Trim: recorded as a deletion
remove-unhealed: Remove: not refused when it leaves `copies` unhealed
remove-leased: Remove: of a member that still serves
drain-counted: Drain: draining members count as copies
read-raised-early: Set copies: Read counts on the new number before the walk
write-lowered-early: Set copies: Write is lowered before all read by the lower number
settled-forever: Settle: a lapse of the promises does not end the settlement
settled-no-promise: Settle: the home answers alone without promises
settled-no-note: Note: a union does not tell the home what it lacks
settled-list-around: Promise: a bound member lists around the home
settled-delete-around: Promise: a bound member deletes around the home
settled-adopt-bound: Promise: adoption is confirmed while bound to an older home
""".splitlines()
)

Message = tuple[int, int]  # number, maker
Step = tuple[str, int]  # action, seed


class ViolationError(Exception):
    """An invariant does not hold."""


class View:
    """Immutable.  `write` and `read` are `copies`, as the rules Write and Read count them."""

    def __init__(
        self, epoch: int, states: dict[int, str], healed: Iterable[int], write: int, read: int
    ) -> None:
        self.epoch, self.states, self.healed = epoch, states, frozenset(healed)
        self.write, self.read = write, read
        self.keeping = sorted(self.those(ACTIVE), key=_score)
        self.line = self.keeping + sorted(self.those(DRAINING), key=_score)
        self.active, self.entering = sorted(self.line), self.those(ENTERING)
        self.members = [n for n in states if states[n] != REMOVED]
        self.unhealed = [n for n in states if n not in self.line and n not in self.healed]
        self.short = len(self.active) < write
        self.counting = self.keeping if len(self.keeping) >= write else self.active

    def those(self, state: str) -> list[int]:
        return [n for n in self.states if self.states[n] == state]

    def expected(self, message: Message) -> list[int]:
        """The first `copies` of: home, the maker unless it drains, the rest of the line."""
        maker = [message[1]] if self.states.get(message[1]) == ACTIVE else []
        return list(dict.fromkeys([*self.line[:1], *maker, *self.line]))[: self.write]


def _score(number: int) -> int:
    return zlib.crc32(b"box.%d" % number)  # rendezvous hashing


class Node:
    """What one node has.  Durable: view, entries, tombstones, vector."""

    def __init__(self, number: int, view: View, now: int = 0) -> None:
        self.number, self.view, self.up, self.disk = number, view, True, True
        self.entries, self.tombstones = set[Message](), set[Message]()
        self.vector = set[Message]()  # tombstones that it has or had: it only grows
        self.came: dict[Message, int] = {}  # when a copy came here
        self.everywhere: dict[Message, int] = {}  # since when every member is known to have it
        self.askees: dict[Message, tuple[int, int]] = {}  # epoch, since when all active ones have
        self.word = now  # when it asked etcd for what it heard last
        self.promise = (0, -1, 0)  # step 6, a member's: home, until, epoch
        self.forget_homes()

    def forget_homes(self) -> None:
        self.promises: dict[int, int] = {}  # step 6, the home's: member, until
        self.settled, self.owed = set[int](), set[Message]()

    def serves(self) -> bool:
        return self.up and self.number in self.view.line


class World:
    """Nodes, links, etcd, and what the users were told."""

    def __init__(self, seed: int, nodes: int, mutant: str = "", homes: bool = False) -> None:
        self.accept, copies = seed // 4 % 2 == 1, 3 if seed // 8 % 4 == 3 and nodes > 2 else 2
        self.mutant, self.homes, self.random = mutant, homes, Random(seed)
        states = dict.fromkeys(range(1, nodes + 1), ACTIVE)
        states |= {nodes + 1: ENTERING} if seed % 5 < 2 else {}
        states |= {nodes + 2: ABSENT} if seed % 7 < 3 else {}
        healed = [n for n in states if states[n] != ACTIVE]  # all are empty
        self.view = View(1, states, healed, copies, copies)
        self.nodes = {n: Node(n, self.view) for n in self.view.states}
        self.cut, self.etcd_cut = set[frozenset[int]](), set[int]()
        self.late: list[tuple[int, int, Message, int]] = []  # when, to, message, epoch
        self.now, self.number, self.depth, self.done, self.calm = 0, 0, 0, 0, False
        self.moving, self.most = False, min(3 + seed // 3 % 6, MOST_NODES)
        self.often = (0.2, 0.5)[seed // 2 % 2]  # how often others act between two messages
        self.acked, self.listed = set[Message](), set[Message]()
        self.attempted, self.deleted = set[Message](), set[Message]()  # QUIT; QUIT with +OK
        self.full, self.excused = set[Message](), set[Message]()  # had all copies; `accept` lost it
        self.counts, self.lines = Counter[str](), list[str]()

    def note(self, what: str, detail: object = "") -> None:
        self.counts[what] += 1
        self.lines.append(f"  t={self.now:<4} {what} {detail}")

    def pick(self) -> Node:
        return self.nodes[self.random.choice(list(self.nodes))]

    def linked(self, a: int, b: int) -> bool:
        up = self.nodes[a].up and self.nodes[b].up
        return a != b and up and frozenset((a, b)) not in self.cut

    def at_etcd(self, numbers: Iterable[int]) -> list[int]:
        return [n for n in numbers if self.nodes[n].up and n not in self.etcd_cut]

    # -- rules Epoch and View

    def adopt(self, node: Node, view: View) -> None:
        if view.epoch > node.view.epoch:
            node.view = view
            node.forget_homes()

    def exchange(self, a: int, b: int) -> bool:
        """Epoch: whether b answers a under one epoch, in which both take part."""
        asker, taker = self.nodes[a], self.nodes[b]
        if not self.linked(a, b):
            return False
        if self.mutant == "no-epoch":
            return True
        if asker.view.epoch < taker.view.epoch:  # nothing is done, the asker starts again
            self.adopt(asker, taker.view)
            return False
        self.adopt(taker, asker.view)
        return asker.serves() and (taker.serves() or b in taker.view.entering)

    def adopted(self, view: View, by: int) -> bool:
        """All active members confirm the view.  Step 6: not while bound to an older home."""
        for number in view.active:
            node = self.nodes[number]
            if not node.up or (number != by and not self.linked(by, number)):
                return False
            self.adopt(node, view)
            if node.view is not view or self.bound_elsewhere(node):
                return False
        return True

    def swap(
        self,
        by: int,
        old: View,
        states: dict[int, str] | None = None,
        healed: Iterable[int] | None = None,
        copies: tuple[int, int] | None = None,
    ) -> bool:
        """View: compare-and-swap in etcd, epoch + 1, or nothing."""
        if self.view is not old or not self.at_etcd([by]):
            return False
        self.view = View(
            old.epoch + 1,
            old.states | (states or {}),
            old.healed if healed is None else healed,
            *copies or (old.write, old.read),
        )
        self.adopt(self.nodes[by], self.view)
        self.note(
            "view",
            f"epoch {self.view.epoch} by {by}: {self.view.states} "
            f"healed={sorted(self.view.healed)} copies={self.view.write, self.view.read}",
        )
        return True

    def tick(self) -> None:
        self.now += 1
        for number in self.at_etcd(self.nodes):
            if self.calm or self.random.random() < 0.6:
                self.nodes[number].word = self.now
                self.adopt(self.nodes[number], self.view)
        for node in self.nodes.values() if self.homes else ():
            self.renew(node)
        for one in [one for one in self.late if one[0] <= self.now]:
            self.late.remove(one)
            to = self.nodes[one[1]]
            if to.up and (to.view.epoch == one[3] or self.mutant == "no-epoch"):
                self.note("late copy", f"{one[2]} on {to.number}")
                self.store(to.number, one[2])

    # -- rule Tombstone: it wins, whichever comes first

    def store(self, number: int, message: Message) -> None:
        node = self.nodes[number]
        if message not in node.tombstones or self.mutant == "copy-over-tombstone":
            if message not in node.entries:
                node.came[message] = self.now
            node.entries.add(message)

    def entomb(self, number: int, messages: Iterable[Message]) -> None:
        node = self.nodes[number]
        node.entries.difference_update(messages)
        node.tombstones.update(messages)
        node.vector.update(messages)

    def give_tombstones(self, a: int, b: int) -> None:
        """b pulls what its vector lacks: what it has forgotten does not come again."""
        self.entomb(b, self.nodes[a].tombstones - self.nodes[b].vector)

    # -- rule Write

    def enough(self, view: View, got: set[int]) -> bool:
        """`copies` counting members; under `accept` all active ones if they are fewer."""
        need = min(view.write, len(view.active)) if self.accept else view.write
        counting = view.active if self.mutant == "drain-counted" else view.counting
        return len(got.intersection(counting)) >= (1 if self.mutant == "one-copy" else need)

    def also(self, view: View) -> list[int]:
        """While fewer than `copies` are active, entering members are written to as well."""
        return view.entering if view.short and self.mutant != "entering-unwritten" else []

    def receive(self) -> None:
        node, same = self.pick(), False
        if not node.serves():
            return
        self.number += 1
        message, own = (self.number, node.number), set[int]()
        if self.random.random() < 0.95:  # else its own disk fails
            self.store(node.number, message)
            own.add(node.number)
        got, view, tries, lost = set(own), node.view, 2, False
        while tries:  # the epoch changes under way: once more, with the same id
            view, got = node.view, got if self.mutant == "two-epochs" else set(own)
            for peer in [*self.also(view), *(n for n in view.line if n != node.number)]:
                if self.enough(view, got) and peer not in self.also(view):
                    break
                self.interleave()
                if not node.up or not self.copy(node, peer, message, got):
                    return
            same = node.view is view and node.serves()
            done = same and self.enough(view, got) and got.issuperset(self.also(view))
            if done or not node.serves() or (same and lost):
                break
            lost, tries = lost or same, tries - (not same)  # after a lost link once more, too
        same = same or self.mutant == "two-epochs"
        if same and self.enough(node.view, got) and got.issuperset(self.also(node.view)):
            self.acked.add(message)
            self.full |= {message} if len(got & {*node.view.line}) >= node.view.write else set()
            self.note("250", f"{message} at {node.number}, on {sorted(got)}")
        else:
            self.entomb(node.number, [message] if own else [])
            self.note("451", f"{message} at {node.number}")

    def copy(self, node: Node, peer: int, message: Message, got: set[int]) -> bool:
        """One COPY and its answer.  False: the node dies before the 250."""
        luck = self.random.random()
        if self.linked(node.number, peer) and luck < 0.1:  # given up, and yet it arrives
            self.send_late(peer, message, node.view)
        elif self.exchange(node.number, peer):
            self.store(peer, message)
            got |= {peer} if luck < 0.87 else set()  # else the answer is lost
            if luck > 0.97:
                self.crash(node)
        return node.up

    def send_late(self, to: int, message: Message, view: View) -> None:
        self.late.append((self.now + self.random.randint(1, LATE), to, message, view.epoch))

    # -- rules Read, Lone reader, Omit, Delete

    def listing(self, node: Node) -> tuple[set[Message], list[int]] | None:
        """What a session shows and who was heard; None for -ERR."""
        began, view, home = self.now, node.view, node.view.line[0]
        lax = self.mutant == "answer-epoch"
        with_home = self.homes and (home == node.number or self.exchange(node.number, home))
        if with_home and node.view is view and self.answers_alone(self.nodes[home]):
            return self.nodes[home].entries - self.nodes[home].tombstones, [home]
        if node.view is not view or self.may_not_list(node, with_home):
            return None
        heard, entering = {node.number: self.answer(node)}, set(view.entering) - set(view.unhealed)
        peers = [n for n in [*view.active, *view.entering] if n != node.number]
        for peer in self.random.sample(peers, len(peers)):  # all are asked at once
            self.interleave()
            if self.exchange(node.number, peer) and (node.view is view or lax):
                entering.discard(peer)  # only its epoch counts, not its mail
                with_home = with_home or (self.homes and peer == home)
                if peer in view.line and not self.may_not_list(self.nodes[peer], with_home):
                    heard[peer] = self.answer(self.nodes[peer])
        if not node.up or self.now - began > LISTING or (node.view is not view and not lax):
            return None  # start again: here the client comes again
        if not self.complete(view, len(heard), len(entering), self.has_word(node)):
            return None
        tombstones = set[Message]().union(*(each[1] for each in heard.values()))
        if self.mutant == "own-tombstones":
            tombstones = node.tombstones
        shown = set[Message]().union(*(each[0] for each in heard.values())) - tombstones
        if with_home and self.mutant != "settled-no-note":  # Note: the home learns what it lacks
            if home != node.number and not self.exchange(node.number, home):
                return None
            self.nodes[home].owed |= shown
        return (shown, sorted(heard)) if node.view is view or lax else None

    def complete(self, view: View, heard: int, entering: int, has_word: bool) -> bool:
        """Read and Lone reader.  `entering`: how many of those did not confirm the epoch."""
        unhealed = 0 if self.mutant == "unhealed-uncounted" else len(view.unhealed)
        missing, lone = len(view.active) - heard + unhealed, heard < view.read
        if lone and self.mutant != "lone-entering":
            missing += entering
        if missing >= view.read + (self.mutant == "one-missing-more"):
            return False
        return has_word or not (lone and missing)

    def answer(self, node: Node) -> tuple[set[Message], set[Message]]:
        """Omit: without the tombstones that all active members have had for long."""
        view, tombstones = node.view, set(node.tombstones)
        for each in node.tombstones:
            if all(each in self.nodes[n].vector for n in view.active):
                epoch, since = node.askees.get(each, (0, 0))
                if epoch != view.epoch:
                    node.askees[each] = (view.epoch, since := self.now)
                if self.now - since >= (0 if self.mutant == "omit-at-once" else HOLD):
                    tombstones.discard(each)
        return set(node.entries), tombstones

    def has_word(self, node: Node) -> bool:
        """Etcd's word of this epoch is younger than a lease, counted from the asking."""
        return self.now - node.word < LEASE - 1 or self.mutant == "lone-lease"

    def look(self) -> None:
        """A session at every node, one after the other."""
        for node in self.random.sample(list(self.nodes.values()), len(self.nodes)):
            self.session(node)

    def session(self, node: Node | None = None) -> None:
        quits, node = node is None, node or self.pick()
        must, gone = self.listed - self.attempted, set(self.deleted)
        heard = self.listing(node) if node.serves() else None
        if heard is None:
            return self.note("-ERR", f"LIST at {node.number}")
        shown, where = heard[0], f"at {node.number} in epoch {node.view.epoch}, heard {heard[1]}"
        self.note("listed", f"{sorted(shown)} {where}")
        if shown & gone:
            raise ViolationError(f"deleted mail is back: {sorted(shown & gone)} {where}")
        if missing := must - shown - self.attempted - self.excused:
            raise ViolationError(f"a listing is short of {sorted(missing)} {where}")
        self.listed |= shown & self.acked
        if quits and shown and self.random.random() < 0.6:
            if self.random.random() < 0.3:
                self.churn()
            many = min(len(shown), self.random.randint(1, 3))
            self.delete(node, set(self.random.sample(sorted(shown), many)))
        return None

    def delete(self, node: Node, messages: set[Message]) -> None:
        """QUIT: the tombstones are on `copies`, and as few are missing as Read allows."""
        view, ok, told = node.view, set[int](), list[int]()
        if not node.serves():
            return
        self.attempted |= messages
        good = home_has = home_alone = False
        for _ in range(2):  # once more, after a lost link or under another view
            if not told or node.view is not view:
                view, ok, home_has, home_alone = node.view, set[int](), False, False
                told = [view.line[0], node.number, *self.also(view), *view.active]
            lost = list[int]()
            for peer in dict.fromkeys(told):
                if peer != node.number:
                    self.interleave()
                    if not self.exchange(node.number, peer):
                        lost.append(peer)
                        continue
                self.entomb(peer, messages)
                if peer != node.number and self.random.random() < 0.1:
                    lost.append(peer)  # the answer is lost
                    continue
                if self.homes and peer == view.line[0]:
                    home_has, home_alone = True, self.answers_alone(self.nodes[peer])
                bound = self.must_wait(self.nodes[peer], home_has)
                ok |= {peer} if not bound or self.mutant == "settled-delete-around" else set()
            good, told = self.confirmed(view, ok, self.has_word(node), home_alone), lost
            if good or not node.serves() or (not lost and node.view is view):
                break
        if node.up and ((good and node.view is view) or self.mutant == "delete-on-one"):
            self.deleted |= messages
            self.note("+OK", f"deleted {sorted(messages)} at {node.number}, on {sorted(ok)}")

    def confirmed(self, view: View, ok: set[int], has_word: bool, home_alone: bool = False) -> bool:
        """Delete: as Write, and the members that did not confirm satisfy Read's count."""
        missing = 0 if home_alone else len(set(view.active) - ok) + len(view.unhealed)
        good = self.enough(view, ok) and ok.issuperset(self.also(view)) and missing < view.read
        return good and (len(ok) >= view.read or has_word)

    # -- step 6: rules Promise, Settle, Note

    def bound_elsewhere(self, node: Node) -> bool:
        bound = node.promise[1] >= self.now and node.promise[2] != node.view.epoch
        return bound and self.mutant != "settled-adopt-bound"

    def must_wait(self, node: Node, with_home: bool) -> bool:
        """Promise: while it lives, the member neither lists nor deletes around that home."""
        return node.promise[1] >= self.now and not (with_home and not self.bound_elsewhere(node))

    def may_not_list(self, node: Node, with_home: bool) -> bool:
        return self.must_wait(node, with_home) and self.mutant != "settled-list-around"

    def covered(self, home: Node) -> bool:
        living = sum(until >= self.now for until in home.promises.values())
        return living >= home.view.read - 1 or self.mutant == "settled-no-promise"

    def renew(self, node: Node) -> None:
        """Promise.  Fewer than `copies` - 1 alive at any time end the settlement."""
        if not node.serves() or self.random.random() > 0.8 or self.bound_elsewhere(node):
            return
        home = self.nodes[node.view.line[0]]
        if self.exchange(node.number, home.number) and home.view is node.view:
            if not self.covered(home) and self.mutant != "settled-forever":
                home.settled.clear()
            node.promise = (home.number, self.now + PROMISE, node.view.epoch)
            home.promises[node.number] = self.now + PROMISE - 1  # counted from the asking

    def settle(self) -> None:
        """A bound member gives its home all that it has."""
        node = self.pick()
        home, bound = self.nodes[node.view.line[0] if node.view.line else 1], node.promise[1]
        same = node.promise[::2] == (home.number, node.view.epoch)
        if not self.homes or bound < self.now or not same or not self.covered(home):
            return
        if self.exchange(node.number, home.number) and home.view is node.view:
            for message in node.entries:
                self.store(home.number, message)
            self.entomb(home.number, node.tombstones - (home.vector - home.entries))
            home.settled.add(node.number)

    def answers_alone(self, home: Node) -> bool:
        """Settle: all active members have settled, enough promises live, nothing is owed."""
        others = set(home.view.active) - {home.number}
        return (
            home.settled >= others
            and self.covered(home)
            and len(home.view.unhealed) < home.view.read
            and not self.bound_elsewhere(home)
            and home.owed <= home.entries | home.vector
        )

    # -- failures

    def crash(self, node: Node) -> None:
        node.up = False
        node.forget_homes()
        self.note("crash", node.number)

    def churn(self) -> None:
        random, luck = self.random, self.random.random()
        node = random.choice([each for each in self.nodes.values() if each.disk])
        others = [n for n in self.nodes if n != node.number]
        if luck < 0.12 and node.up:
            self.crash(node)
        elif luck < 0.34:
            node.up = True
        elif luck < 0.44 and others:
            self.cut.add(frozenset((node.number, random.choice(others))))
        elif luck < 0.70:
            self.cut -= set(random.choices(list(self.cut), k=3)) if self.cut else set()
        elif luck < 0.75:
            self.etcd_cut.add(node.number)
        elif luck < 0.84:
            self.etcd_cut -= {random.choice(list(self.nodes))}
        elif luck < 0.94:  # all is well again
            self.cut, self.etcd_cut = set(), set()
            for each in self.nodes.values():
                each.up = each.disk

    def isolate(self) -> None:
        node = self.pick()
        self.cut |= {frozenset((node.number, n)) for n in self.nodes if n != node.number}
        self.etcd_cut |= {node.number} if self.random.random() < 0.6 else set()
        self.note("isolated", node.number)

    def grow(self) -> None:
        """A rare sequence, whole: a member enters, an old one is cut off, mail comes, all look."""
        if not self.depth:
            self.cut, self.etcd_cut, self.depth = set(), set(), 1
            for node in self.nodes.values():
                node.up = node.disk
            for act in (
                self.tick,
                self.come_back,
                self.join,
                self.enter,
                self.isolate,
                self.receive,
                self.receive,
                self.look,
            ):
                act()
            self.depth = 0

    def overtake(self) -> None:
        """Another: a member enters, and under a listing mail moves to it and is trimmed."""
        if not self.depth:
            self.cut, self.etcd_cut = set(), set()
            for act in (self.tick, self.come_back, self.join, self.receive, self.enter, self.tick):
                act()
            self.cut.add(frozenset(self.random.sample(list(self.nodes), 2)))
            self.moving = True
            self.look()
            self.moving = False

    def scrap(self, node: Node) -> None:
        node.up = node.disk = False
        node.entries, node.tombstones = set(), set()

    def lose_disk(self) -> None:
        """Fewer than `copies` disks are dead and unhealed at a time."""
        node, view = self.pick(), self.view
        dead = [n for n in self.nodes if not self.nodes[n].disk and n not in view.healed]
        if node.disk and len(dead) + 1 < view.read:
            others = (one.entries for one in self.nodes.values() if one is not node)
            self.excused |= node.entries.difference(*others) - self.full
            self.scrap(node)
            self.note("disk lost", node.number)

    # -- membership

    def lease_ended(self, number: int) -> bool:
        return self.now - self.nodes[number].word > LEASE

    def mark_absent(self) -> None:
        """Absent: its lease has ended; `copies` stay, or `accept`, or a member is entering."""
        view, by = self.view, self.random.choice(self.at_etcd(self.view.active) or [0])
        spare = len(view.active) > view.write or self.accept or view.entering
        gone = [n for n in view.entering + (view.active if spare else []) if n != by]
        gone = [n for n in gone if self.lease_ended(n) or self.mutant == "absent-unleased"]
        if by and gone:
            number = self.random.choice(gone)
            healed = view.healed - {number} if number in view.line else view.healed
            self.swap(by, view, {number: ABSENT}, healed)

    def remove(self, which: Iterable[int] = ()) -> None:
        """Remove: no lease, all who stay answer, and fewer than `copies` are left unhealed."""
        view, by = self.view, self.random.choice(self.at_etcd(self.view.active) or [0])
        gone = [n for n in which or view.members if n != by and n in view.members]
        gone = [n for n in gone if self.lease_ended(n) or self.mutant == "remove-leased"]
        if not by or not gone:
            return
        number = self.random.choice(gone)
        healed = view.healed - {number} if number in view.line else view.healed
        stay = [n for n in view.active if n != number]
        safe = len({*view.unhealed, number} - healed) < view.read and len(stay) >= view.write
        safe = safe and all(n == by or self.linked(by, n) for n in stay)
        if safe or self.mutant == "remove-unhealed":
            if self.swap(by, view, {number: REMOVED}, healed) and self.mutant != "remove-leased":
                self.scrap(self.nodes[number])

    def walk(self, view: View, by: int) -> bool:
        """Walk: in one epoch, all adopted it, then each sent what `expected` and others lack."""
        late = self.mutant == "heal-unadopted"
        talk = self.linked if late else self.exchange
        if self.mutant == "heal-no-walk":
            return self.adopted(view, by)
        if not late and not self.adopted(view, by):
            return False
        for number in view.active:
            self.interleave()
            for other in view.active:
                if other != number and not talk(number, other):
                    return False
                if self.mutant != "heal-no-tombstones":
                    self.give_tombstones(number, other)
            for message in self.nodes[number].entries.copy():
                for target in view.expected(message):
                    self.store(target, message)
        same = all(self.nodes[n].view is view for n in view.active)
        return self.adopted(view, by) if late else same

    def heal(self) -> None:
        view, by = self.view, self.at_etcd(self.view.keeping)[:1]
        if by and not view.short and 0 < len(view.unhealed) < view.read and self.walk(view, by[0]):
            if self.swap(by[0], view, None, view.healed | set(view.unhealed)):
                self.full |= self.acked

    def drain(self) -> None:
        """Drain: last in line, not counted; removed, as healed, when a walk ends."""
        view, by = self.view, self.at_etcd(self.view.keeping)[:1]
        draining, spare = view.those(DRAINING)[:1], len(view.keeping) - view.write
        if by and not draining and spare > 0 and self.random.random() < 0.2:
            self.swap(by[0], view, {self.random.choice(view.keeping): DRAINING})
        elif by and draining and spare >= 0 and self.walk(view, by[0]):
            if self.swap(by[0], view, {draining[0]: REMOVED}, view.healed | set(draining)):
                self.scrap(self.nodes[draining[0]])  # it stopped serving before the swap

    def set_copies(self) -> None:
        """Set copies: up: Write, a walk, Read.  Down: Read, all adopt, Write."""
        view, by = self.view, self.at_etcd(self.view.keeping)[:1]
        new = self.random.choice([1, 2, 3])
        if not by or view.unhealed or view.short:
            return
        if view.write == view.read and self.random.random() < 0.3:
            if view.write < new <= len(view.keeping):
                early = self.mutant == "read-raised-early"
                self.swap(by[0], view, copies=(new, new if early else view.read))
            elif new < view.write:
                early = self.mutant == "write-lowered-early"
                self.swap(by[0], view, copies=(new if early else view.write, new))
        elif view.write > view.read and self.random.random() < 0.7 and self.walk(view, by[0]):
            self.swap(by[0], view, copies=(view.write, view.write))
        elif view.write > view.read and self.adopted(view, by[0]):
            self.swap(by[0], view, copies=(view.read, view.read))

    def join(self) -> None:
        view, by, number = self.view, self.at_etcd(self.view.active), max(self.nodes) + 1
        if by and number <= self.most and len(view.active) < 5:
            if self.swap(by[0], view, {number: ENTERING}, view.healed | {number}):
                self.nodes[number] = Node(number, self.view, self.now)

    def come_back(self) -> None:
        view, back = self.view, self.at_etcd(self.view.those(ABSENT))
        if back and self.mutant == "enter-one-step":
            self.swap(back[0], view, {back[0]: ACTIVE}, view.healed - {back[0]})
        elif back:
            self.swap(back[0], view, {back[0]: ENTERING})

    def enter(self) -> None:
        """Enter: all adopted, then tombstones both ways, then mail if few are active."""
        view, ready = self.view, self.at_etcd(self.view.entering)
        number = self.random.choice(ready) if ready else 0
        order = ["adopt", "tombstones", "copies"] if ready else []
        if self.mutant == "enter-exchange-first":
            order = order[1:] + order[:1]
        for part in order:
            if not all(self.linked(number, n) for n in view.active):
                return
            self.adopt(self.nodes[number], view)
            if part == "adopt" and self.mutant != "enter-unadopted":
                if not self.adopted(view, number):
                    return
            for each in view.active if part == "tombstones" else ():
                if self.mutant != "enter-no-tombstones":
                    self.give_tombstones(each, number)
                    self.give_tombstones(number, each)
            for each in view.active if part == "copies" and view.short else ():
                for message in self.nodes[each].entries:
                    if self.mutant != "enter-no-copies":
                        self.store(number, message)
            self.interleave()
        if ready:
            self.swap(number, view, {number: ACTIVE}, view.healed - {number})

    # -- in the background

    def gossip(self) -> None:
        a, b = self.pick().number, self.pick().number
        if self.exchange(a, b):
            self.give_tombstones(a, b)

    def migrate(self, node: Node | None = None) -> None:
        """Send what `expected` lacks."""
        node = node or self.pick()
        view = node.view
        for message in node.entries.copy() if node.serves() else ():
            for target in view.expected(message):
                if self.exchange(node.number, target) and node.view is view:
                    if message not in self.nodes[target].entries:
                        if self.random.random() < 0.2:
                            self.send_late(target, message, view)
                        else:
                            self.store(target, message)

    def trim(self, node: Node | None = None) -> None:
        """Trim: all of `expected` have had it for longer than a listing takes."""
        node = node or self.pick()
        view, any_holder = node.view, self.mutant == "trim-any"
        wait = -1 if self.mutant == "trim-at-once" else HOLD
        for message in node.entries.copy() if node.serves() else ():
            others = view.active if any_holder else view.expected(message)
            if node.number in others and not any_holder:
                continue
            having = [
                n
                for n in others
                if self.exchange(node.number, n)
                and message in self.nodes[n].entries
                and self.now - self.nodes[n].came[message] > wait
            ]
            if node.view is view and len(having) >= (1 if any_holder else view.write):
                node.entries.discard(message)
                self.entomb(node.number, [message] if self.mutant == "trim-deletes" else [])
                self.note("trimmed", f"{message} at {node.number}, counting {having}")

    def forget(self) -> None:
        """Forget: a while after every member, absent ones too, is known to have it."""
        wait = 0 if self.mutant == "forget-soon" else HOLD
        for node in [node for node in self.nodes.values() if node.up]:
            who = node.view.active if self.mutant == "forget-absent" else node.view.members
            for each in node.tombstones.copy():
                if not all(each in self.nodes[n].vector for n in who):
                    node.everywhere.pop(each, None)
                elif self.now - node.everywhere.setdefault(each, self.now) >= wait:
                    node.tombstones.discard(each)
                    self.note("forgot", f"{each} at {node.number}")

    # -- walks

    def interleave(self) -> None:
        """Others act between two messages of an action."""
        if self.moving:
            for node in self.nodes.values():
                self.migrate(node)
            for node in self.nodes.values():
                self.trim(node)
        elif not self.depth and self.random.random() < self.often:
            self.depth = 1
            for _ in range(self.random.randint(1, 4)):
                self.tick()
                getattr(self, self.random.choice(BETWEEN))()
            self.depth = 0

    def quiet(self) -> None:
        """Nothing fails any more: all mail gets where it belongs, all tombstones are forgotten."""
        self.cut, self.etcd_cut, self.depth, self.calm = set(), set(), 1, True
        for _ in range(8 * LEASE):
            self.tick()
            dead = [n for n in self.nodes if not self.nodes[n].disk]
            living = [node for node in self.nodes.values() if node.disk]
            for node in living:
                node.up = True
                for other in living:
                    if self.exchange(node.number, other.number):
                        self.give_tombstones(node.number, other.number)
                self.migrate(node)
                self.trim(node)
            self.forget()
            for act in (self.mark_absent, self.come_back, self.enter, self.heal, self.settle):
                act()
            self.remove(dead if dead else [-1])
        view, living = self.view, [node for node in self.nodes.values() if node.disk]
        self.look()
        if (
            len(view.unhealed) >= view.read
            or len(living) < view.write
            or not any(node.serves() for node in living)
        ):
            return  # a machine must be added, or the operator says `--lossy` or `alone`
        for node in living:
            wrong = {
                m
                for m in self.acked - self.attempted - self.excused - node.entries
                if node.number in view.expected(m)
            }
            wrong |= {m for m in node.entries if node.number not in view.expected(m)}
            if wrong or node.tombstones or node.number not in view.line:
                raise ViolationError(
                    f"no rest at {node.number}: {sorted(wrong)} "
                    f"{sorted(node.tombstones)} {view.states}"
                )

    def run(self, steps: list[Step]) -> None:
        for name, seed in steps:
            self.done += 1
            self.random.seed(seed)
            self.tick()
            getattr(self, name)()
        have = set[Message]().union(*(node.entries for node in self.nodes.values()))
        if lost := self.acked - self.attempted - have - self.excused:
            raise ViolationError(f"acknowledged mail is lost: {sorted(lost)}")
        self.random.seed(0)
        self.quiet()


ACTIONS = (
    [
        "receive",
        "session",
        "churn",
        "mark_absent",
        "heal",
        "come_back",
        "enter",
        "gossip",
        "forget",
        "trim",
        "migrate",
        "remove",
        "join",
        "lose_disk",
        "drain",
        "set_copies",
        "settle",
        "look",
        "isolate",
        "grow",
        "overtake",
    ],
    [12, 12, 10, 3, 3, 4, 6, 4, 3, 3, 2, 0.4, 0.5, 0.3, 0.3, 0.1, 8, 2, 3, 0.5, 0.5],
)


BETWEEN = (
    "receive session churn isolate mark_absent heal come_back enter gossip gossip forget trim trim "
    "migrate migrate settle drain set_copies"
).split()


class Walk:
    """One walk, which can be tried again with fewer steps."""

    def __init__(self, seed: int, options: argparse.Namespace, mutant: str) -> None:
        random, self.nodes = Random(seed), options.nodes or 2 + seed % 3
        weights = [weight * random.choice((0.3, 1, 1, 3)) for weight in ACTIONS[1]]  # a swarm
        names = random.choices(ACTIONS[0], weights, k=options.steps)
        self.steps = [(name, random.getrandbits(32)) for name in names]
        self.seed, self.mutant = seed, mutant
        self.homes = options.settled or mutant.startswith("settled")

    def run(self, steps: list[Step]) -> tuple[str, World]:
        """What went wrong, if anything, and the world at its end."""
        world = World(self.seed, self.nodes, self.mutant, self.homes)
        try:
            world.run(steps)
        except ViolationError as error:
            return str(error), world
        return "", world

    def shrunk(self) -> list[Step]:
        """Some of the steps, of which none can be left out."""
        steps, size = self.steps, len(self.steps)
        while size:
            at = 0
            while at < len(steps):
                error, world = self.run(steps[:at] + steps[at + size :])
                if error:
                    steps = (steps[:at] + steps[at + size :])[: world.done]
                else:
                    at += size
            size //= 2
        return steps


def try_mutants(options: argparse.Namespace) -> int:
    """Each mutant on seeds until five walks have caught it."""
    missed = 0
    for mutant, text in MUTANTS.items():
        caught = tried = 0
        while tried < options.seeds and caught < 5:
            walk = Walk(options.first + tried, options, mutant)
            tried += 1
            caught += bool(walk.run(walk.steps)[0])
        missed += not caught
        print(f"{mutant:22} caught by {caught} of {tried:5} walks   {text}", flush=True)
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Random walks over the rules of cluster.md.")
    parser.add_argument("--seeds", type=int, default=500, help="how many walks")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--nodes", type=int, default=0, help="at the start; 0: two to four")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--settled", action="store_true", help="with settled homes (step 6)")
    parser.add_argument("--mutant", default="", choices=["", *MUTANTS], metavar="NAME")
    parser.add_argument("--list-mutants", action="store_true")
    parser.add_argument("--all-mutants", action="store_true", help="how many walks catch each")
    options, total = parser.parse_args(), Counter[str]()
    if options.list_mutants:
        print("\n".join(f"{name:22} {text}" for name, text in MUTANTS.items()))
        return 0
    if options.all_mutants:
        return try_mutants(options)
    for seed in range(options.first, options.first + options.seeds):
        walk = Walk(seed, options, options.mutant)
        error, world = walk.run(walk.steps)
        if error:
            error, world = walk.run(walk.shrunk())
            print(f"seed {seed}, {walk.nodes} nodes, accept={world.accept}", *world.lines, sep="\n")
            print(f"VIOLATION: {error}")
            return 1
        total += world.counts
    print(f"{options.seeds} walks without a violation:", dict(total.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
