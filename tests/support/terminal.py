"""A command of metad's on a terminal of 80 columns and 24 lines."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
from collections.abc import Callable

from tests.support.hub import DEADLINE, METAD

COLUMNS = 80
LINES = 24
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# A colour of the letters or of the ground; bold and the like are none.
_COLOUR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:[349][0-7]|10[0-7]|[34]8)(?:;[0-9]+)*m")


def on_terminal(
    *arguments: str,
    until: bytes = b"",
    run: Callable[[list[str]], int] | None = None,
    codes: tuple[int, ...] = (0,),
    no_color: bool = False,
) -> str:
    """What a command writes to a terminal; it gets ^C once it has written `until`.

    `run` runs it in the forked child, without the price of a new interpreter.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        _child([*arguments], run, no_color=no_color)
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
    text = octets.decode()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in codes, text
    return text


def _child(arguments: list[str], run: Callable[[list[str]], int] | None, *, no_color: bool) -> None:
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        os.environ.pop(name, None)
    os.environ.update(TERM="xterm", **({"NO_COLOR": "1"} if no_color else {}))
    fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    if run is not None:
        # pytest has put files of its own in their places.
        sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
        sys.stderr = open(2, "w", closefd=False)
        code = run(arguments)
        sys.stdout.flush()
        os._exit(code)
    os.execv(METAD, [METAD, *arguments])


def plain(text: str) -> str:
    """Without what steers the terminal."""
    return _CONTROL.sub("", text).replace("\r", "")


def coloured(text: str) -> bool:
    return _COLOUR.search(text) is not None
