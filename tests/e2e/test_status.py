"""metad status and metad who on a terminal of 80 columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios

from tests.support.clients import Pop3Line
from tests.support.hub import DEADLINE, METAD, Hub, address

COLUMNS = 80
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes to a terminal."""
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
