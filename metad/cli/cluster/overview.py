"""What `metad cluster status` shows: who is in, what works, and when etcd answered last.

Rule of this file: what is not known is shown as not known; a silent etcd or directory process is
an answer, not an error.
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from metad.cli import tables
from metad.cli.cluster.status import Prospect, Reached, prospects
from metad.cluster import local
from metad.cluster.entering import COPIES
from metad.cluster.view import View
from metad.errors import ClusterError
from metad.limits import CLUSTER_WORD

PATIENCE_S: Final = 3.0
COLUMNS: Final = 79


@dataclass(frozen=True, slots=True)
class EtcdSight:
    """What this node's directory process knows of etcd.  `reason`: why it could not be asked."""

    known: Mapping[str, Any]
    reason: str = ""

    @property
    def has_word(self) -> bool:
        age = self.known.get("word_s")
        return age is not None and age <= CLUSTER_WORD and not self.known.get("frozen")

    def lease(self, number: int) -> str | None:
        """Of a member, for the table.  None: not known, as while etcd is away."""
        if not self.has_word or not self.known.get("epoch"):
            return None
        if number in self.known["alive"]:
            return "yes"
        away = self.known["away_s"].get(str(number))
        return f"gone {tables.duration(away)}" if away is not None else "no"

    def line(self) -> str:
        """In one line."""
        if self.reason:
            return self.reason
        if self.known["frozen"]:
            return f"not trusted: {self.known['frozen']}"
        age = self.known["word_s"]
        word = "no answer yet" if age is None else f"answered {tables.duration(age)} ago"
        if self.known["error"]:
            return f"{word}; {self.known['error']}"
        return f"{self.known['endpoint']}, {word}"

    def facts(self) -> dict[str, Any]:
        return {"reason": self.reason, **self.known}


def ask_directory(data: Path) -> EtcdSight:
    try:
        answer = local.ask(local.socket_path(data), {"op": "status"}, PATIENCE_S)
    except ClusterError as error:
        return EtcdSight({}, str(error))
    return EtcdSight({name: value for name, value in answer.items() if name != "ok"})


def short_of_copies(view: View) -> str:
    """Which mail has fewer than `copies` copies, and what to do.  "": none, as far as is known."""
    if view.short:
        return f"all new mail: {len(view.active)} active for {view.copies} copies"
    if len(view.unhealed) >= view.read_copies and view.unhealed:
        return f"perhaps mail of {_nodes(view.unhealed)}: start these nodes"
    if view.unhealed:
        return f"perhaps mail of {_nodes(view.unhealed)}: it is being copied"
    if view.read_copies < view.copies:
        return "old mail: it is being copied"
    if view.copies < COPIES <= len(view.keeping):
        return "all mail: the next view asks for two copies"
    return ""


def _nodes(numbers: Collection[int]) -> str:
    shown = " and ".join(map(str, numbers))
    return f"node {shown}" if len(numbers) == 1 else f"nodes {shown}"


def show_facts(facts: Iterable[tuple[str, object]]) -> None:
    """One fact a line; on a terminal, what is too long for a line goes on below its beginning."""
    rows = list(facts)
    if not tables.terminal():
        tables.show_facts(dict(rows))
        return
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        text = tables.cell(value)
        lines = textwrap.wrap(text, COLUMNS - width, break_on_hyphens=False) or [""]
        for at, line in enumerate(lines):
            label = f"{name}:" if at == 0 else ""
            click.echo(f"{label:<{width}}{line}")


@dataclass(frozen=True, slots=True)
class Overview:
    """`etcd` None: the cluster has none."""

    view: View
    number: int
    members: list[Reached]
    etcd: EtcdSight | None

    def outlook(self) -> list[Prospect]:
        if any(one.is_refused for one in self.members if one.number == self.number):
            return [Prospect("now", mail_in=False, mail_out=False, deletions=False)]
        up = [one.number for one in self.members if one.is_up]
        if self.etcd is None:
            return list(prospects(self.view, up))
        return list(prospects(self.view, up, has_word=self.etcd.has_word, with_etcd=True))

    def facts(self) -> dict[str, Any]:
        view = self.view
        return {
            "cluster": view.cluster,
            "node": self.number,
            "epoch": view.epoch,
            "digest": view.digest.hex(),
            "copies": view.copies,
            "copies_of_old_mail": view.read_copies,
            "short_of_copies": short_of_copies(view),
        }

    def as_json(self) -> dict[str, Any]:
        facts = self.facts()
        facts["members"] = [self._member(one) for one in self.members]
        facts["outlook"] = [one.facts() for one in self.outlook()]
        if self.etcd is not None:
            facts["etcd"] = self.etcd.facts()
        return facts

    def _member(self, one: Reached) -> dict[str, Any]:
        if self.etcd is None:
            return asdict(one)
        alive = self.etcd.known.get("alive")
        return {**asdict(one), "lease": None if alive is None else one.number in alive}

    def lines(self) -> Iterator[tuple[str, object]]:
        """Facts for people."""
        for name, value in self.facts().items():
            yield name.replace("_", " "), value or "none"
        if self.etcd is not None:
            yield "etcd", self.etcd.line()
            if remedy := self.etcd.known.get("remedy"):
                yield "remedy", remedy

    def rows(self) -> list[dict[str, Any]]:
        found = []
        for one in self.members:
            row = one.row()
            if self.etcd is not None:
                lease = {"lease": self.etcd.lease(one.number)}
                row = {"node": row.pop("node"), "address": row.pop("address"),
                       "state": row.pop("state"), **lease, **row}  # fmt: skip
            found.append(row)
        return found
