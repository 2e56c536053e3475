"""Load now what Python and the system load at first use: before a chroot, or before root becomes a
user who cannot read our code."""

from __future__ import annotations

from metad.protocol.address import fold_domain
from metad.users import hashes, passwords


def preload() -> None:
    """Libraries of password hashes, the tables of IDNA and of SASLprep."""
    hashes.preload()
    fold_domain("bücher.example")
    passwords.prepare("bücher".encode())
