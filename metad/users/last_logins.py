"""When each user last logged in: a file of 8 octets per account number.

Rules of this file:

* It is for people and for LOGIN-DELAY.  No mail depends on it, so it is never synced.
* A cell is Unix seconds, big-endian, at 8 × the account's number; a hole reads as never.  Cells
  are aligned and written whole, so several processes need no lock.
* Cells are written at once if a login delay needs them, otherwise in batches, off the loop.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from metad.errors import OsError

NAME = "logins"
_CELL = struct.Struct(">Q")


class LastLogins:
    """The file below the users database's directory `users`; created unless `readonly`."""

    def __init__(
        self,
        users: Path,
        *,
        readonly: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._pending: dict[int, int] = {}
        flags = os.O_RDONLY if readonly else os.O_RDWR | os.O_CREAT
        try:
            self._fd = os.open(users / NAME, flags | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            self._fd = -1
        except OSError as error:
            raise OsError.of(error, users / NAME) from None

    def close(self) -> None:
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
            self._fd = -1

    def last(self, account: int) -> int | None:
        """Unix seconds of the last login; None if there was none."""
        seconds = self._pending.get(account) or self._read(account)
        return seconds or None

    def _read(self, account: int) -> int:
        raw = os.pread(self._fd, _CELL.size, account * _CELL.size) if self._fd >= 0 else b""
        return int(_CELL.unpack(raw)[0]) if len(raw) == _CELL.size else 0

    def too_soon(self, account: int, delay: int) -> bool:
        """Whether less than `delay` seconds have passed since the last login.

        A login in the future (the clock was set back) does not count.
        """
        last = self.last(account)
        return last is not None and 0 <= self._clock() - last < delay

    def note(self, account: int, *, at_once: bool = False) -> None:
        """Record a login now; other processes see it after the next `flush`, or `at_once`."""
        self._pending[account] = int(self._clock())
        if at_once:
            self.flush()

    @property
    def pending(self) -> bool:
        return bool(self._pending)

    def flush(self) -> None:
        """Write the recorded logins.  A full disk loses only these."""
        pending, self._pending = self._pending, {}
        with suppress(OSError):
            for account, seconds in pending.items():
                os.pwrite(self._fd, _CELL.pack(seconds), account * _CELL.size)
