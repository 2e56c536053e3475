"""metad status, who and top on a terminal of 80 columns."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import termios

from metad.errors import EX_UNAVAILABLE
from tests.support.clients import Pop3Line
from tests.support.hub import DEADLINE, METAD, Hub, address

COLUMNS = 80
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(*arguments: str, until: bytes = b"", **environment: str) -> str:
    """What a command writes to a terminal; it gets ^C once it has written `until`."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", **environment)
        os.environ.pop("COLUMNS", None)
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        os.execv(METAD, [METAD, *arguments])
    octets = b""
    while select.select([terminal], [], [], DEADLINE)[0]:
        try:
            data = os.read(terminal, 65_536)
        except OSError:  # Linux: the other side has closed it
            break
        if not data:
            break
        octets += data
        if until and until in octets:
            until = b""
            os.write(terminal, b"\x03")
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    return octets.decode()


def test_status_and_who_fit_80_columns_and_obey_no_color(hub: Hub, mailbox: str) -> None:
    with Pop3Line(hub) as pop3:
        pop3.log_in(mailbox)
        for command in ("status", "who"):
            coloured = on_terminal(command, "--config", str(hub.config))
            text = _CONTROL.sub("", coloured).replace("\r", "")
            assert max(map(len, text.splitlines())) <= COLUMNS
            assert "serving" in text or address(mailbox) in text
            plain = on_terminal(command, "--config", str(hub.config), NO_COLOR="1")
            assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", plain)


def test_top_on_a_terminal_goes_on_until_ctrl_c(hub: Hub) -> None:
    text = on_terminal("top", "--interval", "0.1", "--config", str(hub.config), until=b"% live")
    assert "messages/s" in text
    assert "\x1b[?1049l" in text  # the screen that was there before is back


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
