"""A POP3 client that copies a mailbox: all messages with their unique ids, deleting none.

Rules of this file:

* A password is sent only over TLS, unless the server is on this machine or the caller permits it.
* Everything that the server sends is bounded and checked.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import unquote, urlsplit

from metad import limits
from metad.cli.mail.foreign import BadItem, Reached, SourceItem, foreign
from metad.errors import EX_PROTOCOL, DataError, MetadError, UnavailableError, UsageError

SECONDS = 60.0
LINE = 1 << 20
# Maximum size of a message, as in a Maildir; the size beyond which the server is given up; and the
# maximum lines of other replies.
LARGEST = limits.MAX_LOG_SIZE // 4
ENDLESS = 2 * LARGEST
LINES = 10_000_000
_PORTS = {"pop3": 110, "pop3s": 995}
# RFC 1939 allows 70 printable characters; others get a unique id made from the content.
_LISTED = re.compile(rb"([0-9]{1,10}) +(.{1,512}?) *")


class ServerError(MetadError):
    """The other server refused something (exit 76).  `reply`: its own words."""

    exit_code = EX_PROTOCOL
    remedy = "the log of that server may say more"

    def __init__(self, place: str, reply: str, *, remedy: str = "") -> None:
        super().__init__(f"{place}: {reply}", remedy=remedy)
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Account:
    """Server and login.  `user` "": the address itself; `master`: a master user logs in for it."""

    host: str
    port: int
    tls: bool
    user: str
    master: str | None = None
    password: bytes = field(default=b"", repr=False)
    # The password may be sent without TLS, and the certificate is not checked.
    insecure: bool = False


def parse_url(url: str) -> Account:
    """pop3://USER@HOST:PORT, pop3s://…  Raises UsageError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query:
        raise UsageError(f"{url}: must be pop3://USER@HOST:PORT or pop3s://USER@HOST:PORT")
    if parts.password is not None:
        raise UsageError("no password in a URL", remedy="give --password-stdin")
    user = unquote(parts.username or "")
    tls = parts.scheme == "pop3s"
    return Account(parts.hostname, port or _PORTS[parts.scheme], tls, user)


class PopClient:
    """A session with another server.  Raises UnavailableError, ServerError."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._place = f"{account.host}:{account.port}"
        try:
            self._socket = socket.create_connection((account.host, account.port), SECONDS)
        except OSError as error:
            raise UnavailableError.of(error, self._place) from None
        self._input = self._socket.makefile("rb")
        try:
            if account.tls:
                self._start_tls()
            greeting = self._reply("greeting")
            self._line_end = b"\r\n" if greeting.endswith(b"\r\n") else b"\n"
            self._secure()
            self._log_in()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PopClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            # Nothing was deleted, so the reply does not matter.
            with contextlib.suppress(MetadError):
                self._command("QUIT")
        self.close()

    def close(self) -> None:
        self._input.close()
        self._socket.close()

    def messages(self) -> Iterator[SourceItem]:
        """Every message with its unique id, in the server's order.

        A message that the server refuses is a bad item.  Raises ServerError at the end if the
        server has more messages than it listed.
        """
        count = self._count()
        uids = self._unique_ids()
        for done, number in enumerate(uids or range(1, count + 1)):
            yield Reached(done, len(uids) or count)
            place = f"{self._place}, message {number}"
            try:
                self._command(f"RETR {number}")
            except ServerError as error:
                yield BadItem(place, error.reply)
                continue
            octets = self._message()
            if octets is None:
                yield BadItem(place, f"larger than {LARGEST:,} bytes")
            else:
                yield foreign(place, octets, uids.get(number, ""))
        if uids and len(uids) < count:
            raise ServerError(self._place, f"listed only {len(uids)} of {count} messages")

    def _count(self) -> int:
        """How many messages STAT reports."""
        words = self._command("STAT").split()
        if len(words) < 2 or not words[1].isdigit():
            raise ServerError(self._place, "STAT: no number of messages")
        return int(words[1])

    def _unique_ids(self) -> dict[int, str]:
        """Message number -> unique id; empty if the server does not know UIDL."""
        try:
            self._command("UIDL")
        except ServerError:
            return {}
        found: dict[int, str] = {}
        for line in self._few_lines():
            match = _LISTED.fullmatch(line.rstrip(b"\r\n"))
            if match is None:
                raise ServerError(self._place, f"UIDL: {line[:80]!a}")
            found[int(match[1])] = match[2].decode("ascii", "replace")
        return found

    # -- before the mailbox

    def _start_tls(self) -> None:
        context = ssl.create_default_context()
        if self._account.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        try:
            self._input.close()
            self._socket = context.wrap_socket(self._socket, server_hostname=self._account.host)
        except OSError as error:
            raise UnavailableError(
                f"{self._place}: TLS: {error}", remedy="--insecure accepts any certificate"
            ) from None
        self._input = self._socket.makefile("rb")

    def _secure(self) -> None:
        if self._account.tls:
            return
        capabilities = self._capabilities()
        if "STLS" in capabilities:
            self._command("STLS")
            self._start_tls()
        elif not (self._account.insecure or _is_here(self._socket)):
            raise ServerError(
                self._place,
                "offers no TLS",
                remedy="--insecure permits to send the password without it",
            )

    def _capabilities(self) -> set[str]:
        try:
            self._command("CAPA")
        except ServerError:
            return set()
        return {line.split()[0].decode("ascii", "replace").upper()
                for line in self._few_lines() if line.split()}  # fmt: skip

    def _log_in(self) -> None:
        account = self._account
        if account.master is None:
            if any(octet in b"\r\n\0" for octet in account.password):
                raise DataError(
                    "the password has control characters", remedy="USER and PASS cannot send it"
                )
            self._command(f"USER {account.user}")
            self._send(b"PASS " + account.password)
            self._reply("login")
            return
        # RFC 4616: the master's name and password, on behalf of the user.
        plain = b"\0".join([account.user.encode(), account.master.encode(), account.password])
        self._send(b"AUTH PLAIN " + base64.b64encode(plain))
        self._reply("login")

    # -- the conversation

    def _command(self, command: str) -> bytes:
        self._send(command.encode())
        return self._reply(command.split(maxsplit=1)[0])

    def _send(self, line: bytes) -> None:
        if b"\r" in line or b"\n" in line:
            raise UsageError("a user name must have no control characters")
        try:
            self._socket.sendall(line + b"\r\n")
        except OSError as error:
            raise UnavailableError.of(error, self._place) from None

    def _reply(self, to: str) -> bytes:
        line = self._line()
        if not line.startswith(b"+OK"):
            said = ascii(line[:200].decode("utf-8", "replace"))[1:-1]
            raise ServerError(self._place, f"{to}: {said}")
        return line

    def _line(self) -> bytes:
        try:
            line = self._input.readline(LINE)
        except OSError as error:
            raise UnavailableError.of(error, self._place) from None
        if not line:
            raise UnavailableError(
                f"{self._place}: the server closed the connection",
                remedy="run the import again: it skips what is there already",
            )
        return line

    def _lines(self) -> Iterator[bytes]:
        """The lines of a reply, dots unstuffed; a long line comes in pieces.

        Only CR LF . CR LF ends it (RFC 1939 section 3): a message may contain LF . CR LF.  A server
        that ends its own greeting with LF alone does so everywhere.
        """
        begins = True
        while True:
            line = self._line()
            if begins and line == b"." + self._line_end:
                return
            yield line[1:] if begins and line.startswith(b".") else line
            begins = line.endswith(self._line_end)

    def _few_lines(self) -> Iterator[bytes]:
        for number, line in enumerate(self._lines()):
            if number >= LINES:
                raise ServerError(self._place, f"more than {LINES:,} lines")
            yield line

    def _message(self) -> bytes | None:
        """A message; None: it is too large, and was read to its end."""
        kept: list[bytes] = []
        size = 0
        for line in self._lines():
            size += len(line)
            if size <= LARGEST:
                kept.append(line)
            elif kept:
                kept = []
            if size > ENDLESS:
                raise ServerError(self._place, "a message does not end")
        return b"".join(kept) if size <= LARGEST else None


def _is_here(sock: socket.socket) -> bool:
    try:
        return ipaddress.ip_address(sock.getpeername()[0]).is_loopback
    except (OSError, ValueError):
        return False
