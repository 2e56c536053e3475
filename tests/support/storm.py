"""Connections opened and closed as fast as it goes, by a process of its own.

python storm.py PORT COUNT FIRST: each from an address of 127.0.FIRST.x, some with a word, some
with a reset.  Prints the seconds it took.
"""

from __future__ import annotations

import socket
import sys
import time

RESET = b"\1\0\0\0\0\0\0\0"  # SO_LINGER on, zero seconds


def main(port: int, count: int, first: int) -> None:
    began = time.monotonic()
    for number in range(count):
        with socket.create_connection(
            ("127.0.0.1", port), 30, (f"127.0.{first}.{number % 200 + 1}", 0)
        ) as one:
            if number % 3 == 0:
                one.sendall(b"EHLO storm\r\n")
            if number % 3 == 1:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    print(time.monotonic() - began)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
