"""Each command in each bad state that an operator meets (tests/support/bad_states.py).

An error says in a line or two what is wrong, where, and what to do; it has a documented exit code,
leaves standard output empty or valid, and changes nothing.

The table: a command, its arguments, and its exit code in each state.  `w`: it may change the data.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from tests.cli.test_error_texts import FACTS, ORDERS
from tests.e2e.test_disk_full import private_mounts
from tests.support.bad_states import STATES, Bench
from tests.support.command_tree import COMMANDS, WITH_JSON
from tests.support.hub import address
from tests.support.state_commands import Ran, Running, State

pytestmark = pytest.mark.slow

COLUMNS = (
    "config", "missing", "foreign", "hidden", "newer", "full", "frozen", "workers", "killed",
    "stopped",
)  # fmt: skip
COLUMN_OF = dict.fromkeys(("no_file", "unknown_key", "bad_value"), "config") | {
    "frozen_workers": "workers"
}
TABLE = """
version                   |                               |   0   0   0   0   0   0   0   0   0   0
config check              |                               |  78   0  78  78   0   0   0   0   0   0
config get                | limits.message_size           |  78   0   0   0   0   0   0   0   0   0
config show               |                               |  78   0   0   0   0   0   0   0   0   0
config show               | --running                     |  78  69  77  77  69  69  69   0  69  69
doctor                    | --no-dns                      |   2   1   2   2   2   2   2   2   1   1
status                    |                               |  78  69  77  77  69  69  69   0  69  69
status                    | --check                       |   3   2   3   3   2   2   2   0   2   2
top                       | --once --interval 0.1         |  78  69  77  77  69  69  69   0  69  69
who                       |                               |  78  69  77  77  69  69  69  75  69  69
kick                      | --protocol pop3               |  78  69  77  77  69  69  69  75  69  69
trace                     | 127.0.0.1 --seconds 0.2       |  78  69  77  77  69  69  69   0  69  69
reload                    |                               |  78  69  77  77  69  69  69   -  69  69
gc                        |                               |  78  69  77  77  69  69  69   0  69  69
stop                      | --timeout 1                   |  78  69  77  77  69  69  69   -  69  69
start                     | --detach --log-file {log}     |  78  0w  77  77  65  0w  69  69  0w  0w
user list                 |                               |  78  69  77  77  65   0   0   0   0   0
user list                 | --long                        |  78  69  77  77  65   0   0   0   0   0
user show                 | {ann}                         |  78  69  77  77  65   0   0   0   0   0
user check                | {ann}                         |  78  69  77  77  65   0   0   0   0   0
user export               |                               |  78  69  77  77  65   0   0   0   0   0
user accept-loss          |                               |  78  69  77  77  65   0   0   0   0   0
user add                  | {new} --no-password           |  78  0w  77  77  65  71  0w  0w  0w  0w
user passwd               | {new} --password-stdin        |  78  69  77  77  65  67  0w  0w  0w  0w
user set                  | {bob} --quota 1GiB            |  78  69  77  77  65  0w  0w  0w  0w  0w
user alias                | {sales} {ann} {bob}           |  78 65w  77  77  65  0w  0w  0w  0w  0w
user rename               | {new} {other}                 |  78  69  77  77  65  67  0w  0w  0w  0w
user import               | --format csv {out}/users.csv  |  78  0w  77  77  65   0  0w  0w  0w  0w
user import | --format csv {out}/users.csv --dry-run |  78   0  77  77  65   0   0   0   0   0
user remove               | {other}                       |  78  69  77  77  65  67  0w  0w  0w  0w
mail list                 | {ann}                         |  78  69  77  77  65   0   0   0   0   0
mail show                 | {ann} 1                       |  78  69  77  77  65   0   0   0   0   0
mail export               | {ann} --to mbox:{out}/{state} |  78  69  77  77  65   0   0   0   0   0
mail learn | spam {ann} 1 --controller {no} |  78  69  77  77  65  69  69  69  69  69
mail tail                 |                               |  78  69  77  77  65 130 130 130 130 130
mail wait                 | {ann} --timeout 0.1           |  78  69  77  77  65   0   0   0   0   0
mail trace                | {ann}                         |  78  69  77  77  65   0   0   0   0   0
mail delete               | {bob} 1                       |  78  69  77  77  65  0w  69  69  0w  0w
mail undelete             | {bob} --all                   |  78  69  77  77  65 75w   0   0  0w  0w
mail import | {bob} --from mbox:{out}/{state}.mbox |  78  69  77  77  65 75w  69  69  0w  0w
mail copy                 | {ann} 1 --to {bob}            |  78  69  77  77  65 75w  69  69  0w  0w
store logs                |                               |  78  69  77  77  65   0   0   0   0   0
store dump                | 1                             |  78  69  77  77  65   0   0   0   0   0
store check               |                               |  78  69  77  77  65   0   0   0   0   0
store time                |                               |  78  69  77  77  69  69  69   0  69  69
store backup              | {out}/{state}-backup          |  78  69  77  77  65   0   0   0   0   0
store restore             | {out}/backup --data {data}    |  78  0w  77  77  73  73  73  73  73  73
fsck                      |                               |  78  69  77  77  65   0   0   0   0   0
fsck                      | --repair                      |  78  69  77  77  65  0w  69  69  0w  0w
store rebuild             |                               |  78  69  77  77  65  71  69  69  0w  0w
tls list                  |                               |  78  69  77  77   0   0   0   0   0   0
tls install               | --cert {pair} --name given    |  78  0w  77  77  65  71  0w  0w  0w  0w
tls self-signed           | hub.example.test --name made  |  78  0w  77  77  65  71  0w  0w  0w  0w
tls remove                | made                          |  78  69  77  77  65  65  0w  0w  0w  0w
cluster status            |                               |  78  69  77  77   0   0   0   0   0   0
cluster token             |                               |  78  69  77  77  65 71w  0w  0w  0w  0w
cluster init              |                               |  78  0w  77  77  73  73  69  69  73  73
cluster join              | {token}                       |  78 69w  77  77  73  73  69  69  73  73
cluster alone             | --yes                         |  78  69  77  77  76  76  76  76  76  76
cluster drain             | 1                             |  78  69  77  77  76  76  76  76  76  76
cluster remove            | 3                             |  78  69  77  77  76  76  76  76  76  76
cluster restore-directory | --yes                         |  78  69  77  77  65  76  76  76  76  76
"""
# What they find is on standard output, or each finding on a line of standard error.
VERDICTS = {
    "config check", "doctor", "fsck", "kick", "mail copy", "mail import", "mail undelete",
    "mail wait", "store check", "user check", "who",
}  # fmt: skip
ROOT = Path(__file__).parents[2]


class Cell(NamedTuple):
    """What a command gives in a state."""

    command: str
    arguments: str
    code: int
    writes: bool


def table() -> Iterator[tuple[str, str, dict[str, str]]]:
    """(command, arguments, cell by column)."""
    for line in TABLE.strip().splitlines():
        command, arguments, cells = (part.strip() for part in line.split("|"))
        yield command, arguments, dict(zip(COLUMNS, cells.split(), strict=True))


def cells(state: str) -> Iterator[Cell]:
    for command, arguments, row in table():
        cell = row[COLUMN_OF.get(state, state)]
        if cell != "-":
            yield Cell(command, arguments, int(cell.removesuffix("w")), cell.endswith("w"))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_every_command_is_in_the_table() -> None:
    leaves = {path for path, one in COMMANDS.items() if not isinstance(one, click.Group)}
    assert {command for command, *_ in table()} == leaves


def test_every_exit_code_is_documented() -> None:
    page = (ROOT / "docs" / "operating.md").read_text()
    documented = {int(one) for one in re.findall(r"^\| (\d+) \| ", page, re.MULTILINE)}
    for command, _, row in table():
        used = {int(cell.removesuffix("w")) for cell in row.values() if cell != "-"}
        own = {1, 2, 3} if command in ("doctor", "status") else set()
        assert used - own <= documented, command


@pytest.mark.long
@pytest.mark.parametrize("name", STATES)
def test_each_command_in_this_state(
    bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "full" and not private_mounts():
        pytest.skip("needs root and a mount namespace")
    if name == "foreign" and os.geteuid() and os.access("/root", os.X_OK):
        pytest.skip("needs a directory that only its owner may enter")
    monkeypatch.setattr("tempfile.tempdir", str(bench.out))
    with getattr(bench, name)() as state:
        wrong = list(faults(bench, state, list(cells(name))))
    assert wrong == [], "\n".join(wrong)


def faults(bench: Bench, state: State, given: list[Cell]) -> Iterator[str]:
    """What is wrong, a line for each.  Commands that wait for a hub wait together."""
    before = state.files()
    together: list[tuple[Cell, Running]] = []
    for one in given:
        running = state.begin(words(bench, state, one), given="secret\n")
        if state.at_once and not one.writes:
            together.append((one, running))
            continue
        yield from judged(bench, state, one, running.ended())
        yield from changes(one, before, state.files())
        if one.command == "start" and one.code == 0:
            stop = Cell("stop", "", 0, writes=True)
            yield from judged(bench, state, stop, state.begin(words(bench, state, stop)).ended())
        state.after()
        before = state.files()
    for one, running in together:
        yield from judged(bench, state, one, running.ended())
    if together:
        yield from changes(Cell("all that wait", "", 0, writes=False), before, state.files())


def words(bench: Bench, state: State, one: Cell) -> list[str]:
    names = {name: address(name) for name in ("ann", "bob", "new", "other", "sales")}
    given = one.arguments.format(
        out=bench.out, state=state.name, data=state.data_of(one.command), token=bench.token,
        log=log_of(bench), no=f"unix:{bench.out}/none",
        pair=bench.out / "pair.pem", **names,
    )  # fmt: skip
    found = one.command.split()
    if one.command != "version":
        found += ["--config", str(state.config(one.command))]
    found += given.replace(str(bench.home), "{home}").split()
    json_too = one.command in WITH_JSON and "--check" not in given
    found = [word.replace("{home}", str(bench.home)) for word in found]
    return found + (["--json"] if json_too else [])


def log_of(bench: Bench) -> Path:
    return bench.out / "start.log"


def changes(one: Cell, before: dict, after: dict) -> Iterator[str]:
    if one.writes or before == after:
        return
    changed = sorted({name for name, _ in before.items() ^ after.items()})
    yield f"{one.command} {one.arguments}: changed {changed[:4]}"


def judged(bench: Bench, state: State, one: Cell, ran: Ran) -> Iterator[str]:
    """What is wrong with the result of a command."""
    what = f"{state.name}: {one.command} {one.arguments}".strip()
    if ran.code != one.code:
        yield f"{what}: {ran.code}, not {one.code}: {ran.err}{ran.out[:2000]}"
        return
    if "Traceback" in ran.err:
        yield f"{what}: {ran.err}"
    if one.command in WITH_JSON and "--check" not in one.arguments and not valid(ran.out):
        yield f"{what}: no JSON: {ran.out[:300]}"
    lines = [line for line in ran.err.splitlines() if line.startswith("metad:")]
    if "fatal" not in ran.err:
        silent = ran.code in (0, 130) or (one.command in VERDICTS and ran.out + ran.err)
        if not silent and "--check" not in one.arguments:
            yield f"{what}: {ran.code} without a reason: {ran.err}"
        return
    said = lines[-1]
    if "the hub did not start" in said:  # detached: its log has the reason
        said = log_of(bench).read_text().splitlines()[-1]
    if ran.code == 0 or len(lines) > 2 or not good(said, state, one):
        yield f"{what}: {ran.code}: {ran.err}{said}"


def valid(out: str) -> bool:
    """Whether it is nothing, JSON, or JSON on each line."""
    for pieces in ([out], out.splitlines()):
        try:
            for one in pieces:
                json.loads(one)
        except ValueError:
            continue
        return True
    return not out


def good(line: str, state: State, one: Cell) -> bool:
    """Whether an error says what is wrong, where, and what to do: in a state's own words, if its
    exit code is the state's."""
    found = re.fullmatch(r"metad: fatal: (.+?) \((.+)\)", line)
    if found is None:
        return False
    remedy = found[2]
    if not remedy.startswith(ORDERS) and not FACTS.search(remedy):
        return False
    if state.code != one.code:
        return True
    places = {"data": state.data_of(one.command), "config": state.config(one.command)}
    says = state.says
    for name, place in places.items():
        says = says.replace(f"{{{name}}}", re.escape(str(place)))
    return bool(re.search(says, line))
