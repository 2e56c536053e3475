"""Loads modules that Python would load lazily, while that is still possible.

After a chroot, under Landlock, or as a user who may not read a checkout below /root, an import
fails.  So the master imports everything that its children may need before it drops any privilege.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from collections.abc import Iterable
from contextlib import suppress

import metad
from metad.config.model import Config
from metad.users.preload import preload as preload_users

# Not part of the hub: separate programs.
_NOT_OURS = ("metad.__main__", "metad.cli", "metad.nanny", "metad.layers.testing", "metad.testing")
# Loaded inside of functions of the standard library, or by name.
_LAZY = (
    "concurrent.futures.process",
    "concurrent.futures.thread",
    "ctypes.util",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "encodings.punycode",
    "encodings.unicode_escape",
    "encodings.utf_8",
    "faulthandler",
    "hashlib",
    "hmac",
    "ipaddress",
    "json.scanner",
    "linecache",
    "secrets",
    "ssl",
    "_strptime",
    "stringprep",
    "tomllib",
    "traceback",
    "tracemalloc",
    "unicodedata",
    "warnings",
)
# Parts of other packages that are loaded lazily, if this version has them.
_OTHERS = ("lmdb._envid", "msgpack.fallback", "idna.uts46data")


def preload(config: Config | None = None) -> None:
    """Import everything, also what `config` needs besides, and read the time zone.

    Raises ImportError, UnavailableError.
    """
    for name in _LAZY:
        importlib.import_module(name)
    _load("metad", metad.__path__)
    for name in _OTHERS:
        with suppress(ImportError):
            importlib.import_module(name)
    preload_users()
    if config is not None:
        preload_for(config)
    time.localtime()


def preload_for(config: Config) -> None:
    """What this configuration needs besides.  Raises UnavailableError."""
    if config.cluster.etcd:
        from metad.cluster import etcd

        etcd.load()


def _load(package: str, paths: Iterable[str]) -> None:
    """Every module below a package of ours."""
    for found in pkgutil.iter_modules(paths, f"{package}."):
        if found.name not in _NOT_OURS:
            module = importlib.import_module(found.name)
            if found.ispkg:
                _load(found.name, module.__path__)
