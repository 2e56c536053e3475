"""Which mailbox numbers were ever assigned: DATA/numbers, a file beside the users database.

A database that is lost, or restored from an earlier day, would assign a number a second time, and
with it another user's mail.  So the next number is also stored outside the database.

Rules of this file:

* The number is durable before the transaction that assigns it, and never decreases.
* If the file is missing and there is mail, no number is assigned, because the free ones are
  unknown. The next start of a hub checks the mail and makes a new file (`UserDatabase.reserve`).
"""

from __future__ import annotations

from pathlib import Path

from metad.errors import DataError, OsError
from metad.system.osio import Osio, read_file, write_file


class IdAllocator:
    """The file, used within a write transaction of the users database in `users`: by one process
    at a time."""

    def __init__(self, users: Path) -> None:
        self._osio = Osio()
        self._path = users.parent / "numbers"
        self._logs = users.parent / "logs"

    def next(self) -> int:
        """The least number that was never assigned, according to the file.

        Raises DataError if the file should exist and does not; OsError.
        """
        try:
            text = read_file(self._osio, str(self._path), 64)
        except FileNotFoundError:
            if any(self._logs.glob("*.log")):
                raise DataError(
                    f"{self._path}, the highest mailbox id used so far, is missing",
                    remedy="start the hub once, which makes it again from the mail",
                ) from None
            return 0
        except OSError as error:
            raise OsError.of(error, self._path) from None
        if not text.rstrip(b"\n").isdigit():
            raise DataError(
                f"{self._path}: not a number",
                remedy="start the hub once, which makes it again from the mail",
            )
        return int(text)

    def raise_to(self, number: int) -> None:
        """Set the next number that may be assigned.  Raises OsError."""
        try:
            write_file(self._osio, str(self._path), b"%d\n" % number)
        except OSError as error:
            raise OsError.of(error, self._path) from None
