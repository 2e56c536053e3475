"""A POP3 client that moves a mailbox here: everything, with its unique ids, deleting nothing.

Rules of this file:

* A password goes out only over TLS, unless the server is this machine or the caller says so.
* What a server sends is bounded and checked: it is not ours.
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

from metad.cli.mail.mailfiles import Foreign, foreign
from metad.errors import DataError, MetadError, UnavailableError, UsageError

SECONDS = 60.0
LINE = 1 << 20
_PORTS = {"pop3": 110, "pop3s": 995}
_ANSWER = re.compile(rb"([0-9]{1,10}) ([!-~]{1,70}|[0-9]{1,12})(?: .*)?")


class ServerError(MetadError):
    """The other server would not (exit 76)."""

    exit_code = 76


@dataclass(frozen=True, slots=True)
class Account:
    """Where and as whom.  `user` "" is the address itself; `master`: who logs in for the user."""

    host: str
    port: int
    tls: bool
    user: str
    master: str | None = None
    password: bytes = field(default=b"", repr=False)
    # A password may be sent in the clear; a certificate need not be good.
    insecure: bool = False


def parse_url(url: str) -> Account:
    """pop3://USER@HOST:PORT, pop3s://…  Raises UsageError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path.strip("/") or parts.query:
        raise UsageError("from a server: pop3://USER@HOST:PORT or pop3s://USER@HOST:PORT")
    if parts.password is not None:
        raise UsageError("a password does not stand in a URL: give it by --password-stdin")
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
            raise UnavailableError(f"{self._place}: {error.strerror or error}") from None
        self._input = self._socket.makefile("rb")
        try:
            if account.tls:
                self._start_tls()
            self._answer("greeting")
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
            # Nothing was deleted, so nothing depends on the answer.
            with contextlib.suppress(MetadError):
                self._say("QUIT")
        self.close()

    def close(self) -> None:
        self._input.close()
        self._socket.close()

    def messages(self, known: set[str]) -> Iterator[Foreign]:
        """Every message whose unique id is not `known`, in the server's order."""
        self._say("UIDL")
        uids = self._numbered()
        for number, uid in uids.items():
            if uid not in known:
                self._say(f"RETR {number}")
                octets = b"".join(self._lines())
                yield foreign(f"{self._place}, message {number}", octets, uid)

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
            raise UnavailableError(f"{self._place}: TLS: {error}") from None
        self._input = self._socket.makefile("rb")

    def _secure(self) -> None:
        if self._account.tls:
            return
        capabilities = self._capabilities()
        if "STLS" in capabilities:
            self._say("STLS")
            self._start_tls()
        elif not (self._account.insecure or _is_here(self._socket)):
            raise ServerError(f"{self._place}: has no TLS, and a password would go out readably; "
                              "--insecure allows that")  # fmt: skip

    def _capabilities(self) -> set[str]:
        try:
            self._say("CAPA")
        except ServerError:
            return set()
        return {line.split()[0].decode("ascii", "replace").upper()
                for line in self._lines() if line.split()}  # fmt: skip

    def _log_in(self) -> None:
        account = self._account
        if account.master is None:
            if any(octet in b"\r\n\0" for octet in account.password):
                raise DataError("the password has control characters")
            self._say(f"USER {account.user}")
            self._send(b"PASS " + account.password)
            self._answer("login")
            return
        # RFC 4616: the master's name and password, on behalf of the user.
        plain = b"\0".join([account.user.encode(), account.master.encode(), account.password])
        self._send(b"AUTH PLAIN " + base64.b64encode(plain))
        self._answer("login")

    # -- the conversation

    def _say(self, command: str) -> bytes:
        self._send(command.encode())
        return self._answer(command.split(maxsplit=1)[0])

    def _send(self, line: bytes) -> None:
        if b"\r" in line or b"\n" in line:
            raise UsageError("a name with control characters")
        try:
            self._socket.sendall(line + b"\r\n")
        except OSError as error:
            raise UnavailableError(f"{self._place}: {error.strerror or error}") from None

    def _answer(self, to: str) -> bytes:
        line = self._line()
        if not line.startswith(b"+OK"):
            said = ascii(line[:200].decode("utf-8", "replace"))[1:-1]
            raise ServerError(f"{self._place}: {to}: {said}")
        return line

    def _line(self) -> bytes:
        try:
            line = self._input.readline(LINE)
        except OSError as error:
            raise UnavailableError(f"{self._place}: {error.strerror or error}") from None
        if not line:
            raise UnavailableError(f"{self._place}: the server closed the connection")
        return line

    def _lines(self) -> Iterator[bytes]:
        """The lines of an answer, dots unstuffed; a long line comes in pieces."""
        begins = True
        while True:
            line = self._line()
            if begins and line in (b".\r\n", b".\n"):
                return
            yield line[1:] if begins and line.startswith(b".") else line
            begins = line.endswith(b"\n")

    def _numbered(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for line in self._lines():
            match = _ANSWER.fullmatch(line.rstrip(b"\r\n"))
            if match is None:
                raise ServerError(f"{self._place}: UIDL: {line[:80]!a}")
            found[int(match[1])] = match[2].decode()
        return found


def _is_here(sock: socket.socket) -> bool:
    try:
        return ipaddress.ip_address(sock.getpeername()[0]).is_loopback
    except (OSError, ValueError):
        return False
