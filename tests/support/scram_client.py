"""The client's side of SCRAM-SHA-256 (RFC 5802 section 3)."""

from __future__ import annotations

import base64
import hashlib
import hmac


def final_message(first: bytes, challenge: bytes, password: bytes) -> bytes:
    """The client's answer to the server's `challenge`, after its own `first` message."""
    header, bare = first[: first.index(b"n=")], first[first.index(b"n=") :]
    fields = dict(part.split(b"=", 1) for part in challenge.split(b","))
    salt, iterations = base64.b64decode(fields[b"s"]), int(fields[b"i"])
    salted = hashlib.pbkdf2_hmac("sha256", password, salt, iterations)
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    without_proof = b"c=" + base64.b64encode(header) + b",r=" + fields[b"r"]
    exchanged = b",".join((bare, challenge, without_proof))
    signature = hmac.digest(hashlib.sha256(client_key).digest(), exchanged, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    return without_proof + b",p=" + base64.b64encode(proof)
