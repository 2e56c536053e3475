"""metad user: by pipe and by hand, with and without a database."""

import json

import pytest

from metad.errors import EX_DATAERR, EX_NOUSER, EX_OSERR, EX_UNAVAILABLE, EX_USAGE
from metad.users.database import UserDatabase


@pytest.fixture
def user(run, data):
    def command(verb, *arguments, stdin=b""):
        return run("user", verb, *arguments, "--data", data, stdin=stdin)

    return command


def verify(data, address, password):
    with UserDatabase(data / "users") as users:
        return users.verify(address, password)


def test_the_first_user_makes_the_data_directory(user, data):
    code, out, err = user("add", "Ann@Example.org", "--password-stdin", stdin=b"secret\n")
    assert (code, out, err) == (0, "added ann@example.org, mailbox 2\n", "")
    assert data.stat().st_mode & 0o777 == 0o700
    assert verify(data, "ann@example.org", b"secret").id == 2


@pytest.mark.parametrize(
    ("line", "password"),
    [(b"a b \n", b"a b "), (b"pw\r\n", b"pw"), (b"pw", b"pw"), (b"pw\nmore\n", b"pw"),
     (b"\xff\n", b"\xff")],
)  # fmt: skip
def test_the_password_is_one_line_as_it_is_without_its_end(user, data, line, password):
    assert user("add", "ann@x.org", "--password-stdin", stdin=line)[0] == 0
    assert verify(data, "ann@x.org", password) is not None


@pytest.mark.parametrize("line", [b"", b"\n", b"x" * 2000 + b"\n", b"a\0b\n", b"a\rb\n"])
def test_a_bad_password_adds_no_user_and_is_not_shown(user, line):
    code, out, err = user("add", "ann@x.org", "--password-stdin", stdin=line)
    assert (code, out) == (EX_DATAERR, "")
    assert "xxx" not in err
    assert user("list")[1] == ""


def test_without_a_terminal_there_is_no_prompt(user):
    code, _, err = user("add", "ann@x.org")
    assert code == EX_USAGE
    assert "--password-stdin" in err


def test_on_a_terminal_the_password_is_asked_for_twice(user, data, monkeypatch):
    asked = []
    monkeypatch.setattr("metad.cli.user.users.terminal", lambda: True)
    monkeypatch.setattr("click.prompt", lambda text, **how: asked.append(how) or "sécret")
    assert user("add", "ann@x.org")[0] == 0
    assert asked == [{"hide_input": True, "confirmation_prompt": True, "err": True}]
    assert verify(data, "ann@x.org", "sécret".encode()) is not None


def test_a_mailbox_can_be_without_a_password(user):
    assert user("add", "ann@x.org", "--no-password")[0] == 0
    assert user("list")[1] == "ann@x.org\tno password\n"


def test_both_ways_of_a_password_exclude_each_other(user):
    assert user("add", "a@x.org", "--no-password", "--password-stdin")[0] == EX_USAGE


@pytest.mark.parametrize("address", ["ann", "a b@x.org", "a\n@x.org", "../x@", ""])
def test_what_is_no_address_is_refused(user, address):
    code, _, err = user("add", address, "--no-password")
    assert code == EX_DATAERR
    assert err.count("\n") == 1


def test_an_address_there_already_is_refused(user):
    user("add", "ann@x.org", "--no-password")
    code, _, err = user("add", "ANN@x.org", "--no-password")
    assert code == EX_DATAERR
    assert err.startswith("metad: fatal: ann@x.org: a user has this address already (")


def test_a_new_password_replaces_the_old_one(user, data):
    user("add", "ann@x.org", "--password-stdin", stdin=b"old\n")
    assert user("passwd", "ann@x.org", "--password-stdin", stdin=b"new\n")[0] == 0
    assert verify(data, "ann@x.org", b"old") is None
    assert verify(data, "ann@x.org", b"new") is not None


def test_a_removed_user_is_gone(user):
    user("add", "ann@x.org", "--no-password")
    assert user("remove", "ann@x.org") == (0, "removed ann@x.org, mailbox 2\n", "")
    assert user("list") == (0, "", "")


@pytest.mark.parametrize("verb", ["remove", "passwd"])
def test_who_is_not_there_cannot_be_changed(user, verb):
    user("add", "ann@x.org", "--no-password")
    more = ["--password-stdin"] if verb == "passwd" else []
    code, _, err = user(verb, "bob@x.org", *more, stdin=b"x\n")
    assert code == EX_NOUSER
    assert err.startswith("metad: fatal: bob@x.org: no such user (")


def test_the_list_is_by_address_and_as_json(user):
    for name in ("b", "a"):
        user("add", f"{name}@x.org", "--password-stdin", stdin=b"pw\n")
    assert user("list")[1] == "a@x.org\nb@x.org\n"
    assert json.loads(user("list", "--json", "--all")[1]) == [
        {"id": 3, "address": "a@x.org", "disabled": False, "has_password": True},
        {"id": 2, "address": "b@x.org", "disabled": False, "has_password": True},
        {"id": 1, "address": "postmaster", "disabled": False, "has_password": False},
    ]


def test_an_empty_list_as_json_is_an_empty_list(user):
    user("add", "a@x.org", "--no-password")
    user("remove", "a@x.org")
    assert json.loads(user("list", "--json")[1]) == []


@pytest.mark.parametrize("command", [("list",), ("remove", "a@x.org")])
def test_without_a_database_nothing_is_made(user, data, command):
    assert user(*command)[0] == EX_UNAVAILABLE
    assert not data.exists()
    data.mkdir()
    assert user(*command)[0] == EX_UNAVAILABLE
    assert list(data.iterdir()) == []


def test_a_data_directory_that_cannot_be_made_is_an_error(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("user", "add", "a@x.org", "--no-password", "--data", tmp_path / "file" / "d")
    assert code == EX_OSERR
    assert err.startswith(f"metad: fatal: {tmp_path}/file")
