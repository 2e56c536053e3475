"""metad user set, show, alias, import and export: their input, output, and what they leave
unchanged."""

import io
import json
import re

import pytest

from metad.errors import (
    EX_CONFIG,
    EX_DATAERR,
    EX_NOUSER,
    EX_OSERR,
    EX_UNAVAILABLE,
    EX_USAGE,
)
from metad.users import passwords
from metad.users.database import UserDatabase

CONFIG = """
[quota]
size = "1GiB"
[users]
expiry = "90d"
scram_iterations = 5000
"""


@pytest.fixture(autouse=True)
def quick_hashing(monkeypatch):
    make = passwords.make
    monkeypatch.setattr(passwords, "make", lambda password, iterations=0: make(password, 10))


@pytest.fixture
def user(run, data, tmp_path):
    config = tmp_path / "metad.toml"
    config.write_text(CONFIG)

    def command(verb, *arguments, stdin=b""):
        return run("user", verb, *arguments, "--data", data, "--config", config, stdin=stdin)

    command("add", "ann@x.org", "--no-password")
    return command


def show(user, address="ann@x.org"):
    return json.loads(user("show", address, "--json")[1])


def test_what_is_set_is_shown_with_whose_it_is(user):
    facts = show(user)
    assert (facts["quota"], facts["expiry"], facts["own"]) == (1 << 30, 90 * 86_400, [])
    assert facts["bytes"] is facts["last_login"] is facts["password"] is None
    user("set", "ann@x.org", "--quota", "5MiB", "--messages", "7", "--expiry", "never",
         "--login-delay", "1min")  # fmt: skip
    facts = show(user)
    assert (facts["quota"], facts["quota_messages"]) == (5 << 20, 7)
    assert (facts["expiry"], facts["login_delay"]) == (0, 60)
    assert facts["own"] == ["quota", "messages", "expiry", "login_delay"]
    user("set", "ann@x.org", "--quota", "default", "--expiry", "default")
    assert show(user)["own"] == ["messages", "login_delay"]


def test_people_read_words(user):
    user("set", "ann@x.org", "--quota", "none", "--disable")
    said = user("show", "ann@x.org")[1]
    for line in (
        "disabled:          yes", "quota:             none", "expiry:            90d (default)",
        "password:          -", "last login:        -",
    ):  # fmt: skip
        assert line in said


@pytest.mark.parametrize(
    "arguments",
    [(), ("--quota", "lots"), ("--quota", "-1"), ("--messages", "+5"), ("--messages", "1_0"),
     ("--expiry", "90"), ("--expiry", "1s"), ("--login-delay", "9w"), ("--quota", "")],
)  # fmt: skip
def test_what_cannot_be_set_is_refused_and_changes_nothing(user, arguments):
    before = show(user)
    code, _, err = user("set", "ann@x.org", *arguments)
    assert (code, err.count("\n")) == (EX_USAGE, 1)
    assert show(user) == before


@pytest.mark.parametrize("verb", [("set", "--disable"), ("show",)])
@pytest.mark.parametrize("address", ["bob@x.org", "nonsense", "a\n@x.org", "../../x"])
def test_who_is_not_there_cannot_be_set_or_shown(user, verb, address):
    code, _, err = user(verb[0], address, *verb[1:])
    assert (code, err.count("\n")) == (EX_NOUSER if "x.org" in address else code, 1)
    assert code in (EX_NOUSER, EX_DATAERR)


def test_a_disabled_user_is_enabled_again(user):
    user("set", "ann@x.org", "--disable")
    assert show(user)["disabled"] is True
    assert user("set", "ann@x.org", "--enable", "--json")[1].startswith('{"id": 2')
    assert show(user)["disabled"] is False


def test_a_bad_configuration_does_not_hinder_who_adds_a_user(
    user, run, data, tmp_path, monkeypatch
):
    broken = tmp_path / "broken.toml"
    broken.write_text("nonsense = 1\n")
    monkeypatch.setattr("metad.config.parse.SYSTEM_FILE", broken)
    assert run("user", "add", "bob@x.org", "--no-password", "--data", data)[0] == 0
    assert run("user", "show", "bob@x.org", "--data", data)[0] == EX_CONFIG


# --- Aliases --------------------------------------------------------------------------------------


def test_an_alias_is_made_shown_changed_and_removed(user):
    user("add", "bob@x.org", "--no-password")
    assert user("alias", "I@x.org", "ann@x.org")[1] == "i@x.org: ann@x.org\n"
    assert user("alias", "i@x.org", "BOB@x.org", "--add")[1] == "i@x.org: ann@x.org, bob@x.org\n"
    assert user("alias", "i@x.org")[1] == user("show", "i@x.org")[1]
    assert user("alias", "i@x.org", "Ann@x.org", "--delete")[1] == "i@x.org: bob@x.org\n"
    assert user("alias", "i@x.org", "bob@x.org", "--delete")[0] == EX_DATAERR
    assert user("list", "--aliases")[1] == "i@x.org\tbob@x.org\n"
    assert json.loads(user("list", "--aliases", "--json")[1]) == [
        {"address": "i@x.org", "members": ["bob@x.org"]}]  # fmt: skip
    assert user("remove", "i@x.org")[0] == EX_DATAERR
    assert user("alias", "i@x.org", "--delete")[1] == "removed i@x.org\n"
    assert user("alias", "i@x.org")[0] == EX_NOUSER


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("i@x.org", "--add"), EX_USAGE), (("i@x.org", "ann@x.org", "--add"), EX_NOUSER),
     (("i@x.org", "--delete"), EX_NOUSER), (("i@x.org", "nobody@x.org"), EX_DATAERR),
     (("i@x.org", "i@x.org"), EX_DATAERR), (("ann@x.org", "ann@x.org"), EX_DATAERR),
     (("i\n@x.org", "ann@x.org"), EX_DATAERR), (("i@x.org", "ann@foreign.org"), EX_DATAERR)],
)  # fmt: skip
def test_what_is_no_alias_is_one_line(user, arguments, code):
    found, _, err = user("alias", *arguments)
    assert (found, err.count("\n")) == (code, 1)
    assert user("list", "--aliases")[1] == ""


# --- Import and export ----------------------------------------------------------------------------


def test_standard_input_is_a_file_too(user):
    code, out, _ = user("import", "-", "--format", "csv", stdin=b"address\nbob@x.org\n")
    assert (code, out) == (0, "added 1, changed 0, unchanged 0, removed 0, bad 0\n")


def test_a_dry_run_needs_no_database_and_makes_none(run, data, tmp_path):
    file = tmp_path / "users.csv"
    file.write_text("address\nann@x.org\nbad\n")
    code, out, err = run("user", "import", file, "--format", "csv", "--dry-run", "--data", data)
    assert (code, out) == (
        EX_DATAERR, "would be: added 1, changed 0, unchanged 0, removed 0, bad 1\n")  # fmt: skip
    assert err == f"{file}:3: 'bad' has no domain: say which by --domain\n"
    assert not data.exists()


def test_passwd_and_shadow_are_read_before_anything_else(user, tmp_path):
    (tmp_path / "passwd").write_text("bob:x:1000:1000::/:\n")
    code, _, err = user("import", tmp_path / "passwd", "--shadow", tmp_path / "none",
                        "--format", "passwd", "--domain", "x.org")  # fmt: skip
    assert code == EX_OSERR
    assert "none: No such file" in err
    assert user("list")[1] == "ann@x.org\tno password\n"


def test_sync_says_whom_it_removed_and_keeps_all_when_a_line_is_bad(user, tmp_path):
    file = tmp_path / "users.csv"
    file.write_text("address\nbob@x.org\nbad line\n")
    code, _, err = user("import", file, "--format", "csv", "--sync")
    assert code == EX_DATAERR
    assert "nothing was removed, because of the bad lines" in err
    file.write_text("address\nbob@x.org\n")
    code, out, _ = user("import", file, "--format", "csv", "--sync", "--json")
    assert json.loads(out) == {
        "added": 0, "changed": 0, "unchanged": 1, "removed": 1, "bad": [], "weak_hashes": 0,
        "no_login": [], "dry_run": False, "error": None,
    }  # fmt: skip
    assert user("list")[1] == "bob@x.org\tno password\n"


@pytest.mark.parametrize(
    "arguments",
    [("--format", "none"), (), ("--format", "csv", "--shadow", "x"),
     ("--format", "csv", "--domain", "a b"), ("--format", "csv", "--domain", "")],
)  # fmt: skip
def test_a_bad_wish_is_a_usage_error(user, tmp_path, arguments):
    (tmp_path / "f").write_text("address\n")
    code, _, err = user("import", tmp_path / "f", *arguments)
    assert (code, err.count("\n")) == (EX_USAGE, 1)


def test_what_would_steer_a_terminal_is_escaped(user, tmp_path):
    file = tmp_path / "map"
    file.write_bytes(b"a\x1b[31m@x.org x\n")
    _, _, err = user("import", file, "--format", "mailboxes")
    assert "\x1b" not in err


def test_progress_is_for_terminals(user, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("metad.cli.progress.SECONDS", 0.0)
    monkeypatch.setattr("metad.users.database.UserDatabase.imported_batch", 1)
    file = tmp_path / "users.csv"
    file.write_text("address\nbob@x.org\ncid@x.org\n")
    user("import", file, "--format", "csv")
    size = file.stat().st_size
    assert re.search(rf"\r\S*{size} of {size} bytes, 2 lines", terminal.getvalue())


def test_an_export_brings_everything_back(user, run, tmp_path):
    user("add", "bob@x.org", "--password-stdin", stdin=b"pw\n")
    user("set", "bob@x.org", "--quota", "5MiB", "--expiry", "never", "--login-delay", "90s",
         "--disable")  # fmt: skip
    user("alias", "i@y.org", "bob@x.org", "ann@x.org")
    exported = user("export")[1]
    file = tmp_path / "export.csv"
    file.write_text(exported)
    other = tmp_path / "other"
    assert run("user", "import", file, "--format", "csv", "--data", other)[0] == 0
    assert run("user", "export", "--data", other)[1] == exported
    with UserDatabase(other / "users") as users:
        users.set_disabled("bob@x.org", False)
        assert users.verify("bob@x.org", b"pw") is not None


def test_an_export_without_secrets_has_none(user):
    user("add", "bob@x.org", "--password-stdin", stdin=b"pw\n")
    rows = json.loads(user("export", "--no-secrets", "--json", "--domain", "X.org")[1])
    assert rows == [{"address": "ann@x.org"}, {"address": "bob@x.org"}]
    assert json.loads(user("export", "--json", "--domain", "y.org")[1]) == []


@pytest.mark.parametrize("verb", [("show", "a@x.org"), ("set", "a@x.org", "--disable"), ("export",),
                                  ("alias", "a@x.org")])  # fmt: skip
def test_without_a_database_nothing_is_made(run, data, verb):
    assert run("user", *verb, "--data", data)[0] == EX_UNAVAILABLE
    assert not data.exists()


@pytest.mark.parametrize("verb", [("list", "a@x.org"), ("show", "a@x.org", "1"),
                                  ("export", "a@x.org", "--to", "mbox:/nowhere/x")])  # fmt: skip
def test_mail_of_a_directory_that_is_none_is_one_line(run, data, verb):
    code, _, err = run("mail", *verb, "--data", data)
    assert (code, err.count("\n")) == (EX_UNAVAILABLE, 1)
    assert not data.exists()
