"""The manifest of a backup: its files, how much of each was copied, and the digests.

It is written last, so a backup without one is not complete.  The digest is BLAKE2b-256 of the
copied part of a file: of a log, its octets up to `end` and its last block.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from metad.errors import DataError, UnavailableError
from metad.system.osio import Osio, read_file, write_file

FORMAT = 1
NAME = "manifest.json"
LIMIT = 64 << 20
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class BackupFile:
    """One file.  `size` is the size of the file, `end` the end of the copied part, `last` the size
    of the block at the end of the file that was also copied.  `life` is 0 if it is not a log."""

    name: str
    size: int
    end: int
    last: int = 0
    life: int = 0
    sealed: bool = False
    digest: str = ""

    def extents(self) -> list[tuple[int, int]]:
        """The ranges of copied octets: start and stop."""
        parts = [(0, min(self.end, self.size))]
        if self.last and self.end < self.size:
            parts.append((max(self.end, self.size - self.last), self.size))
        return parts


@dataclass(frozen=True, slots=True)
class Manifest:
    """`made`: Unix seconds.  `files` by their names below the backup."""

    store_id: str
    node: int
    made: int
    files: dict[str, BackupFile] = field(default_factory=dict)

    def write(self, osio: Osio, directory: str) -> None:
        """Write it durably.  Raises OSError."""
        fields = asdict(self) | {
            "format": FORMAT,
            "files": [asdict(entry) for entry in self.files.values()],
        }
        write_file(osio, os.path.join(directory, NAME), json.dumps(fields, indent=1).encode())


def read(osio: Osio, directory: str) -> Manifest:
    """Raises UnavailableError (there is no complete backup) and DataError."""
    path = os.path.join(directory, NAME)
    try:
        fields: dict[str, Any] = json.loads(read_file(osio, path, LIMIT))
        if fields.pop("format") > FORMAT:
            raise DataError(f"{path}: made by a newer metad", remedy="install that release")
        files = {entry["name"]: BackupFile(**entry) for entry in fields.pop("files")}
        manifest = Manifest(files=files, **fields)
        _check_names(manifest.files)
    except FileNotFoundError:
        raise UnavailableError(
            f"{directory}: no complete backup: it has no {NAME}",
            remedy="name the directory of another backup",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged: {error}", remedy="name another backup") from None
    return manifest


def _check_names(names: Iterable[str]) -> None:
    """A manipulated manifest must not lead out of its directory."""
    for name in names:
        if name.startswith("/") or ".." in name.split("/") or not name.isprintable():
            raise ValueError(f"not a name in a backup: {name!a}")


def digest(osio: Osio, fd: int, entry: BackupFile) -> str:
    """The digest of the part of an open file that `entry` describes.  Raises OSError."""
    state = hashlib.blake2b(digest_size=32)
    for start, stop in entry.extents():
        at = start
        while at < stop:
            data = osio.pread(fd, min(_PIECE, stop - at), at)
            if not data:
                raise OSError(f"{entry.name} ends at {at}")
            state.update(data)
            at += len(data)
    return state.hexdigest()
