"""Runs every command: with --json it prints JSON, and with NO_COLOR no colours.

tests/cli/test_every_command.py reads the help of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from metad import cli
from tests.support.clients import deliver, message
from tests.support.command_tree import COMMANDS, WITH_JSON
from tests.support.commands import metad, owned
from tests.support.hub import HOSTNAME, Hub, address
from tests.support.terminal import coloured, on_terminal
from tests.support.wide_hub import WideHub, certificate

# {home}: the hub's directory; {turn}: how often the commands have been run before.
ROOT = Path(__file__).parents[2]
ANN, BOB, NEW = address("ann"), address("bob"), "new{turn}@example.test"
DATAERR, NOUSER, WARNINGS, UNAVAILABLE = 65, 67, (0, 1, 2), 69


class Step(NamedTuple):
    """`codes`: what it may exit with."""

    path: str
    arguments: str = ""
    codes: tuple[int, ...] = (0,)
    given: str = ""


STEPS = [
    Step("config check", codes=(0, 78)),  # 78: the hub that runs has the data directory
    Step("config get", "limits.message_size"),
    Step("config show", "--running"),
    Step("doctor", "--no-dns", WARNINGS),
    Step("status"),
    Step("top", "--once --interval 0.1"),
    Step("who"),
    Step("kick", "--protocol pop3 --user nosuch@example.test", (DATAERR,)),
    Step("reload"),
    Step("gc"),
    Step("user add", f"{NEW} --password-stdin", given="secret\n"),
    Step("user passwd", f"{NEW} --password-stdin", given="other\n"),
    Step("user rename", f"{NEW} other{{turn}}@example.test"),
    Step("user alias", f"sales{{turn}}@example.test {ANN} {BOB}"),
    Step("user set", f"{BOB} --quota 1GiB"),
    Step("user show", BOB),
    Step("user check", ANN),
    Step("user list", "--long"),
    Step("user import", "--format csv {home}/users.csv"),
    Step("user export"),
    Step("user remove", "other{turn}@example.test"),
    Step("user accept-loss"),
    Step("mail list", ANN),
    Step("mail copy", f"{ANN} 1 --to {BOB}"),
    Step("mail delete", f"{BOB} 1"),
    Step("mail undelete", BOB),
    Step("mail trace", ANN),
    Step("mail wait", ANN),
    Step("mail export", f"{ANN} --to mbox:{{home}}/out/mbox{{turn}}"),
    Step("mail import", f"{BOB} --from mbox:{{home}}/mbox"),
    Step("tls self-signed", f"{HOSTNAME} --name made"),
    Step("tls install", "--cert {home}/fullchain.pem --key {home}/privkey.pem --name given"),
    Step("tls list"),
    Step("fsck"),
    Step("store check"),
    Step("store logs"),
    Step("store dump", "1"),
    Step("store time"),
    Step("store backup", "{home}/out/backup{turn}"),
    Step("store restore", "{home}/out/backup{turn} --data {home}/out/restored{turn}"),
]
STOPPED = [Step("status", codes=(UNAVAILABLE,)), Step("store rebuild"), Step("fsck", "--repair")]
# Commands that run until interrupted, or need rspamd or another node: their JSON is tested there.
ELSEWHERE = {
    "cluster alone": "tests/cli/cluster/test_commands.py",
    "cluster drain": "tests/e2e/test_cluster_etcd.py",
    "cluster init": "tests/cli/cluster/test_commands.py",
    "cluster remove": "tests/e2e/test_cluster_etcd.py",
    "cluster join": "tests/cli/cluster/test_commands.py",
    "cluster restore-directory": "tests/e2e/test_directory.py",
    "cluster status": "tests/cli/cluster/test_commands.py",
    "cluster token": "tests/cli/cluster/test_commands.py",
    "mail learn": "tests/e2e/test_rspamd.py",
    "mail tail": "tests/e2e/test_dev.py",
    "trace": "tests/e2e/test_trace.py",
    "version": "tests/cli/test_main.py",
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """With mail, and the files that the commands read; `out` is where they write."""
    with WideHub(["smtp", "pop3"], ["ann", "bob"]) as hub:
        for _ in range(3):
            deliver(hub, message(), "ann", "bob")
        deliver(hub, message((b"x" * 70 + b"\r\n") * 10_000), "ann")  # its log's bar is not empty
        files = dict(zip(("fullchain.pem", "privkey.pem"), certificate(HOSTNAME), strict=True))
        files["users.csv"] = f"address,quota\n{BOB},1GiB\n"
        files["mbox"] = "From x Thu Jan  1 00:00:00 2026\nSubject: x\n\ntext\n"
        files["mboxes"] = files["mbox"] + "\n" + files["mbox"].replace("text", "other")
        for name, text in files.items():
            (hub.home / name).write_text(text)
            owned(hub, hub.home / name)
        (hub.home / "out").mkdir()
        (hub.home / "out").chmod(0o777)
        yield hub


@pytest.fixture(autouse=True)
def scratch(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub's user may make temporary files; the tests' own directory may be root's."""
    monkeypatch.setattr("tempfile.tempdir", str(hub.home / "out"))


def words(hub: Hub, step: Step, turn: int) -> list[str]:
    given = step.arguments.split()
    return [*step.path.split(), *(one.format(home=hub.home, turn=turn) for one in given)]


def facts_of(hub: Hub, step: Step) -> list[object]:
    """What it printed, one object or one to a line."""
    done = metad(hub, *words(hub, step, 0), "--json", given=step.given, check=False)
    assert done.returncode in step.codes, (step, done)
    try:
        return [json.loads(done.stdout)]
    except ValueError:
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.long
def test_every_command_with_json_prints_json(hub: Hub) -> None:
    assert {step.path for step in [*STEPS, *STOPPED]} | ELSEWHERE.keys() == set(WITH_JSON)
    assert all((ROOT / file).is_file() for file in ELSEWHERE.values())
    for step in STEPS:
        assert facts_of(hub, step), step
    hub.stop()
    for step in STOPPED:
        assert facts_of(hub, step), step
    hub.start()


def shown(hub: Hub, step: Step, turn: int, *, no_color: bool = False) -> str:
    """The output on a terminal."""
    line = words(hub, step, turn)
    if step.given:  # its password is not read from the terminal
        return metad(hub, *line, given=step.given).stdout
    line += ["--config", str(hub.config)]
    return on_terminal(*line, run=cli.main, codes=step.codes, no_color=no_color)


# What may take more than a second with much mail or many users, or waits for sessions, and what it
# shows of its way.
LONG = {
    Step("fsck"): r"\d+ of \d+ logs.* of \d+ parts of the index",
    Step("gc"): r" moved\r",  # how much it will do is known only as it goes on
    Step("mail copy", f"{ANN} 1-2 --to {BOB}"): r"0 of 2 messages.*1 of 2 messages, \d+ s left",
    Step("mail export", f"{ANN} --to mbox:{{home}}/out/progress"): r"1 of \d+ messages, \d+ s left",
    Step("mail import", f"{BOB} --from mbox:{{home}}/mboxes"): r"\d+ messages, \d+%, \d+ s left",
    Step("mail list", ANN): r"\d+ of \d+ messages",
    Step("mail trace", ANN): r"\d+ of \d+ logs",
    Step("mail trace", "<unknown@example.test>", (DATAERR,)): r"\d+ of \d+ messages",
    Step("mail undelete", f"{BOB} --all"):
        r"0 of \d+ logs.*0 of \d+ deleted messages.*\d+ of \d+ messages compared.*0 of 1 messages",
    Step("store backup", "{home}/out/backup{turn}"): r"\d+ of \d+ logs",
    Step("store check"): r"\d+ of \d+ logs",
    Step("store logs"): r"\d+ of \d+ logs",
    Step("store restore", "{home}/out/backup{turn} --data {home}/out/restored{turn}"):
        r"\d+ of \d+ files",
    Step("user import", "--format csv {home}/users.csv"): r"\d+ of \d+ bytes",
    Step("user list", "--long"): r"\d+ of \d+ mailboxes",
    # Last: the hub ends.
    Step("stop"): r"waiting for its sessions, at most \d+ s left",
    Step("store rebuild"): r"index: \d+ logs read.*entries of mailboxes loaded",
    Step("fsck", "--repair"): r"\d+ of \d+ logs",
}  # fmt: skip
# They print what they do while they do it, or follow the hub until they are interrupted.
LIVE = {
    "doctor", "mail learn", "mail tail", "mail wait", "start", "store dump", "top", "trace",
    "user export",
}  # fmt: skip
# One request to the hub, one transaction, or one file.
QUICK = {
    "config check", "config get", "config show", "kick", "mail delete", "mail show", "status",
    "store time", "tls install", "tls list", "tls remove", "tls self-signed", "user accept-loss",
    "user add", "user alias", "user check", "user passwd", "user remove", "user rename",
    "user set", "user show", "version", "who",
}  # fmt: skip
# They wait for another release or another node (metad.cli.takeover, metad.cli.cluster).
ELSEWHERE_LONG = {"reload", *(path for path in COMMANDS if path.startswith("cluster "))}


def test_every_command_is_long_live_or_quick() -> None:
    leaves = {path for path, one in COMMANDS.items() if not isinstance(one, click.Group)}
    groups = [{step.path for step in LONG}, LIVE, QUICK, ELSEWHERE_LONG]
    assert set().union(*groups) == leaves
    assert sum(map(len, groups)) == len(leaves)


def test_every_long_command_shows_how_far_it_is(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metad.cli.progress.SECONDS", 0.0)
    monkeypatch.setattr("metad.cli.progress.ROWS", 1)
    monkeypatch.setattr("metad.store.recovery.rebuild.PROGRESS_SECONDS", 0.0)
    deliver(hub, message(b"to be brought back\r\n"), "bob")
    last = json.loads(metad(hub, "mail", "list", BOB, "--json").stdout)[-1]
    metad(hub, "mail", "delete", BOB, last["uid"])
    for step, way in LONG.items():
        text = shown(hub, step, 3)
        assert re.search(way, text, re.DOTALL), (step, text)
        if step.path == "stop":
            assert hub.finished() == 0
    hub.start()


def live_top(hub: Hub, *, no_color: bool = False) -> str:
    command = ["top", "--interval", "0.1", "--config", str(hub.config)]
    return on_terminal(*command, until=b"% live", no_color=no_color)


@pytest.mark.long
def test_no_command_colours_with_no_color_and_some_do_without(hub: Hub) -> None:
    colourful = {step.path for step in STEPS if coloured(shown(hub, step, 1))}
    assert "doctor" in colourful
    assert coloured(live_top(hub))
    for step in STEPS:
        assert not coloured(shown(hub, step, 2, no_color=True)), step
    assert not coloured(live_top(hub, no_color=True))
