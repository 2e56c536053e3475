"""What a check of `metad doctor` finds."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Level(IntEnum):
    """The exit code of the command is the greatest."""

    OK = 0
    WARNING = 1
    ERROR = 2


class Result(NamedTuple):
    """One finding of a check; `remedy`: what to do, unless all is well."""

    check: str
    level: Level
    text: str
    remedy: str = ""


def ok(check: str, text: str) -> Result:
    return Result(check, Level.OK, text)


def warning(check: str, text: str, remedy: str) -> Result:
    return Result(check, Level.WARNING, text, remedy)


def error(check: str, text: str, remedy: str) -> Result:
    return Result(check, Level.ERROR, text, remedy)
