"""metad config: its output can be read again and means the same."""

import dataclasses
import json

import pytest

from metad import limits
from metad.config import model as config_model
from metad.config import parse as config_parse
from metad.config import settings as config_settings
from metad.errors import EX_CONFIG, EX_USAGE

FILE = """
hostname = "mx.example.org"
user = "metad"
data = "/srv/m"
[[listen]]
protocol = "smtp"
address = "[::]:25"
[store]
workers = 3
log_size = "8MiB"
sync = false
[limits]
message_size = 100000
[pop3]
default_domain = "example.org"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "m.toml"
    path.write_text(FILE)
    return path


def test_what_is_shown_gives_the_same_configuration(run, file):
    code, out, _ = run("config", "show", "--config", file)
    assert code == 0
    shown = config_parse.parse(out, file, None, {"HOME": "/home/ann"})
    assert shown == config_parse.load(file, None, {})


def test_the_defaults_shown_are_the_defaults(run):
    code, out, _ = run("config", "show", "--defaults")
    assert code == 0
    environ = {"HOME": "/home/ann"}
    assert config_parse.parse(out, None, None, environ) == config_parse.parse(
        "", None, None, environ
    )


def test_the_defaults_name_every_setting(run):
    _, out, _ = run("config", "show", "--defaults")
    assert [s.name for s in config_settings.SETTINGS if f"{s.name} =" not in out] == []


def test_the_memory_shown_is_what_is_enforced_and_follows_the_settings(run, file):
    def memory(text):
        file.write_text(text)
        code, out, _ = run("config", "show", "--json", "--config", file)
        assert code == 0
        return json.loads(out)["memory"]

    few = memory(FILE)
    assert few["workers"] == 3
    assert few["clients"] == limits.MEMORY
    assert few["total"] == 3 * few["worker"] + few["connections"] * few["connection"]
    more = memory(FILE.replace("[limits]", '[limits]\nmemory = "1GiB"\nconnections = 20_000'))
    assert (
        more["total"] - few["total"] == 3 * ((1 << 30) - limits.MEMORY) + 10_000 * few["connection"]
    )
    tls = memory(FILE.replace("[store]", 'tls = "starttls"\n[store]'))
    assert tls["connection"] - few["connection"] == limits.TLS_MEMORY
    _, out, _ = run("config", "show", "--config", file)
    shown = -(-tls["total"] // (1 << 20))
    assert f"# Maximum memory of all workers, whatever clients do: {shown:,} MiB." in out


def test_the_configuration_is_shown_as_json_too(run, file):
    code, out, _ = run("config", "show", "--json", "--config", file)
    assert code == 0
    shown = json.loads(out)
    assert shown["store"]["workers"] == 3
    assert shown["listen"][0]["address"] == "[::]:25"
    code, out, _ = run("config", "show", "--defaults", "--json")
    assert json.loads(out)["limits"]["memory"] == "128MiB"


def test_every_field_of_the_configuration_is_a_setting():
    fields = {field.name for field in dataclasses.fields(config_model.StoreConfig)}
    assert fields == {s.name for s in config_settings.SETTINGS if s.table == "store"}
    fields = {field.name for field in dataclasses.fields(config_model.Limits)}
    assert fields == {s.name for s in config_settings.SETTINGS if s.table == "limits"}


def test_check_says_what_is_bad(run, file):
    file.write_text("hostname = 5\n")
    code, out, err = run("config", "check", "--config", file)
    assert (code, out) == (EX_CONFIG, "")
    assert err.startswith(f"metad: fatal: {file}:1: hostname: must be a string (")


@pytest.mark.parametrize(
    ("key", "shown"),
    [("limits.recipients", "1000"), ("hostname", "mx.example.org"), ("store.sync", "true")],
)
def test_get_prints_one_setting(run, tmp_path, key, shown):
    file = tmp_path / "metad.toml"
    file.write_text('hostname = "mx.example.org"\n')
    assert run("config", "get", key, "--config", file) == (0, f"{shown}\n", "")


@pytest.mark.parametrize("key", ["limits.nothing", "nothing", "listen.address", "limits"])
def test_get_refuses_what_is_no_setting(run, tmp_path, key):
    file = tmp_path / "metad.toml"
    file.write_text("")
    code, out, err = run("config", "get", key, "--config", file)
    assert (code, out) == (EX_USAGE, "")
    assert "no such setting (metad config show --defaults lists them)" in err
