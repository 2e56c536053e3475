"""TLS keys and certificates in DATA/tls: install, list, remove, and make contexts from them.

    DATA/tls/NAME.pem    a private key, its certificate, the chain: one file,
                         so that the pair is replaced atomically (by rename)

Rules of this file:

* TLS 1.2 and later (RFC 8996), ciphers and curves by the library's defaults.
* A pair that does not match never gets its name: it is loaded before the rename.
* One bad file affects only its own names: the other certificates are used, and the bad one is
  reported.
* SNI selects the certificate (RFC 6066 section 3).  Without a name, or for an unknown one, it is
  the default: the one for the hub's own name, otherwise the first by file name.
* No error ever contains a private key.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from metad.config.model import Config
from metad.errors import ConfigError, DataError, OsError
from metad.system.osio import Osio
from metad.tls import x509
from metad.tls.x509 import Facts

DIRECTORY: Final = "tls"
# A chain of a dozen certificates with RSA keys of 8,192 bits takes a quarter of it.
MOST_OCTETS: Final = 256 * 1024
_REPLACE = "metad tls install replaces it, metad tls remove removes it"
_PEM = "give the chain and the key that belongs to it, both as PEM"
# Let's Encrypt renews at 30 days: with 14 left, the renewal has failed for two weeks.
EXPIRES_SOON: Final = timedelta(days=14)
_NAME: Final = re.compile(r"[a-z0-9_][a-z0-9._-]{0,99}")
_KEY: Final = re.compile(
    r"-----BEGIN ((?:[A-Z]+ )?PRIVATE KEY)-----.*?-----END \1-----\s*", re.DOTALL
)
_REASONS: Final = {
    "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
    "KEY_TYPE_MISMATCH": "the key does not belong to the certificate",
    "EE_KEY_TOO_SMALL": "the key is too small to be safe",
    "CA_MD_TOO_WEAK": "the certificate is signed with a digest that is no longer safe",
    "NO_START_LINE": "there is no key or no certificate in it",
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """One file of DATA/tls."""

    name: str
    facts: Facts
    context: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class TlsContexts:
    """What a listener needs.  `default`: used unless SNI selects another; `bad`: unusable files."""

    default: ssl.SSLContext
    names: Mapping[str, ssl.SSLContext]
    certificates: tuple[Certificate, ...]
    bad: tuple[str, ...] = ()

    def find(self, name: str | None) -> ssl.SSLContext:
        """The context for a server name, by exact match or a wildcard (RFC 6125 section 6.4.3)."""
        host = (name or "").lower().rstrip(".")
        wild = "*." + host.partition(".")[2]
        return self.names.get(host) or self.names.get(wild) or self.default


def load_contexts(config: Config) -> TlsContexts | None:
    """Everything usable in DATA/tls; None if it is empty.  Raises ConfigError: all are bad."""
    found: list[Certificate] = []
    bad: list[str] = []
    for path in _files(config.data / DIRECTORY):
        try:
            found.append(_load(path))
        except ConfigError as error:
            bad.append(str(error))
    if not found and bad:
        raise ConfigError(bad[0], remedy=_REPLACE)
    if not found:
        return None
    names: dict[str, ssl.SSLContext] = {}
    for one in found:
        for name in one.facts.names:
            names.setdefault(name, one.context)
    first = TlsContexts(found[0].context, names, tuple(found))
    contexts = TlsContexts(first.find(config.hostname), names, tuple(found), tuple(bad))
    if len(found) > 1:
        _choose_by_name(contexts)
    return contexts


def required(config: Config) -> TlsContexts:
    """Like `load_contexts`, but raises ConfigError if there is no certificate."""
    contexts = load_contexts(config)
    if contexts is None:
        raise ConfigError(
            f"{config.data / DIRECTORY}: a listener needs a certificate and there is none",
            remedy="use metad tls install, or metad tls self-signed for a trial",
        )
    return contexts


def check(config: Config) -> None:
    """Before a start: raises ConfigError if a listener needs a certificate and none is usable."""
    if wanted(config):
        required(config)


def wanted(config: Config) -> bool:
    """Whether any listener needs a certificate."""
    return any(listener.tls != "none" for listener in config.listen)


def stamp(data: Path) -> tuple[int, int]:
    """Changes whenever something in DATA/tls is installed or removed."""
    try:
        found = os.stat(data / DIRECTORY)
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def _choose_by_name(contexts: TlsContexts) -> None:
    def choose(handshake: ssl.SSLObject, name: str | None, used: ssl.SSLContext) -> None:
        found = contexts.find(name)
        if found is not used:
            handshake.context = found

    contexts.default.sni_callback = choose


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.pem") if path.is_file())


def _load(path: Path) -> Certificate:
    try:
        pem = path.read_bytes()[:MOST_OCTETS].decode("ascii", "replace")
        return Certificate(path.stem, x509.read_pem(pem), _context(path))
    except OSError as error:
        raise ConfigError(f"{path}: {_reason(error)}", remedy=_REPLACE) from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}", remedy=_REPLACE) from None


def _context(path: Path) -> ssl.SSLContext:
    """A server context with the pair in `path`.  Raises OSError (SSLError is one)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # RFC 8446 has no renegotiation; in TLS 1.2 a client could demand this work at will.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # OpenSSL would ask for the password of an encrypted key at the terminal.
    context.load_cert_chain(path, password=_no_password)
    return context


def _usable_without(config: Config, path: Path) -> bool:
    for other in _files(config.data / DIRECTORY):
        if other != path:
            with suppress(ConfigError):
                _load(other)
                return True
    return False


def expiry_warnings(config: Config, now: datetime) -> list[str]:
    """A line for each certificate that has expired or soon will, and for each unusable file."""
    try:
        contexts = load_contexts(config)
    except ConfigError as error:
        return [str(error)]
    if contexts is None:
        return []
    warnings = (expiry_warning(one, now) for one in contexts.certificates)
    return [*contexts.bad, *(line for line in warnings if line is not None)]


def expiry_warning(certificate: Certificate, now: datetime) -> str | None:
    """A line if the certificate has expired or will within EXPIRES_SOON."""
    end = certificate.facts.not_after
    if end <= now:
        return f"certificate {certificate.name} expired on {end:%Y-%m-%d}"
    if end - now <= EXPIRES_SOON:
        days = (end - now).days
        return f"certificate {certificate.name} expires on {end:%Y-%m-%d}, in {days} days"
    return None


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        reason = error.reason or "no key and certificate"
        return _REASONS.get(reason, reason.replace("_", " ").lower())
    return error.strerror or str(error)


# --- Installing -----------------------------------------------------------------------------------


def read_pair(certificate: Path, key: Path | None) -> tuple[str, str]:
    """(certificates, key) as PEM; `key` None: both are in one file.

    Raises OsError, DataError.
    """
    chain = _read(certificate)
    found = _KEY.search(chain if key is None else _read(key))
    if found is None:
        raise DataError(
            f"{key or certificate}: contains no private key", remedy="name its file by --key"
        )
    return _KEY.sub("", chain), found[0]


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            octets = file.read(MOST_OCTETS + 1)
    except OSError as error:
        raise OsError.of(error, path) from None
    if len(octets) > MOST_OCTETS:
        raise DataError(f"{path}: must not be larger than {MOST_OCTETS:,} bytes")
    return octets.decode("ascii", "replace")


def install(data: Path, chain: str, key: str, name: str | None = None) -> Certificate:
    """Check a pair and store it in DATA/tls, replacing one of the same name.

    `name`: of the file; default: the first name in the certificate.  Raises DataError, OsError.
    """
    try:
        facts = x509.read_pem(chain)
    except ValueError as error:
        raise DataError(str(error), remedy=_PEM) from None
    if facts.not_after <= datetime.now(UTC):
        raise DataError(
            f"the certificate expired on {facts.not_after:%Y-%m-%d}", remedy="renew it first"
        )
    if not facts.names:
        raise DataError(
            "the certificate is for no domain", remedy="ask for one with a subjectAltName"
        )
    name = file_name(name or facts.names[0])
    directory = data / DIRECTORY
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        context = _write(directory / f"{name}.pem", key.strip() + "\n" + chain.strip() + "\n")
    except ValueError as error:
        raise DataError(str(error), remedy=_PEM) from None
    except ssl.SSLError as error:
        raise DataError(_reason(error), remedy=_PEM) from None
    except OSError as error:
        raise OsError.of(error, directory) from None
    return Certificate(name, facts, context)


def file_name(name: str) -> str:
    """The name of a file for a domain; "*" is "_".  Raises DataError."""
    plain = name.lower().replace("*", "_")
    if not _NAME.fullmatch(plain):
        raise DataError(f"{name!a}: the name must be of letters, digits, '.', '_' and '-'")
    return plain


def _write(path: Path, pem: str) -> ssl.SSLContext:
    """Write to a temporary file, sync, load it as the hub will; only then rename."""
    osio = Osio()
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    fd = osio.open(str(aside), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        try:
            octets = pem.encode("ascii", "replace")
            if osio.pwrite(fd, octets, 0) != len(octets):
                raise OsError(
                    f"{aside}: short write", remedy="free some space on this disk: df shows it"
                )
            osio.fsync(fd)
        finally:
            osio.close(fd)
        context = _context(aside)
        osio.rename(str(aside), str(path))
        osio.fsync_directory(str(path.parent))
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return context


def remove(config: Config, name: str) -> None:
    """Remove a certificate.

    Raises DataError: there is none of that name, or it is the last one and a listener needs it.
    """
    path = config.data / DIRECTORY / f"{file_name(name)}.pem"
    if wanted(config) and path.is_file() and not _usable_without(config, path):
        raise DataError(
            f"{name}: a listener needs it, and no other certificate is usable",
            remedy="metad tls install another one first",
        )
    try:
        path.unlink()
    except FileNotFoundError:
        raise DataError(
            f"{name}: no such certificate", remedy="metad tls list shows them"
        ) from None
    Osio().fsync_directory(str(path.parent))
