"""Two filters for metad, as worked examples of docs/filters.md.

`allowlist` accepts mail only from the senders and domains in its setting `senders`.
`webhook` tells a web service of every message, and refuses what the service says no to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metad.filters.base import Answer, Filter, FilterContext, Message, Reply, Session, Verdict
from metad.filters.body import of_bytes
from metad.filters.http import request
from metad.filters.pool import Address, HttpPool

NOT_LISTED = Reply(550, "5.7.1", "This hub takes no mail from you")
UNWANTED = Reply(550, "5.7.1", "The recipient does not want this message")
OK, REFUSED = 200, 403
# Bytes of a message that the web service gets.
SHOWN = 64 * 1024


class Allowlist(Filter):
    """Answers at once, so it is no coroutine: it costs a call."""

    name = "allowlist"

    @classmethod
    def check_options(cls, options: Mapping[str, Any], data: Path) -> dict[str, Any]:
        for key in options:
            if key != "senders":
                raise ValueError(f"allowlist knows no setting {key}")
        senders = options.get("senders")
        if not isinstance(senders, list) or not all(isinstance(one, str) for one in senders):
            raise ValueError("senders: must be a list of addresses and domains")
        return {"senders": frozenset(one.lower().removeprefix("@") for one in senders)}

    def start(self, context: FilterContext) -> None:
        self._senders: frozenset[str] = context.options["senders"]

    def sender(self, session: Session) -> Answer:
        address = session.sender.lower()
        listed = address in self._senders or address.rpartition("@")[2] in self._senders
        return None if listed else NOT_LISTED


class Webhook(Filter):
    """Waits for the service: metad sees to the deadline, and to a service that is down."""

    name = "webhook"

    @classmethod
    def check_options(cls, options: Mapping[str, Any], data: Path) -> dict[str, Any]:
        for key in options:
            if key not in ("host", "port", "path"):
                raise ValueError(f"webhook knows no setting {key}")
        port = options.get("port", 80)
        if not isinstance(port, int) or not 1 <= port <= 65535:
            raise ValueError("port: must be a number from 1 to 65,535")
        return {"host": options.get("host", "127.0.0.1"), "port": port,
                "path": options.get("path", "/mail")}  # fmt: skip

    @classmethod
    def connects(cls, options: Mapping[str, Any]) -> bool:
        return True

    def start(self, context: FilterContext) -> None:
        options = context.options
        self._path: str = options["path"]
        self._pool = HttpPool(context.loop, Address(None, options["host"], options["port"]), 8)

    def stop(self) -> None:
        self._pool.close()

    async def message(self, message: Message) -> Verdict:
        told = {
            "id": message.id,
            "sender": message.session.sender,
            "recipients": message.session.recipients,
            "size": message.size,
            "start": (await message.body.read(SHOWN)).decode("utf-8", "replace"),
        }
        octets = json.dumps(told).encode()
        head = request(self._path, [("Content-Type", "application/json")], len(octets))
        response = await self._pool.post(head, of_bytes(octets))
        if response.status == REFUSED:
            return Verdict(UNWANTED, note="the web service does not want it")
        if response.status != OK:
            raise RuntimeError(f"the web service answered {response.status}")
        return Verdict(add=(("X-Webhook", "seen"),))
