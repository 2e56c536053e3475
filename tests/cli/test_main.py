"""The command line as a whole: exit codes, one line for every error, no traceback."""

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys

import click
import pytest

from metad import __version__, cli
from metad.errors import EX_CONFIG, EX_OSERR, EX_SOFTWARE, EX_UNAVAILABLE, EX_USAGE

COMMANDS = [
    (), ("start",), ("stop",), ("status",), ("version",), ("config",), ("config", "show"),
    ("config", "check"), ("user",), ("user", "add"), ("user", "remove"), ("user", "passwd"),
    ("user", "list"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(run, command):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: metad")


@pytest.mark.parametrize("command", [one for one in COMMANDS if one not in {(), ("version",)}])
def test_every_command_finds_its_hub_by_data_and_config(run, command):
    if command in {("config",), ("user",)}:
        return
    _, out, _ = run(*command, "--help")
    assert "--data DIR" in out
    assert "--config FILE" in out


def test_every_verb_of_user_is_found_before_its_file_is_imported():
    for found in pkgutil.walk_packages(cli.__path__, "metad.cli."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    group = cli.user.users.user  # type: ignore[attr-defined]
    elsewhere = {
        name
        for name, one in group.commands.items()
        if one.callback.__module__ != "metad.cli.user.users"
    }
    assert elsewhere == set(group.places)
    for name in group.places:
        assert group.get_command(None, name) is group.commands[name]


@pytest.mark.slow
def test_a_start_imports_nothing_of_the_other_commands():
    program = "import sys, metad.cli.hub; print([n for n in sys.modules if n.startswith('metad.')])"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(done.stdout))
    assert "metad.cli.launch" in loaded
    assert not loaded & {
        "metad.cli.mail.mail",
        "metad.cli.store",
        "metad.cli.user.users",
        "metad.store.fsck.fsck",
    }


def test_the_version_is_shown(run):
    assert run("version") == run("--version") == (0, f"metad {__version__}\n", "")
    assert json.loads(run("version", "--json")[1]) == {"version": __version__}


@pytest.mark.parametrize(
    "command", [(), ("user",), ("nonsense",), ("user", "add"), ("stop", "--nonsense"),
                ("stop", "--timeout", "x"), ("status", "extra")]
)  # fmt: skip
def test_a_command_that_is_none_is_a_usage_error_of_one_line(run, command):
    code, out, err = run(*command)
    assert (code, out) == (EX_USAGE, "")
    assert err.startswith("metad: fatal: ")
    assert err.count("\n") == 1


def test_a_bad_configuration_is_told_with_its_code(run, tmp_path):
    file = tmp_path / "m.toml"
    file.write_text("[store]\nworker = 1\n")
    code, _, err = run("status", "--config", file)
    assert code == EX_CONFIG
    assert err.startswith(
        f"metad: fatal: {file}:2: store.worker: unknown key; did you mean workers? ("
    )


def test_a_bad_configuration_does_not_matter_if_the_directory_is_named(run, tmp_path, monkeypatch):
    (tmp_path / "no-system.toml").write_text("nonsense")
    data = tmp_path / "d"
    data.mkdir()
    assert run("status", "--data", data)[0] == EX_UNAVAILABLE
    monkeypatch.setenv("METAD_DATA", str(data))
    assert run("status")[0] == EX_UNAVAILABLE


def test_an_error_is_one_line_that_steers_no_terminal(run, tmp_path):
    _, _, err = run("status", "--data", tmp_path / "a\n\x1b[31mb")
    assert "a\\n\\x1b[31mb" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "shown"),
    [
        (
            OSError(28, "No space", "/x"), EX_OSERR,
            "metad: fatal: /x: No space (free some space on this disk: df shows it)\n",
        ),
        (click.Abort(), cli.EX_INTERRUPTED, ""),
        (KeyboardInterrupt(), cli.EX_INTERRUPTED, ""),
        (
            click.FileError("f", "bad"), EX_USAGE,
            "metad: fatal: could not open file 'f': bad (try metad status --help)\n",
        ),
    ],
)  # fmt: skip
def test_what_ends_a_command_has_its_code(run, monkeypatch, raised, code, shown):
    def fail(*_args, **_kwargs):
        raise raised

    monkeypatch.setattr(cli, "_run", fail)
    assert run("status") == (code, "", shown)


def test_a_bug_of_ours_is_shown_whole(run, monkeypatch):
    monkeypatch.setattr(cli, "_run", lambda _: 1 // 0)
    code, _, err = run("status")
    assert code == EX_SOFTWARE
    assert "ZeroDivisionError" in err


@pytest.mark.slow
def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "metad.cli", "version"], capture_output=True, check=False
    )
    assert (done.returncode, done.stdout.decode()) == (0, f"metad {__version__}\n")


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error(data):
    environ = dict(os.environ, METAD_DATA=str(data))
    metad = f"{sys.executable} -m metad.cli"
    script = (
        f"{metad} user add a@x.org --no-password && "
        f"{{ {metad} user list --all; echo $? >&2; }} | true"
    )
    done = subprocess.run(["sh", "-c", script], env=environ, capture_output=True, check=False)
    assert done.stderr.decode() == "0\n"
