"""metad status, who and top on a terminal of 80 columns."""

from __future__ import annotations

import json

from metad.errors import EX_UNAVAILABLE
from tests.support.clients import Pop3Line
from tests.support.hub import Hub, address
from tests.support.terminal import COLUMNS, coloured, on_terminal, plain


def test_status_and_who_fit_80_columns_and_obey_no_color(hub: Hub, mailbox: str) -> None:
    with Pop3Line(hub) as pop3:
        pop3.log_in(mailbox)
        for command in ("status", "who"):
            text = plain(on_terminal(command, "--config", str(hub.config)))
            assert max(map(len, text.splitlines())) <= COLUMNS
            assert "serving" in text or address(mailbox) in text
            without = on_terminal(command, "--config", str(hub.config), no_color=True)
            assert not coloured(without)


def test_top_on_a_terminal_goes_on_until_ctrl_c(hub: Hub) -> None:
    text = on_terminal("top", "--interval", "0.1", "--config", str(hub.config), until=b"% live")
    assert "messages/s" in text
    assert "\x1b[?1049l" in text  # the previous screen is back


def test_top_into_a_pipe_is_one_screen_and_json(hub: Hub, mailbox: str) -> None:
    lines = hub.run("top", "--interval", "0.1").stdout.splitlines()
    assert lines[0].startswith("serving, up ")
    assert max(map(len, lines)) <= COLUMNS
    facts = json.loads(hub.run("top", "--interval", "0.1", "--json").stdout)
    assert facts["state"] == "serving"
    assert facts["logs"]
    assert address(mailbox) not in json.dumps(facts)


def test_top_without_a_hub_says_so() -> None:
    with Hub() as hub:
        hub.stop()
        assert hub.run("top", check=False).returncode == EX_UNAVAILABLE
