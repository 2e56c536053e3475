"""The house rule of errors (metad.errors): what went wrong, where, and what to do next.

Every place in the source where a command's error is made is found in the syntax trees, not listed.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import metad
from metad import errors
from metad.errors import ClusterError, ConfigError, MetadError, UnavailableError, UsageError
from tests.test_docs import fault, words

PACKAGE = Path(metad.__file__).parent
# What a command runs before it needs a hub, or what ends a start.
PLACES = (
    "cli", "config", "control.py", "listeners.py", "master", "nanny.py", "store/backup",
    "store/backup_lock.py", "store/fsck", "store/identity.py", "system", "tls", "users/account.py",
    "users/aliases.py", "users/database.py", "users/directory_client.py",
    "users/directory_users.py", "users/id_allocator.py", "users/journal.py",
    "users/last_logins.py", "users/lmdb_env.py", "users/lookup.py", "users/passwords.py",
    "users/recorded.py",
)  # fmt: skip
# Where the general remedy of a class does not help: what the operator of a cluster sees.
SPECIFIC = (
    "cli/cluster", "cluster/alone.py", "cluster/certificates.py", "cluster/etcd.py",
    "cluster/identity.py", "cluster/restoring.py", "cluster/tokens.py",
)  # fmt: skip
INNER = {"epoch x is newer"}  # a command that asks other nodes adopts none of their views
# A text that says what is right needs no remedy; nor does one that only carries another error on.
SAYS_WHAT_IS_RIGHT = re.compile(r"\bmust\b|\bexclude each other\b|\bbelongs? to\b|\bis missing\b")
CARRIED_ON = {
    "metad/store/backup/backup.py": "one file of several: the error that names it offers --partial",
    "metad/control_client.py": "the hub's own error, with its remedy",
    "metad/cli/dev.py": "the hub's own error, with its remedy",
    "metad/cli/mail/privileged_read.py": "the reader's own error, with its remedy",
    "metad/cli/user/user_edit.py": "an option's value: click adds the command's --help",
}
# A remedy is an order, or says what a command, an option or the like does.
ORDERS = (
    "add", "apt-get", "ask", "chmod", "chown", "correct", "disable", "enable", "for", "free",
    "give", "import", "install", "join", "leave", "mount", "name", "put", "raise", "renew",
    "restart", "restore", "run", "see", "set", "start", "switch", "try", "use", "useradd", "wait",
    "write",
)  # fmt: skip
FACTS = re.compile(
    r"metad [a-z]|(^|[ ;])--[a-z]|\b(df|dmesg|ss|free|ip) |log\b.* say|lines above|metad\.toml|"
    r"symbolic link|USER and PASS|\[collector\]"
)
_COMMAND = re.compile(r"(?<!of )metad ((?:[a-z-]+ ?)+(?:--[a-z-]+)?)")


def subclasses(one: type[MetadError]) -> Iterator[type[MetadError]]:
    yield one
    for inner in one.__subclasses__():
        yield from subclasses(inner)


def classes() -> dict[str, type[MetadError]]:
    for module in pkgutil.walk_packages([str(PACKAGE)], "metad."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return {one.__name__: one for one in subclasses(MetadError)}


class Made(NamedTuple):
    """A place where an error is made.  `text`, `remedy`: {…} is "x"; None if not literal."""

    where: str
    name: str
    text: str | None
    remedy: str | None
    given: bool  # a remedy, or the system's error with its own


def literal(node: ast.expr | None) -> str | None:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(literal(one) or "x" for one in node.values)
    return None


def made_in(path: Path, names: set[str]) -> Iterator[Made]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        parts = ast.unparse(node.func).split(".")
        by_system = parts[-1] == "of"
        name = parts[-2] if by_system and len(parts) > 1 else parts[-1]
        if name not in names:
            continue
        remedy = next((one.value for one in node.keywords if one.arg == "remedy"), None)
        text = literal(node.args[-1] if node.args else None)
        where = f"{path.relative_to(PACKAGE.parent)}:{node.lineno}"
        yield Made(where, name, text, literal(remedy), by_system or remedy is not None)


@pytest.fixture(scope="module")
def kinds() -> dict[str, type[MetadError]]:
    return classes()


@pytest.fixture(scope="module")
def made(kinds: dict[str, type[MetadError]]) -> list[Made]:
    return made_below(PLACES, kinds)


def made_below(places: tuple[str, ...], kinds: dict[str, type[MetadError]]) -> list[Made]:
    files = [
        file
        for place in places
        for file in [PACKAGE / place, *(PACKAGE / place).rglob("*.py")]
        if file.suffix == ".py"
    ]
    return [one for file in sorted(files) for one in made_in(file, set(kinds))]


@pytest.mark.slow
def test_every_error_has_a_remedy(made: list[Made], kinds: dict[str, type[MetadError]]) -> None:
    def lacks(one: Made) -> bool:
        general = kinds[one.name].remedy or issubclass(kinds[one.name], UsageError)
        right = SAYS_WHAT_IS_RIGHT.search(one.text or "")
        return not (one.given or general or right or one.where.partition(":")[0] in CARRIED_ON)

    assert [one for one in made if lacks(one)] == []
    assert len(made) > 200


@pytest.mark.slow
def test_every_error_of_a_cluster_has_a_remedy_of_its_own(
    kinds: dict[str, type[MetadError]],
) -> None:
    found = made_below(SPECIFIC, kinds)
    general = {one.remedy for one in (ClusterError, ConfigError, UnavailableError)} | {""}
    general_only = [
        one
        for one in found
        if not one.given and kinds[one.name].remedy in general and one.text not in INNER
    ]
    assert general_only == []
    assert len(found) > 25


def remedies(made: list[Made], kinds: dict[str, type[MetadError]]) -> dict[str, str]:
    found = {f"class {name}": one.remedy for name, one in kinds.items() if "remedy" in vars(one)}
    found |= {f"errno {number}": text for number, text in errors._REMEDIES.items()}
    found |= {one.where: one.remedy for one in made if one.remedy}
    return {where: text for where, text in found.items() if text}


@pytest.mark.slow
def test_a_remedy_is_an_order_or_names_what_helps(
    made: list[Made], kinds: dict[str, type[MetadError]]
) -> None:
    found = remedies(made, kinds)
    wrong = {
        where: text
        for where, text in found.items()
        if not (text.startswith(ORDERS) or FACTS.search(text))
        or text.endswith(".")
        or "\n" in text
        or len(text) > 90
    }
    assert wrong == {}
    assert len(found) > 120


@pytest.mark.slow
def test_the_commands_that_remedies_name_exist(
    made: list[Made], kinds: dict[str, type[MetadError]]
) -> None:
    named = 0
    for where, text in remedies(made, kinds).items():
        for command in _COMMAND.findall(text):
            line = words(command)
            named += 1
            while line and fault(line) is not None and not line[-1].startswith("-"):
                line.pop()  # the words after the command
            assert line, (where, text)
            assert fault(line) is None, (where, text, fault(line))
    assert named > 30


def test_a_text_does_not_end_its_sentence(made: list[Made]) -> None:
    """What to do follows in brackets."""
    wrong = [
        one for one in made if one.text and (one.text.endswith((".", "!")) or "\n" in one.text)
    ]
    assert wrong == []


def test_an_error_of_the_system_has_its_remedy() -> None:
    failed = errors.OsError.of(OSError(28, "No space left on device"), "/srv/mail")
    assert failed.line == (
        "/srv/mail: No space left on device (free some space on this disk: df shows it)"
    )
    unknown = errors.OsError.of(OSError(999, "odd"), "x")
    assert unknown.line == "x: odd (metad doctor examines the machine)"
