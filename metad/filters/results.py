"""rspamd's answer, checked: from the JSON object of /checkv2 to a `Report`.

Rule of this file: rspamd is not trusted.  A malformed field is an error; text for clients or
headers is bounded and has no control characters.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NamedTuple

ACTIONS: Final = frozenset(
    {
        "no action",
        "greylist",
        "add header",
        "rewrite subject",
        "soft reject",
        "reject",
        "quarantine",
        "discard",
    }
)
# Fields of a reply that rspamd may have added or removed, and octets of them.
MOST_FIELDS: Final = 50
MOST_TEXT: Final = 16_384
# Octets of a reply's text: RFC 5321 section 4.5.3.1.5 allows 512 for the whole line.
REPLY_TEXT: Final = 400
_ENHANCED: Final = re.compile(r"(?:[245][0-9]{2} +)?(?:[245]\.[0-9]{1,3}\.[0-9]{1,3} +)?")


class ReportError(ValueError):
    """rspamd's answer is invalid."""


class Symbol(NamedTuple):
    """A rule that matched."""

    score: float
    options: tuple[str, ...]


class Report(NamedTuple):
    """`forced`: the action does not follow from the score (a rule decided it).  `text`: rspamd's
    message to the client."""

    action: str
    score: float
    forced: bool
    text: str
    symbols: dict[str, Symbol]
    add: tuple[tuple[str, str], ...]
    remove: tuple[tuple[str, int], ...]


def read_report(body: bytes) -> Report:
    """Raises ReportError."""
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        raise ReportError("its answer is not JSON") from None
    if not isinstance(tree, dict):
        raise ReportError("its answer is not a JSON object")
    if "error" in tree:
        raise ReportError(f"error: {_line(str(tree['error']))}")
    action = tree.get("action")
    if not isinstance(action, str) or action not in ACTIONS:
        raise ReportError(f"unknown action {_line(str(action))[:40]!a}")
    score = _number(tree.get("score"))
    milter = _table(tree, "milter")
    return Report(
        action,
        score,
        _is_forced(tree, action, score),
        _text(_table(tree, "messages").get("smtp_message")),
        _symbols(_table(tree, "symbols")),
        _added(_table(milter, "add_headers")),
        _removed(_table(milter, "remove_headers")),
    )


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ReportError("its score is not a number")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise ReportError("its score is not a number")
    return number


def _table(tree: dict[str, Any], name: str) -> dict[str, Any]:
    found = tree.get(name)
    if found is None or found == []:  # an empty table of Lua
        return {}
    if not isinstance(found, dict):
        raise ReportError(f"{name} is not an object")
    return found


def _is_forced(tree: dict[str, Any], action: str, score: float) -> bool:
    """Whether some rule set the action: then a recipient's scores do not change it."""
    if tree.get("passthrough_module") or action == "soft reject":
        return True
    required = tree.get("required_score")
    return action == "reject" and isinstance(required, int | float) and score < required


def _symbols(tree: dict[str, Any]) -> dict[str, Symbol]:
    found: dict[str, Symbol] = {}
    for name, one in tree.items():
        if not isinstance(one, dict):
            raise ReportError("a symbol is not an object")
        options = one.get("options") or ()
        if not isinstance(options, list | tuple):
            raise ReportError("the options of a symbol are not a list")
        found[name] = Symbol(_number(one.get("score", 0)), tuple(map(str, options)))
    return found


def _added(tree: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Fields in their order from the top."""
    found: list[tuple[int, str, str]] = []
    for name, given in tree.items():
        for one in given if isinstance(given, list) else [given]:
            order, value = 0, one
            if isinstance(one, dict):
                order, value = one.get("order", 0), one.get("value")
            if not isinstance(value, str) or not isinstance(order, int) or isinstance(order, bool):
                raise ReportError("a header to add is not text")
            found.append((order, name, value))
    if len(found) > MOST_FIELDS or sum(len(n) + len(v) for _, n, v in found) > MOST_TEXT:
        raise ReportError("too many headers to add")
    return tuple((name, value) for _, name, value in sorted(found, key=lambda one: one[0]))


def _removed(tree: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    found: list[tuple[str, int]] = []
    for name, given in tree.items():
        for number in given if isinstance(given, list) else [given]:
            if isinstance(number, bool) or not isinstance(number, int):
                raise ReportError("a header to remove has no number")
            found.append((name, int(number)))
    if len(found) > MOST_FIELDS:
        raise ReportError("too many headers to remove")
    return tuple(found)


def _text(value: object) -> str:
    return _line(value) if isinstance(value, str) else ""


def _line(text: str) -> str:
    """One printable ASCII line, without leading codes: we add those."""
    clean = "".join(one if " " <= one <= "~" else " " for one in text[:REPLY_TEXT])
    return _ENHANCED.sub("", clean.strip(), count=1)
