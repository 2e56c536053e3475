"""Converts the values in a row of CSV to those of a record.  Raises DataError or ValueError."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from metad.config import checks
from metad.errors import DataError
from metad.users.account import MAX_COUNT

NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_BOOLEAN = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEAN:
        raise DataError(f"{text!a}: must be yes or no")
    return _BOOLEAN[text.lower()]


def _size(text: str) -> int:
    value: int = checks.size(0, 1 << 60)(text)
    return value


def _count(text: str) -> int:
    if not NUMBER.fullmatch(text) or int(text) > MAX_COUNT:
        raise DataError(f"{text!a}: must be a number of messages")
    return int(text)


def _score(text: str) -> int:
    try:
        return checks.score(float(text))
    except ValueError:
        raise DataError(f"{text!a}: must be a spam score from 0 to 1,000") from None


def _seconds(text: str) -> int:
    value: int = checks.duration(1, MAX_COUNT)(text)
    return value


CELLS: dict[str, Callable[[str], Any]] = {
    "quota": _size,
    "messages": _count,
    "expiry": _seconds,
    "login_delay": _seconds,
    "disabled": _boolean,
    "spam_filter": _boolean,
    "spam_mark": _score,
    "spam_refuse": _score,
}
