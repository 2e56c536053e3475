"""What `metad cluster status` shows: each member asked, and the rules applied to what is up."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from metad.cli.cluster.setup import member_directory
from metad.cluster import rules
from metad.cluster.answers import Refused
from metad.cluster.hello import START_SIZE
from metad.cluster.identity import VIEW, load_contexts, own_fingerprint
from metad.cluster.link import Link
from metad.cluster.node import Node
from metad.cluster.own_marks import REFUSED
from metad.cluster.serving import Reply
from metad.cluster.transport import Links
from metad.cluster.view import Membership, View
from metad.cluster.view_file import ViewFile
from metad.errors import ClusterError, UnavailableError
from metad.system.osio import Osio

SECONDS: Final = 4.0
POLL_SECONDS: Final = 0.02


_REFUSED = "refused: "


@dataclass(frozen=True, slots=True)
class Reached:
    """One member.  `link`: "this node", with "off" if no hub runs here; "up"; or why it cannot be
    reached.  `etcd`: the one that it trusts; 0: none, or not known."""

    number: int
    address: str
    state: str
    healed: bool
    link: str
    epoch: int
    etcd: int = 0

    @property
    def is_up(self) -> bool:
        return self.link in ("up", "this node")

    @property
    def is_refused(self) -> bool:
        """This node, which the others refuse for an old disk."""
        return self.link.startswith(_REFUSED)

    def without_hub(self) -> Reached:
        """This node, on which no hub runs."""
        return replace(self, link="this node, off") if self.is_up else self

    def row(self) -> dict[str, Any]:
        return {
            "node": self.number,
            "address": self.address,
            "state": self.state,
            "link": self.link,
            "epoch": self.epoch or "-",
        }


@dataclass(frozen=True, slots=True)
class Prospect:
    """What works now, or if one more node failed."""

    when: str
    mail_in: bool
    mail_out: bool
    deletions: bool

    def facts(self) -> dict[str, Any]:
        return {
            "when": self.when,
            "mail_in": self.mail_in,
            "mail_out": self.mail_out,
            "deletions": self.deletions,
        }


def prospects(
    view: View, up: Collection[int], *, has_word: bool = True, with_etcd: bool = False
) -> Iterator[Prospect]:
    """Of the members that are up: what works, and what would after one more failure."""
    yield _prospect("now", view, up, has_word=has_word)
    for number in up:
        if number in view.active and len(up) > 1:
            rest = [one for one in up if one != number]
            yield _prospect(f"if node {number} fails", view, rest, has_word=has_word)
    if with_etcd and has_word:
        yield _prospect("if etcd fails", view, up, has_word=False)


def _prospect(when: str, view: View, up: Collection[int], *, has_word: bool) -> Prospect:
    entering = set(up).intersection(view.entering)
    active = set(up).intersection(view.active)
    return Prospect(
        when,
        rules.is_durable(view, up),
        rules.may_list(view, up, entering, has_word=has_word),
        rules.deletion_confirmed(view, active, has_word=has_word),
    )


def found(data: Path, release: str) -> tuple[View, int, list[Reached]]:
    """The view, the number of this node, and each member as it was reached.

    Raises UnavailableError, ClusterError, ConfigError, OSError.
    """
    directory = member_directory(data)
    view = ViewFile(Osio(), str(directory / VIEW)).read()
    if view is None:
        raise UnavailableError(
            f"{data}: in no cluster", remedy="metad cluster init or join puts it into one"
        )
    own = own_fingerprint(directory)
    numbers = [one.number for one in view.members if one.fingerprint == own]
    if not numbers:
        raise ClusterError(
            f"{directory}: the view has no member with the certificate of this node",
            remedy="restore the directory from a backup, or join again",
        )
    return view, numbers[0], asyncio.run(_reach(directory, view, numbers[0], release))


async def _reach(directory: Path, view: View, number: int, release: str) -> list[Reached]:
    """Ask all members at once.  Nothing is adopted: a newer view is shown by its epoch alone."""
    node = Node(
        number=number,
        start=secrets.token_bytes(START_SIZE),
        release=release,
        current_view=lambda: view,
        adopt=_adopt_nothing,
        handler=_serve_nothing,
        report=lambda line: None,
        clock=time.monotonic,
        hub_time_us=lambda: time.time_ns() // 1000,
        is_command=True,
    )
    links = Links(asyncio.get_running_loop(), load_contexts(directory), node)
    others = [
        one for one in view.members if one.number != number and one.state != Membership.REMOVED
    ]
    try:
        made = {one.number: links.dial(one.number) for one in others}
        until = time.monotonic() + SECONDS
        while time.monotonic() < until and not all(
            link.is_closed or link.is_ready for link in made.values() if link
        ):
            await asyncio.sleep(POLL_SECONDS)
        reached = []
        for one in view.members:
            link = made.get(one.number)
            epoch = view.epoch if one.number == number else link.epoch if link else 0
            text = _own_text(directory) if one.number == number else _described(link)
            trusted = link.hello.etcd if link and link.hello else 0
            reached.append(
                Reached(one.number, one.address, one.state.value, one.healed, text, epoch, trusted)
            )
        return reached
    finally:
        links.close()
        await asyncio.sleep(POLL_SECONDS)  # the connections close in the next turns


def _own_text(directory: Path) -> str:
    """Of this node."""
    refused = directory / REFUSED
    return _REFUSED + refused.read_text() if refused.exists() else "this node"


def _described(link: Link | None) -> str:
    if link is None:
        return "-"
    return "up" if link.is_ready else link.reason or "no answer"


def _adopt_nothing(view: View) -> None:
    raise ClusterError(f"epoch {view.epoch} is newer")


def _serve_nothing(kind: int, body: bytes, reply: Reply) -> None:
    reply(Refused("a command, not a hub"))
