"""The cost of TLS: a handshake, a mebibyte, an idle connection; each beside the same in the clear.

    python -m perf.tls [--handshakes N] [--messages N] [--idle N] [--rounds N]

Server CPU of all the hub's processes; memory is that private to its processes.  For idle
connections the first round counts: later ones reuse freed memory.  Prints, and writes
perf/results/tls-DATE.json.  Full handshakes: no session is resumed.
"""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perf import harness
from perf.harness import HubOptions, Server

RESULTS = Path(__file__).parent / "results"
USER = "user@perf.example"
SIZE = 4 << 20
LINE = b"x" * 78 + b"\r\n"


class Link:
    """A connection on which lines come, in the clear or not."""

    def __init__(self, port: int, secure: bool) -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), 60)
        if secure:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket)
        self.input = self.socket.makefile("rb")

    def expect(self, start: bytes) -> None:
        line = self.input.readline()
        while line[3:4] == b"-":
            line = self.input.readline()
        if not line.startswith(start):
            raise harness.HarnessError(f"{line!r} came instead of {start!r}")

    def say(self, words: bytes, answer: bytes) -> None:
        self.socket.sendall(words)
        self.expect(answer)

    def close(self) -> None:
        self.input.close()
        self.socket.close()


def sessions(server: Server, port: int, secure: bool, count: int) -> float:
    """Microseconds of CPU of a POP3 connection that says QUIT at once."""
    before = server.cpu()
    for _ in range(count):
        link = Link(port, secure)
        link.expect(b"+OK")
        link.say(b"QUIT\r\n", b"+OK")
        link.close()
    return (server.cpu() - before) / count * 1e6


def uploads(server: Server, port: int, secure: bool, count: int) -> float:
    """Milliseconds of CPU of a mebibyte sent by SMTP, stored and acknowledged."""
    octets = b"Subject: x\r\n\r\n" + LINE * (SIZE // len(LINE)) + b".\r\n"
    link = Link(port, secure)
    link.expect(b"220")
    link.say(b"EHLO perf.example\r\n", b"250")
    before = server.cpu()
    for _ in range(count):
        link.say(b"MAIL FROM:<>\r\n", b"250")
        link.say(b"RCPT TO:<%b>\r\n" % USER.encode(), b"250")
        link.say(b"DATA\r\n", b"354")
        link.say(octets, b"250")
    spent = server.cpu() - before
    link.close()
    return spent / (count * len(octets) / (1 << 20)) * 1e3


def idle(server: Server, port: int, secure: bool, count: int) -> float:
    """KiB of memory of a POP3 connection that has been greeted."""
    before = resident(server)
    links = [Link(port, secure) for _ in range(count)]
    for link in links:
        link.expect(b"+OK")
    used = resident(server) - before
    for link in links:
        link.close()
    return used / count / 1024


def resident(server: Server) -> int:
    """Octets of private memory of all processes of the server."""
    total = 0
    for pid in server.family():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    return total


def measure(options: argparse.Namespace, where: Path) -> dict[str, Any]:
    ports = harness.free_ports(2)
    more = "".join(
        f'\n[[listen]]\nprotocol = "{protocol}"\naddress = "127.0.0.1:{port}"\ntls = "implicit"\n'
        for protocol, port in zip(("smtp", "pop3"), ports, strict=True)
    )
    figures: dict[str, list[float]] = {}
    # Idle ones first: later ones reuse freed memory.
    kinds = (
        ("idle connection, KiB", idle, options.idle, "pop3", 1),
        ("session, us of CPU", sessions, options.handshakes, "pop3", 1),
        ("MiB by SMTP, ms of CPU", uploads, options.messages, "smtp", 0),
    )
    hub = HubOptions(users=(USER,), more=more, tls=True)
    with harness.hub(where, hub) as server:
        for _ in range(options.rounds):
            for name, run, count, plain, secure in kinds:
                for how, port in (("plain", getattr(server, plain)), ("TLS", ports[secure])):
                    found = run(server, port, how == "TLS", count)
                    figures.setdefault(f"{name}, {how}", []).append(round(found, 2))
    return {
        name: {"median": statistics.median(found), "rounds": found}
        for name, found in figures.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--handshakes", type=int, default=500)
    parser.add_argument("--messages", type=int, default=10)
    parser.add_argument("--idle", type=int, default=900)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    with ExitStack() as stack:
        where = stack.enter_context(harness.directory())
        found: dict[str, Any] = {
            "machine": harness.machine(where),
            "openssl": ssl.OPENSSL_VERSION,
            "figures": measure(options, where),
        }
    for name, figure in found["figures"].items():
        print(f"{name:32} {figure['median']:10.2f}   {figure['rounds']}")
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"tls-{found['machine']['date'][:10]}.json"
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written: {path.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
