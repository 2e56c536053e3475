"""rspamd as a filter: each message goes to /checkv2 of its worker, by HTTP on a persistent
connection.

Rules of this file:

* rspamd decides the score and may force an action; the table in `_verdict` maps its action to
  a mail hub's.
* A field that rspamd or we add is first removed from the message, so that no sender can forge it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metad.errors import Reply
from metad.filters import authentication
from metad.filters.base import Filter, FilterContext, FilterResult, Message, Preferences, Verdict
from metad.filters.fields import FieldError, make_field
from metad.filters.hostnames import Hostnames, files
from metad.filters.http import request
from metad.filters.pool import HttpPool
from metad.filters.results import Report, ReportError, read_report

SPAM_FIELD = "X-Spam"
SCORE_FIELD = "X-Spam-Score"
REFUSED = "Message refused as spam"
TRY_LATER = "Try again later"
OK = 200


class RspamdError(Exception):
    """rspamd has answered with something invalid."""


class RspamdFilter(Filter):
    """The filter "rspamd", made of the settings in [filter].

    Options: `address` (an Address), `connections`, `authserv_id`, `size` (bytes of a message that
    are checked), `oversize` ("skip" or "partial"), `spam` ("mark" or "junk"), `hostname` (whether
    the client's name is looked up).
    """

    name = "rspamd"

    @classmethod
    def check_options(cls, options: Mapping[str, Any], data: Path) -> dict[str, Any]:
        return dict(options)

    @classmethod
    def places(cls, options: Mapping[str, Any]) -> list[Path]:
        return files() if options["hostname"] else []

    @classmethod
    def connects(cls, options: Mapping[str, Any]) -> bool:
        # Landlock does not restrict Unix sockets that have a path.
        return options["address"].path is None

    def start(self, context: FilterContext) -> None:
        options = context.options
        self._report = context.report
        self._authserv_id: str = options["authserv_id"]
        self._size: int = options["size"]
        self._partial = options["oversize"] == "partial"
        self._junk = options["spam"] == "junk"
        self._hostname = context.hostname
        self._pool = HttpPool(context.loop, options["address"], options["connections"])
        self._hostnames = Hostnames(context.loop) if options["hostname"] else None
        self._warned: set[str] = set()

    def stop(self) -> None:
        self._pool.close()

    async def message(self, message: Message) -> FilterResult:
        size = message.size
        body = message.body
        if size > self._size:
            if not self._partial:
                return Verdict(note="not checked: too large", add=(unchecked("too large"),))
            size, body = self._size, body.first(self._size)
        fields = request_fields(message)
        if self._hostnames is not None and message.session.client != "local":
            name = await self._hostnames.name_of(message.session.client)
            fields += [("Hostname", name)] if name else []
        head = request("/checkv2", fields, size)
        response = await self._pool.post(head, body)
        if response.status != OK:
            raise RspamdError(f"HTTP status {response.status}")
        report = read_report(response.body)
        common = self._fields(report, message)
        return {one: self._verdict(report, one, common) for one in message.preferences}

    def _verdict(self, report: Report, wishes: Preferences, common: _Common) -> Verdict:
        """The verdict on rspamd's action for recipients with these preferences."""
        if wishes.off:
            return Verdict()
        action = action_for(report, wishes)
        note = f"rspamd: {action}, score {report.score:.2f}"
        if action in ("reject", "discard"):
            # A hub does not drop mail: a message that rspamd would discard is refused.
            return Verdict(Reply(550, "5.7.1", report.text or REFUSED), note=note)
        if action in ("soft reject", "greylist"):
            return Verdict(Reply(451, "4.7.1", report.text or TRY_LATER), note=note)
        if action == "rewrite subject":
            self._warn_once(
                "rspamd wants to rewrite a subject: metad does not change fields of the sender; "
                "such messages are marked as spam"
            )
        is_spam = action != "no action"
        junk = action == "quarantine" or (is_spam and self._junk)
        add = (*common.results, *self._spam_fields(report, common, marked=is_spam))
        return Verdict(add=add, remove=common.remove, junk=junk, note=note)

    def _spam_fields(
        self, report: Report, common: _Common, *, marked: bool
    ) -> tuple[tuple[str, str], ...]:
        """rspamd's own fields, and those that it is not configured to add."""
        own = [(SPAM_FIELD, "Yes")] if marked else []
        own.append((SCORE_FIELD, f"{report.score:.2f}"))
        given = {name.lower() for name, _ in common.add}
        # rspamd marks by its own thresholds; the recipients may have different ones.
        theirs = [one for one in common.add if one[0].lower() != SPAM_FIELD.lower() or marked]
        return (*(one for one in own if one[0].lower() not in given), *theirs)

    def _fields(self, report: Report, message: Message) -> _Common:
        session = message.session
        results = authentication.results(
            self._authserv_id, report.symbols, session.sender, session.helo
        )
        add: list[tuple[str, str]] = []
        for name, value in report.add:
            # Our field says the same under our own name.
            if name.lower() == authentication.NAME.lower():
                continue
            try:
                make_field(name, value)
            except FieldError as error:
                raise ReportError(f"a header to add: {error}") from None
            add.append((name, value))
        return _Common((results,) if results else (), tuple(add), report.remove)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._report(f"warning: {text}")


class _Common:
    """The part that does not depend on the recipients."""

    __slots__ = ("add", "remove", "results")

    def __init__(
        self,
        results: tuple[tuple[str, str], ...],
        add: tuple[tuple[str, str], ...],
        remove: tuple[tuple[str, int], ...],
    ) -> None:
        self.results = results
        self.add = add
        self.remove = remove


UNCHECKED_FIELD = "X-Metad-Filter"


def unchecked(reason: str) -> tuple[str, str]:
    """The field of a message that was accepted without being checked."""
    return UNCHECKED_FIELD, f"unchecked ({reason})"


def action_for(report: Report, wishes: Preferences) -> str:
    """rspamd's action, or the one from the recipients' own scores if no rule forced it."""
    if report.forced or (wishes.mark is None and wishes.refuse is None):
        return report.action
    action, score = report.action, report.score
    if wishes.refuse is not None:
        if score >= wishes.refuse:
            return "reject"
        if action == "reject":
            action = "add header"
    if wishes.mark is not None and action != "reject":
        if score >= wishes.mark:
            return "quarantine" if action == "quarantine" else "add header"
        if action != "greylist":
            return "no action"
    return action


def request_fields(message: Message) -> list[tuple[str, str]]:
    """The envelope, as headers of the request."""
    session = message.session
    fields = [("Queue-Id", message.id), ("From", session.sender)]
    fields += [("Rcpt", address) for address in session.recipients]
    if session.client != "local":
        fields.append(("Ip", session.client.partition("%")[0]))
    if session.helo:
        fields.append(("Helo", session.helo))
    if session.tls:
        fields += [("TLS-Version", session.tls), ("TLS-Cipher", session.cipher)]
    if len(session.recipients) == 1:
        fields.append(("Deliver-To", session.recipients[0]))
    return fields
