"""Makes the cluster's CA and the certificates of its members, by the program openssl.

Rules of this file:

* Used by commands alone: a worker only reads.
* No error contains a private key.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final, NamedTuple

from metad.errors import DataError, UnavailableError

OPENSSL_SECONDS: Final = 60
# A hundred years: the view decides which certificates are good.
DAYS: Final = 36_500
_SECTIONS: Final = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[member]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class Pair(NamedTuple):
    """A certificate and its private key as PEM."""

    certificate: str
    key: str


def make_ca(cluster: str) -> Pair:
    """The CA of the cluster with this id.  Raises UnavailableError (no openssl), DataError."""
    return _make("ca", f"metad cluster {cluster[:16]}", None)


def make_member(ca: Pair, number: int) -> Pair:
    """A certificate for a node.  Raises UnavailableError (no openssl), DataError."""
    return _make("member", f"metad node {number}", ca)


def _make(section: str, name: str, ca: Pair | None) -> Pair:
    program = shutil.which("openssl")
    if program is None:
        raise UnavailableError(
            "openssl not found, which makes the certificate", remedy="apt-get install openssl"
        )
    with tempfile.TemporaryDirectory() as directory:  # mode 0700
        place = Path(directory)
        (place / "config").write_text(_SECTIONS.format(name=name))
        by: list[str] = []
        if ca is not None:
            (place / "ca.pem").write_text(ca.certificate)
            (place / "ca.key").write_text(ca.key)
            by = ["-CA", "ca.pem", "-CAkey", "ca.key"]
        command = [
            program, "req", "-x509", "-config", "config", "-extensions", section, "-nodes",
            "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", str(DAYS), *by,
            "-keyout", "key", "-out", "certificate",
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=OPENSSL_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise DataError(
                f"openssl: {reason}", remedy="correct what it names, such as a full TMPDIR"
            )
        return Pair((place / "certificate").read_text(), (place / "key").read_text())
