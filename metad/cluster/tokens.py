"""Tokens: what a new node shows to be taken in, good once within an hour.

    DATA/cluster/tokens/HASH    the time, in seconds since the epoch, until which a token is good

Rules of this file:

* The secret itself is on no disk: the file has its hash for a name.
* Taking a token removes its file.  Of two that show the same token, one finds no file.
"""

from __future__ import annotations

import base64
import os
import secrets
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from metad.errors import ClusterError, UsageError
from metad.system.osio import Osio, read_file, write_file

DIRECTORY: Final = "tokens"
SECRET_SIZE: Final = 16
GOOD_SECONDS: Final = 3_600
MOST_TOKENS: Final = 16
_PREFIX: Final = "metad1-"


class Token(NamedTuple):
    """Where to ask, the fingerprint of the certificate that must be there, and the secret."""

    address: str
    fingerprint: str
    secret: bytes

    def text(self) -> str:
        packed = msgpack.packb([self.address, bytes.fromhex(self.fingerprint), self.secret])
        return _PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def parse(text: str) -> Token:
    """Raises UsageError."""
    try:
        body = text.strip().removeprefix(_PREFIX)
        packed = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        found: Any = msgpack.unpackb(packed)
        address, fingerprint, secret = found
        good = isinstance(address, str) and len(fingerprint) == 32 and len(secret) == SECRET_SIZE
        if good and text.strip().startswith(_PREFIX):
            return Token(address, bytes(fingerprint).hex(), bytes(secret))
    except Exception:  # noqa: S110 - whatever is wrong with it
        pass
    raise UsageError(
        "not a token of `metad cluster token`", remedy="give it whole, as it was printed there"
    )


class Tokens:
    """Those of one node, in `place`/tokens."""

    def __init__(self, osio: Osio, place: Path) -> None:
        self._osio = osio
        self._directory = place / DIRECTORY

    def make(self, now: int) -> bytes:
        """The secret of a new token.  Those whose time is over are removed.  Raises OSError,
        and ClusterError if there are too many."""
        if not self._directory.exists():
            self._osio.mkdir(str(self._directory))
        if self._good(now) >= MOST_TOKENS:
            raise ClusterError(
                f"{self._directory}: {MOST_TOKENS} tokens are good already",
                remedy="use one of them, or wait an hour",
            )
        secret = secrets.token_bytes(SECRET_SIZE)
        write_file(self._osio, self._path(secret), b"%d\n" % (now + GOOD_SECONDS))
        return secret

    def exist(self) -> bool:
        """Whether a client without a certificate may show one."""
        try:
            return bool(self._osio.listdir(str(self._directory)))
        except FileNotFoundError:
            return False

    def take(self, secret: bytes, now: int) -> bool:
        """Use a token up.  False if it is unknown, used, or too old.  Raises OSError."""
        path = self._path(secret)
        try:
            until = int(read_file(self._osio, path))
            self._osio.unlink(path)
        except FileNotFoundError:
            return False
        # A power cut must not bring it back.
        self._osio.fsync_directory(str(self._directory))
        return now <= until <= now + GOOD_SECONDS

    def _path(self, secret: bytes) -> str:
        return str(self._directory / sha256(secret).hexdigest()[:32])

    def _good(self, now: int) -> int:
        """How many are good; the others are removed."""
        good = 0
        for name in self._osio.listdir(str(self._directory)):
            path = os.path.join(self._directory, name)
            if not name.endswith(".new") and int(read_file(self._osio, path)) >= now:
                good += 1
            else:
                self._osio.unlink(path)
        return good
