"""The users of a cluster between etcd and this node's mirror, within the directory process.

    a command's Change -> `change` -> one transaction of etcd
    etcd -> a watch, or all rows -> the mirror

Rules of this file:

* Nothing is changed, entered or reloaded unless the directory in etcd is trusted.  But the number
  of the next mailbox is raised: a node that was off since the day to which etcd has gone back
  trusts it until another one has told, and would give a number again.
* A mirror may have more than the rounds of the directory have seen.  If etcd has gone back behind
  it, the directory is told.
* A watch begins at the revision after the mirror's.  Where that has been compacted, all rows are
  read again at one revision; not if no user has changed since, which "last/NODE" tells.
* An etcd that is away delays changes of users, and nothing else.
* A server of etcd that is cut off, or loses its power, leaves a watch open that tells nothing any
  more.  So etcd is also asked, every few seconds, whether there is more than the watch has told.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from itertools import groupby
from typing import Final, NamedTuple

from metad.cluster import etcd_json
from metad.cluster.directory_keys import Identity, Keys
from metad.cluster.etcd import Etcd
from metad.cluster.etcd_json import CompactedError, EtcdError, Outcome
from metad.errors import ClusterError, MetadError
from metad.system.backoff import Backoff
from metad.users import etcd_rows, rows
from metad.users.mirrored import MirroredUsers, Reload
from metad.users.rows import Change, Position, Row

AGAIN: Final = Backoff(0.1, 5.0)
# Until the mirror has what etcd has.
MIRRORED_S: Final = 5.0
# Between questions whether the watch has told everything.
LISTEN_S: Final = 5.0
# Between looks at the next number in a directory that is not trusted.
NUMBERS_S: Final = 1.0
# Lines of the log about rows that are wrong, for one page or watch.
MOST_LINES: Final = 5


class UserDirectoryNode(NamedTuple):
    """What it needs of its node.  `trusted`: the directory in etcd; None while it is not, or was
    not read yet.  `distrusts`: it is not, and this node is a member that the others take.
    `distrust`: trust that one no more, for this reason; raises ClusterError."""

    number: int
    keys: Keys
    trusted: Callable[[], Identity | None]
    report: Callable[[str], None]
    distrusts: Callable[[], bool]
    distrust: Callable[[Identity, str], Awaitable[None]]


class UserDirectory:
    """`users` is this node's database, of which this is the only writer."""

    def __init__(self, etcd: Etcd, node: UserDirectoryNode, users: MirroredUsers) -> None:
        self._etcd = etcd
        self._node = node
        self._users = users
        self._prefix = node.keys.users
        self._lock = asyncio.Lock()
        self._position = users.position()
        self._moved = asyncio.Event()
        self._error = ""
        self._failures = 0  # since the watch last told of a change, or stood for `LISTEN_S`

    @property
    def position(self) -> Position:
        """What the mirror has."""
        return self._position

    @property
    def error(self) -> str:
        """Why the mirror does not follow etcd now; "": it does."""
        return self._error

    # -- etcd to mirror

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                if self._node.trusted() is not None:
                    await self._follow()
                elif self._node.distrusts():
                    await self._keep_numbers()
                self._failures = 0
            except MetadError as error:
                self._failures += 1
                self._note(str(error))
            await asyncio.sleep(max(AGAIN.first, AGAIN.delay(self._failures)))

    def _note(self, error: str) -> None:
        if error and not self._error:
            self._node.report(f"warning: users: {error}; those on this node stay as they are")
        elif self._error and not error:
            self._node.report("users: this node has what etcd has again")
        self._error = error

    def _trusted(self) -> Identity:
        """Raises ClusterError."""
        identity = self._node.trusted()
        if identity is None:
            raise ClusterError("the directory in etcd is not trusted, or was not read yet")
        return identity

    async def _follow(self) -> None:
        """Until something is wrong.  Raises ClusterError, DataError."""
        identity = self._trusted()
        found = await self._look(identity)
        # Before all rows are read, which may take minutes: others give numbers meanwhile.
        await self._raise_next(found.found[2], identity)
        latest = etcd_rows.latest(found.found[1])
        name = etcd_rows.position(identity, 0).identity
        if self._position.identity != name or not self._position.revision:
            await self._reload(identity, found.revision)
        elif latest <= self._position.revision:
            self._enter([], found.revision)  # nothing has changed in between
        try:
            await self._watch_or_deaf(identity)
        except CompactedError:
            await self._reload(identity, 0)

    async def _look(self, identity: Identity) -> Outcome:
        """The identity, "last" and "next", all at one revision.  Raises ClusterError."""
        known = self._position  # of before etcd answers: the watch goes on meanwhile
        found = await self._etcd.read(
            etcd_json.reads(self._node.keys.identity),
            etcd_json.reads_prefix(self._key(rows.LAST)),
            etcd_json.reads(self._key(rows.NEXT)),
        )
        there = [row.value for row in found.found[0]]
        if there != [identity.encode()]:
            raise ClusterError("etcd has another directory")
        now = etcd_rows.position(identity, found.revision)
        if known.identity == now.identity and known.revision > now.revision:
            reason = f"etcd has gone back to revision {now.revision} from {known.revision}"
            await self._node.distrust(identity, reason)
            raise ClusterError(reason)
        return found

    async def _watch_or_deaf(self, identity: Identity) -> None:
        """Until the watch is lost, or tells nothing any more.  Raises ClusterError."""
        both = [asyncio.create_task(one(identity)) for one in (self._watch, self._until_deaf)]
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _until_deaf(self, identity: Identity) -> None:
        """Raises ClusterError once etcd has changes that do not come."""
        while True:
            await asyncio.sleep(LISTEN_S)
            known = self._position
            try:
                found = await self._look(identity)
                await self._raise_next(found.found[2], identity)
            except EtcdError:  # it cannot be known now
                continue
            latest = etcd_rows.latest(found.found[1])
            if not await self._reach(latest) and self._position == known:
                raise ClusterError("etcd's watch does not tell of changes any more")
            self._failures = 0

    async def _watch(self, identity: Identity) -> None:
        end = etcd_json.end_of_prefix(self._prefix)
        after = self._position.revision + 1
        held: list[etcd_json.Change] = []
        async with aclosing(self._etcd.watch(self._prefix, end, after)) as watching:
            async for changes in watching:
                if self._node.trusted() != identity:
                    raise ClusterError("the directory in etcd is not trusted any more")
                self._note("")
                held += changes.changes
                # Before the last piece, the last revision may be cut in two.
                whole = [one for one in held if not changes.more or one.mod < held[-1].mod]
                if whole:
                    self._enter(_by_revision(self._prefix, whole), whole[-1].mod)
                    self._failures = 0
                    held = held[len(whole) :]

    def _enter(self, revisions: list[list[Row]], revision: int) -> None:
        position = etcd_rows.position(self._trusted(), revision)
        self._tell(self._users.apply(revisions, position))
        self._move(position)

    def _move(self, position: Position) -> None:
        self._position = position
        self._moved.set()
        self._moved = asyncio.Event()

    def _tell(self, wrong: list[str]) -> None:
        for text in wrong[:MOST_LINES]:
            self._node.report(f"warning: users: {text}")
        if len(wrong) > MOST_LINES:
            self._node.report(f"warning: users: {len(wrong) - MOST_LINES} more rows are wrong")

    async def _reload(self, identity: Identity, revision: int) -> None:
        """All rows, at this revision; 0: at the newest.  Raises ClusterError, DataError."""
        if not revision:
            revision = (await self._look(identity)).revision
        position = etcd_rows.position(identity, revision)
        reload: Reload = self._users.reload(position)
        async for page in etcd_rows.everything(self._etcd, self._prefix, revision):
            if self._node.trusted() != identity:
                raise ClusterError("the directory in etcd is not trusted any more")
            reload.add([(self._relative(row.key), row.value) for row in page])
        reload.finish()
        self._tell(reload.wrong)
        self._move(position)

    async def _keep_numbers(self) -> None:
        """Of a directory that is not trusted; why it is not, the directory process reports."""
        with suppress(ClusterError):
            found = await self._etcd.read(etcd_json.reads(self._key(rows.NEXT)))
            await self._raise_next(found.found[0], None)
        await asyncio.sleep(NUMBERS_S)

    async def _raise_next(self, found: Sequence[etcd_json.Row], identity: Identity | None) -> None:
        """No number that was given on this node is given again, whatever etcd has lost.  `found`:
        the next one in etcd, if it has one; `identity`: of a directory that is trusted."""
        own, key = self._users.next_number, self._key(rows.NEXT)
        while found and own > rows.read_number(found[0].value):
            compare = [etcd_json.unchanged(key, found[0].mod)]
            if identity is not None:
                compare.append(etcd_json.equals(self._node.keys.identity, identity.encode()))
            then = [etcd_json.puts(key, b"%d" % own), self._token(secrets.token_bytes(8))]
            async with self._lock:
                outcome = await self._etcd.transact(compare, then, [etcd_json.reads(key)])
            if outcome.succeeded or outcome.found[0] == found:  # the same: it is another directory
                return
            found = outcome.found[0]  # another node gave a number meanwhile

    # -- mirror to etcd

    async def change(self, change: Change) -> bool:
        """Carry a change out, and wait until the mirror has it.

        False: another change came first, which the mirror has now.  Raises ClusterError.
        """
        identity = self._trusted()
        if change.position.identity != etcd_rows.position(identity, 0).identity:
            # A directory that was written again has smaller revisions, which look older than ours.
            raise ClusterError(
                "this node does not have the users of the restored directory yet",
                remedy="try again in a moment",
            )
        async with self._lock:
            outcome = await self._transact(identity, change)
        if outcome.succeeded:
            if not await self._reach(outcome.revision):
                raise ClusterError(
                    "it stands in etcd and holds on the other nodes, but this node has not seen "
                    "it yet"
                )
            return True
        latest = etcd_rows.latest(outcome.found[0])
        if latest <= change.position.revision:
            raise ClusterError("the users in etcd are not those of this node, or not trusted")
        if not await self._reach(latest):
            raise ClusterError("this node does not have the latest users of the cluster")
        return False

    async def _transact(self, identity: Identity, change: Change) -> Outcome:
        """Raises EtcdError."""
        token = secrets.token_bytes(8)
        compare = [etcd_json.equals(self._node.keys.identity, identity.encode())]
        compare += etcd_rows.compare(self._prefix, change)
        then = [*etcd_rows.writes(self._prefix, change), self._token(token)]
        last = etcd_json.reads_prefix(self._key(rows.LAST))
        try:
            return await self._etcd.transact(compare, then, [last])
        except EtcdError:  # it may have succeeded
            found = await self._etcd.read(last)
            for row in found.found[0]:
                if row.value == token:
                    return Outcome(True, row.mod, ())
            raise

    async def _reach(self, revision: int) -> bool:
        """Whether the mirror has a revision, within some seconds."""
        try:
            async with asyncio.timeout(MIRRORED_S):
                while self._position.revision < revision:
                    await self._moved.wait()
        except TimeoutError:
            return False
        return True

    def _token(self, token: bytes) -> etcd_json.Json:
        return etcd_json.puts(f"{self._key(rows.LAST)}{self._node.number}", token)

    def _key(self, relative: bytes) -> str:
        return self._prefix + relative.decode()

    def _relative(self, key: str) -> bytes:
        return key[len(self._prefix) :].encode()


def _by_revision(prefix: str, changes: list[etcd_json.Change]) -> list[list[Row]]:
    return [
        [
            (one.key[len(prefix) :].encode(), None if one.row is None else one.row.value)
            for one in group
        ]
        for _, group in groupby(changes, key=lambda one: one.mod)
    ]
