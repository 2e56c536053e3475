"""The connection over which a node joins: it has a token and no certificate yet."""

from __future__ import annotations

import socket
import ssl
from types import TracebackType
from typing import Final, NamedTuple, Self

from metad.cluster import joining
from metad.cluster.frames import Decoder, Frame, Kind, encode
from metad.cluster.identity import fingerprint
from metad.cluster.tokens import Token
from metad.cluster.transport import describe, split_address
from metad.cluster.view import View
from metad.errors import ClusterError, UnavailableError
from metad.loglines import clean

SECONDS: Final = 20.0


class JoinAnswer(NamedTuple):
    cluster: str
    number: int
    ca: bytes
    ca_key: bytes
    with_etcd: bool


_SEE_OTHER = "see there whether its hub runs, and what its log says"


class JoinClient:
    """Blocking, for a command.  Raises UnavailableError (the network), ClusterError (refused)."""

    def __init__(self, token: Token, release: str) -> None:
        self._token = token
        self._release = release
        self._decoder = Decoder()
        self._tag = 0
        self._socket = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

    def _connect(self) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # Nothing is sent before the certificate has been compared with the token.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            plain = socket.create_connection(split_address(self._token.address), SECONDS)
            sock = context.wrap_socket(plain)
        except (OSError, ValueError) as error:
            raise UnavailableError(
                f"{self._token.address}: {describe(error)}", remedy=_SEE_OTHER
            ) from None
        if fingerprint(sock.getpeercert(binary_form=True) or b"") != self._token.fingerprint:
            sock.close()
            raise ClusterError(
                f"{self._token.address}: not the node that the token is from",
                remedy="metad cluster token makes another one there",
            )
        return sock

    def ask(self, earlier: str) -> JoinAnswer:
        """Show the token.  `earlier`: the fingerprint of an attempt before, or ""."""
        body = self._request(joining.ask(self._token.secret, self._release, earlier))
        return JoinAnswer(
            *joining.read_answer(
                body, cluster=str, number=int, ca=bytes, ca_key=bytes, with_etcd=bool
            )
        )

    def enter(self, address: str, own_fingerprint: str) -> View:
        body = self._request(joining.enter(address, own_fingerprint))
        (encoded,) = joining.read_answer(body, view=bytes)
        return View.decode(encoded)

    def _request(self, body: bytes) -> bytes:
        self._tag += 1
        try:
            self._socket.sendall(encode(Kind.JOIN, self._tag, 0, (body,), len(body)))
            kind, _, _, _, answer = self._receive()
        except OSError as error:
            raise UnavailableError(
                f"{self._token.address}: {describe(error)}", remedy=_SEE_OTHER
            ) from None
        if kind == Kind.REFUSED:
            text = clean(answer.decode("utf-8", "replace"))
            raise ClusterError(
                f"{self._token.address} refuses: {text}",
                remedy="metad cluster status there shows the nodes; each token is good once",
            )
        return answer

    def _receive(self) -> Frame:
        """Raises OSError, FrameError."""
        while True:
            data = self._socket.recv(65_536)
            if not data:
                raise ConnectionResetError
            for frame in self._decoder.feed(data):
                return frame
