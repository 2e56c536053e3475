"""The headers of a store's logs, as recovery finds them.

Rules of this file:

* A file is removed only if it was never used; one in which nothing verifies goes to quarantine/.
* An unreadable file is left in place.  Only its own mail is unavailable; the hub starts.
"""

from __future__ import annotations

from collections.abc import Iterable

from metad.errors import DataError
from metad.store.identity import Store
from metad.store.log import quarantine
from metad.store.log.header import LogHeader, log_path
from metad.store.log.tail import Report, TailReader
from metad.system.osio import Osio

_TRIES = 2  # a transient error costs nothing


class HeaderReader:
    """Reads headers.  `unreadable`: numbers of logs that cannot be read at all; `half_free`: of
    those that only one of their two headers calls free."""

    def __init__(self, osio: Osio, store: Store, report: Report) -> None:
        self._osio = osio
        self._store = store
        self._report = report
        self._tails = TailReader(osio, store, report)
        self.unreadable: set[int] = set()
        self.half_free = self._tails.half_free

    def all(self) -> dict[int, LogHeader]:
        """Number and header of every log.  A file that is not a log is removed or quarantined.

        Raises DataError for a good log of a store with another secret.
        """
        found: dict[int, LogHeader] = {}
        for number in self._numbers():
            log = self._header(number)
            if log is not None:
                found[number] = log
            elif number not in self.unreadable:
                self._clear_away(number)
        return found

    def of(self, numbers: Iterable[int]) -> dict[int, LogHeader]:
        """Headers of some logs; missing ones, and files that never were logs, are left out."""
        found = {number: self._header(number) for number in numbers}
        return {number: log for number, log in found.items() if log is not None}

    def _numbers(self) -> list[int]:
        names = [name.partition(".") for name in sorted(self._osio.listdir(self._store.logs))]
        return [
            int(stem)
            for stem, _, ending in names
            if ending == "log" and stem.isascii() and stem.isdigit()
        ]

    def _header(self, number: int) -> LogHeader | None:
        for tries in range(_TRIES):
            try:
                return self._tails.header(number)
            except FileNotFoundError:
                return None
            except OSError as error:
                if tries == _TRIES - 1:
                    self._report(f"warning: log {number} cannot be read: {error}")
        self.unreadable.add(number)
        return None

    def _clear_away(self, number: int) -> None:
        """A file in which neither a header nor a record verifies: never finished, or trash."""
        path = log_path(self._store.logs, number)
        try:
            self._tails.read_all(number)
            if self._tails.is_of_another_store(number):
                raise DataError(
                    f"log {number} is good, but not under the secret in store.json",
                    remedy="put the right store.json back",
                )
            if self._tails.is_blank(number):
                self._report(f"log {number} was never finished; removing it")
                self._osio.unlink(path)
            else:
                name = quarantine.quarantine_file(self._osio, self._store, path)
                self._report(
                    f"warning: nothing in log {number} verifies; it is quarantine/{name} now"
                )
        except OSError as error:
            self._report(f"warning: log {number} cannot be read, and stays: {error}")
            self.unreadable.add(number)
