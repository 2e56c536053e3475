"""Password hashes of other programs: argon2, Dovecot's, and those of this system's crypt(3).

Rules of this file:

* They are only checked, never made: a password that we learn becomes SCRAM keys (passwords.py).
* libxcrypt and argon2 are loaded by `preload`, before a chroot; both release the interpreter lock
  while they work.
* A hash may require any amount of work and memory, so both are limited when it is imported.
* No hash and no password is ever part of an error, a repr or a log line.
"""

from __future__ import annotations

import ctypes
import functools
import hmac
import re
from typing import Any

from metad import limits
from metad.errors import DataError, MetadError
from metad.users import salted_hashes

# crypt(5).  The number after "rounds=", or the cost of bcrypt, in a group; the rest is salt and
# hash in crypt's own base 64.
_B64 = "[./0-9A-Za-z]"
_SHAPES: dict[str, re.Pattern[str]] = {
    "yescrypt": re.compile(rf"\$g?y\${_B64}{{1,32}}\${_B64}{{0,86}}\${_B64}{{43}}"),
    "scrypt": re.compile(rf"\$7\${_B64}{{11,97}}\${_B64}{{43}}"),
    "bcrypt": re.compile(rf"\$2[abxy]\$(?P<cost>[0-9]{{2}})\${_B64}{{53}}"),
    "sha512-crypt": re.compile(
        rf"\$6\$(?:rounds=(?P<rounds>[0-9]{{1,9}})\$)?[^$:\n\0]{{0,16}}\${_B64}{{86}}"
    ),
    "sha256-crypt": re.compile(
        rf"\$5\$(?:rounds=(?P<rounds>[0-9]{{1,9}})\$)?[^$:\n\0]{{0,16}}\${_B64}{{43}}"
    ),
    "md5-crypt": re.compile(rf"\$1\$[^$:\n\0]{{0,8}}\${_B64}{{22}}"),
    "descrypt": re.compile(rf"{_B64}{{13}}"),
}
_ARGON2 = re.compile(
    r"\$argon2(?P<kind>id|i|d)\$v=(?:16|19)\$m=(?P<memory>[0-9]{1,9}),t=(?P<time>[0-9]{1,6}),"
    r"p=(?P<lanes>[0-9]{1,3})\$[A-Za-z0-9+/]{11,128}\$[A-Za-z0-9+/]{16,171}"
)
# The part before the salt.
_WORK = {
    "yescrypt": re.compile(rf"\$g?y\${_B64}{{1,32}}\$"),
    "scrypt": re.compile(rf"\$7\${_B64}{{11}}"),
    "bcrypt": re.compile(r"\$2[abxy]\$[0-9]{2}\$"),
    "sha512-crypt": re.compile(r"\$6\$(?:rounds=[0-9]+\$)?"),
    "sha256-crypt": re.compile(r"\$5\$(?:rounds=[0-9]+\$)?"),
    "md5-crypt": re.compile(r"\$1\$"),
    "descrypt": re.compile("descrypt"),
    "argon2": re.compile(r"\$argon2(?:id|i|d)\$v=[0-9]+\$m=[0-9]+,t=[0-9]+,p=[0-9]+\$"),
}
_NAMES = {
    "$y$": "yescrypt", "$gy": "yescrypt", "$7$": "scrypt", "$2a": "bcrypt", "$2b": "bcrypt",
    "$2x": "bcrypt", "$2y": "bcrypt", "$6$": "sha512-crypt", "$5$": "sha256-crypt",
    "$1$": "md5-crypt", "$ar": "argon2",
}  # fmt: skip
_CRYPT_DATA = 32768  # sizeof (struct crypt_data), crypt(3)
_SONAMES = ("libcrypt.so.1", "libcrypt.so.2")


def scheme_of(source: str) -> str:
    """The name of the scheme of a hash.  Raises DataError: unknown, malformed, or too costly."""
    if source.startswith("{"):
        return salted_hashes.scheme_of(source)
    name = _NAMES.get(source[:3], "") if source.startswith("$") else "descrypt"
    if name == "argon2":
        argon2 = _ARGON2.fullmatch(source)
        if argon2:
            _check_argon2(argon2)
            return f"argon2{argon2['kind']}"
    elif name:
        found = _SHAPES[name].fullmatch(source)
        if found:
            _check_cost(found.groupdict())
            return name
    raise DataError("a password hash of an unknown kind")


def is_weak(source: str) -> bool:
    """Whether brute force breaks a hash in hours.  Such hashes are accepted, because users must not
    lose their mail, and are counted at import."""
    if source.startswith("{PBKDF2}"):
        return False
    return source.startswith("$1$") or not source.startswith("$")


def check(password: bytes, source: str) -> bool:
    """Whether `password` matches a hash that `scheme_of` accepted; blocks for the hashing.

    Raises MetadError if this system cannot check such a hash.
    """
    if not password or len(password) > limits.PASSWORD or b"\0" in password:
        return False
    if source.startswith("{"):
        return salted_hashes.check(password, source)
    if source.startswith("$argon2"):
        return _check_with_argon2(password, source)
    found = _crypt(password, source.encode())
    return hmac.compare_digest(found, source.encode())


def work_of(source: str) -> str:
    """The parameters that determine how long checking a hash takes, for `imitate`.  Raises
    DataError."""
    if source.startswith("{"):
        return salted_hashes.work_of(source)
    scheme = scheme_of(source)
    match = _WORK[scheme.rstrip("di") if scheme.startswith("argon2") else scheme].match(source)
    return match[0] if match else scheme


def imitate(password: bytes, work: str) -> None:
    """Spend the time that the check of a hash of this `work` takes; blocks for the hashing."""
    if not password or len(password) > limits.PASSWORD or b"\0" in password:
        return
    if work.startswith("{"):
        salted_hashes.imitate(password, work)
    elif work.startswith("$argon2"):
        _check_with_argon2(password, f"{work}{'A' * 22}${'A' * 43}")
    else:
        _crypt(password, (".." if work == "descrypt" else f"{work}{'.' * 22}").encode())


def preload() -> None:
    """Load the libraries that check hashes, if installed; before a chroot."""
    _library()
    _argon2()


def _check_argon2(asked: re.Match[str]) -> None:
    memory, time, lanes = (int(asked[name]) for name in ("memory", "time", "lanes"))
    most = limits.ARGON2_MEMORY // limits.KIB
    if memory > most or memory * time > most * limits.ARGON2_PASSES or not 1 <= lanes <= 64:
        raise DataError("a password hash that asks for too much work")


def _check_cost(asked: dict[str, str | None]) -> None:
    rounds, cost = asked.get("rounds"), asked.get("cost")
    if (rounds and int(rounds) > limits.CRYPT_ROUNDS) or (cost and int(cost) > limits.BCRYPT_COST):
        raise DataError("a password hash that asks for too much work")


def _check_with_argon2(password: bytes, source: str) -> bool:
    argon2 = _argon2()
    kind = argon2.Type[source.split("$")[1].removeprefix("argon2").upper()]
    try:
        return bool(argon2.low_level.verify_secret(source.encode(), password, kind))
    except argon2.exceptions.VerifyMismatchError:
        return False
    except argon2.exceptions.Argon2Error as error:
        raise MetadError(f"an argon2 hash cannot be checked: {error}") from None


def _crypt(password: bytes, setting: bytes) -> bytes:
    """crypt(3) with its own buffer: several threads may call it."""
    library = _library()
    if library is None:
        raise MetadError("password hashes of crypt(3) cannot be checked: libcrypt is missing")
    buffer = ctypes.create_string_buffer(_CRYPT_DATA)
    try:
        found = library.crypt_rn(password, setting, buffer, _CRYPT_DATA)
    finally:
        # crypt(3) leaves the password in the buffer.
        result = buffer.raw[: buffer.raw.find(b"\0")]
        ctypes.memset(buffer, 0, _CRYPT_DATA)
    # "*0" and "*1" are crypt's failure tokens.
    if not found or result.startswith(b"*"):
        raise MetadError("libcrypt of this system does not know the scheme of a password hash")
    return result


@functools.cache
def _library() -> Any:
    """libxcrypt, or None."""
    for name in _SONAMES:
        try:
            library = ctypes.CDLL(name)
            function = library.crypt_rn
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_void_p
        function.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int)
        return library
    return None


@functools.cache
def _argon2() -> Any:
    """The module argon2: imported when it is needed, it takes longer than most commands."""
    import argon2.exceptions
    import argon2.low_level

    return argon2
