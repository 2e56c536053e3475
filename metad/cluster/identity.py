"""Who this node is: the cluster's CA and the node's certificate, in DATA/cluster.

    ca.pem ca.key           the cluster's CA; every member has both, so that any can take in others
    member.pem member.key   this node's certificate
    view                    the view (`view_file`)

Rules of this file:

* TLS 1.3, and both sides show a certificate of the CA.  Which member it belongs to, the link finds
  in the view, by the fingerprint.  A client without a certificate may only show a token (joining).
* Reading needs the standard library alone; certificates are made by the commands.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from metad.errors import ConfigError

DIRECTORY: Final = "cluster"
CA, CA_KEY, MEMBER, MEMBER_KEY, VIEW = "ca.pem", "ca.key", "member.pem", "member.key", "view"
# OpenSSL's X509_V_FLAG_NO_CHECK_TIME, for which the ssl module has no name.
_NO_CHECK_TIME: Final = 0x200000
_RESTORE: Final = "restore DATA/cluster from a backup, or join again: metad cluster join"


@dataclass(frozen=True, slots=True)
class PeerContexts:
    """For the links that we dial, and for those that we accept."""

    client: ssl.SSLContext
    server: ssl.SSLContext


def directory(data: Path) -> Path:
    return data / DIRECTORY


def fingerprint(der: bytes) -> str:
    """As the view has it."""
    return sha256(der).hexdigest()


def own_fingerprint(place: Path) -> str:
    """Of the certificate in `place`.  Raises ConfigError."""
    path = place / MEMBER
    try:
        return fingerprint(ssl.PEM_cert_to_DER_cert(path.read_text("ascii")))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", remedy=_RESTORE) from None
    except ValueError:
        raise ConfigError(f"{path}: the certificate is not PEM", remedy=_RESTORE) from None


def load_contexts(place: Path) -> PeerContexts:
    """Raises ConfigError."""
    try:
        return PeerContexts(
            _context(ssl.PROTOCOL_TLS_CLIENT, place), _context(ssl.PROTOCOL_TLS_SERVER, place)
        )
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{place}: the cluster's certificates cannot be used: {reason}",
            remedy=_RESTORE,
        ) from None


def _context(protocol: int, place: Path) -> ssl.SSLContext:
    """Raises OSError."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The view's fingerprint tells which certificates are good, and for how long.  A cluster must
    # not stop when a certificate expires, or when one clock is wrong.
    context.verify_flags |= _NO_CHECK_TIME
    context.check_hostname = False
    is_server = protocol == ssl.PROTOCOL_TLS_SERVER
    context.verify_mode = ssl.CERT_OPTIONAL if is_server else ssl.CERT_REQUIRED
    context.load_verify_locations(place / CA)
    context.load_cert_chain(place / MEMBER, place / MEMBER_KEY, password=_no_password)
    if is_server:
        # A resumed session would show the certificate of an earlier connection.
        context.num_tickets = 0
    return context


def _no_password() -> str:
    raise ssl.SSLError("the key is encrypted")
