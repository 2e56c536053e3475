"""Loads what Python and the system would load at first use: before a chroot, or before root becomes
a user that cannot read our code."""

from __future__ import annotations

from metad.protocol.address import fold_domain
from metad.users import hashes, passwords


def preload() -> None:
    """Load libraries for password hashes, and the tables of IDNA and SASLprep."""
    hashes.preload()
    fold_domain("bücher.example")
    passwords.prepare("bücher".encode())
