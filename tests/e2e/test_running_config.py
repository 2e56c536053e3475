"""metad config show --running: what a hub uses, and what its file says now."""

from __future__ import annotations

import json
import tomllib

import pytest

from metad.cli.running_config import compare
from metad.config.effective import HIDDEN, effective
from metad.config.parse import parse
from metad.errors import EX_UNAVAILABLE, EX_USAGE
from tests.support.live import LiveHub


def test_what_differs_is_named_until_a_reload_applies_it():
    with LiveHub() as live:
        text = live.run("config", "show", "--running").stdout
        assert "# the file says the same" in text
        assert tomllib.loads(text)["limits"]["heartbeat"] == 30
        assert tomllib.loads(text)["listen"][0]["address"] == f"127.0.0.1:{live.smtp_port}"
        before = live.config.read_text()
        live.config.write_text(before.replace("heartbeat = 30", "heartbeat = 31"))
        text = live.run("config", "show", "--running").stdout
        assert "#   limits.heartbeat: 30 here, 31 in the file" in text
        found = json.loads(live.run("config", "show", "--running", "--json").stdout)
        assert found["differs"] == {"limits.heartbeat": {"running": 30, "file": 31}}
        assert found["source"] == str(live.config)
        live.reload()
        text = live.run("config", "show", "--running").stdout
        assert "# the file says the same" in text
        assert tomllib.loads(text)["limits"]["heartbeat"] == 31
        # An unreadable file does not hide what the hub uses.
        live.config.write_text(before + "nonsense = 1\n")
        found = json.loads(
            live.run("config", "show", "--running", "--json", "--data", str(live.data)).stdout
        )
        assert "nonsense" in found["problem"]
        assert found["running"]["limits"]["heartbeat"] == 31
        live.config.write_text(before)


def test_without_a_hub_nothing_runs_with_anything():
    with LiveHub() as live:
        both = live.run("config", "show", "--running", "--defaults", check=False)
        assert both.returncode == EX_USAGE
        live.stop()
        done = live.run("config", "show", "--running", check=False)
        assert done.returncode == EX_UNAVAILABLE


@pytest.mark.parametrize("name", ["password", "api_key", "token", "client_secret", "key"])
def test_passwords_are_hidden(tmp_path, name):
    text = f'[layer]\n{name} = "s3cr3t"\nplace = "there"\n[filter.x]\n{name} = "s3cr3t"\n'
    config = parse(text, None, tmp_path)
    lines = "\n".join(effective(config, hide=True))
    assert "s3cr3t" not in lines
    assert lines.count(HIDDEN) == 2
    assert "there" in lines
    assert "s3cr3t" in "\n".join(effective(config))


def test_differences_of_tables_lists_and_what_is_missing():
    running = {"a": 1, "t": {"x": [1]}, "listen": [{"p": 1}, {"p": 2}], "only": 3}
    file = {"a": 1, "t": {"x": [2], "y": 4}, "listen": [{"p": 1}]}
    found = {key: (mine, its) for key, mine, its in compare(running, file)}
    assert set(found) == {"t.x", "t.y", "listen[2]", "only"}
    assert found["t.x"] == ([1], [2])
