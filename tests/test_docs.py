"""Every metad command in README and docs/ exists, with its options; every page is linked."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from metad.cli import command

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```$|((?:^    [^\n]*\n)+)", re.MULTILINE | re.DOTALL)
_PROMPT = re.compile(r"(?:.*\| )?(?:sudo )?(?:runuser .* -- )?metad (?=[a-z-])")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command line that calls metad, in blocks of code and in `code`."""
    for block in _BLOCK.finditer(text):
        for line in (block[1] or block[2]).replace("\\\n", " ").splitlines():
            found = _PROMPT.match(line.strip())
            if found:
                yield words(line.strip()[found.end() :])
    prose = _BLOCK.sub("", text)
    yield from (words(one) for one in re.findall(r"`metad ([a-z][^`]*)`", prose))


def words(line: str) -> list[str]:
    line = re.split(r" {2,}#| # | {4,}|[|>;&]", line)[0]
    line = re.sub(r"[\[\]…]|\.\.\.", " ", line)
    try:
        return shlex.split(line)
    except ValueError:
        return line.split()


def fault(line: list[str]) -> str | None:
    """What is wrong with a command line: no such command, or no such option."""
    found: click.Command = command
    context = click.Context(found, info_name="metad")
    rest = list(line)
    while isinstance(found, click.Group) and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name.isupper() or name in ("|", "COMMAND"):
            return None
        inner = found.get_command(context, name)
        if inner is None:
            return f"no command {name}"
        found = inner
    known = {opt for one in found.get_params(context) for opt in (*one.opts, *one.secondary_opts)}
    options = [one.partition("=")[0] for one in rest if one.startswith("-") and one != "-"]
    unknown = [one for one in options if one not in known and one not in ("--version", "-h")]
    return f"no option {unknown[0]} of {found.name}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_shows_exists(page: Path) -> None:
    faults = {" ".join(one): fault(one) for one in commands(page.read_text("utf-8"))}
    assert {line: why for line, why in faults.items() if why} == {}


def test_commands_are_found_and_wrong_ones_too() -> None:
    text = (
        "`metad status --check` and\n\n    echo x | metad user add a@b --password-stdin   # adds\n"
    )
    assert sorted(commands(text)) == [
        ["status", "--check"], ["user", "add", "a@b", "--password-stdin"]]  # fmt: skip
    assert fault(["status", "--check"]) is None
    assert fault(["statsu"]) == "no command statsu"
    assert fault(["mail", "import", "--form", "x"]) == "no option --form of import"
    assert sum(len(list(commands(page.read_text("utf-8")))) for page in PAGES) > 50


def test_every_page_is_linked_from_the_readme_or_the_index() -> None:
    text = (ROOT / "README.md").read_text("utf-8") + (ROOT / "docs" / "README.md").read_text(
        "utf-8"
    )
    linked = set(re.findall(r"\((?:docs/)?([a-z-]+\.md)\)", text))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages - linked == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    assert [one for one in targets if not (page.parent / one).exists()] == []
