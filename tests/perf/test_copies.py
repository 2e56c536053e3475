"""perf.copies: what is divided by what."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from perf import copies
from perf.generator import Smtp
from perf.harness import Server


class Load(Smtp):
    """Takes a second for 100 messages."""

    def run(self, port: int, recipients: object) -> Any:
        class Report:
            count = 100
            rate = 100.0 if port == 1 else 80.0

        CPU[port] += {1: 0.01, 2: 0.02}[port]
        if port == 2:
            CPU[3] += 0.005
        return Report


CPU = {1: 1.0, 2: 2.0, 3: 3.0}


def test_ratios_are_of_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Server, "cpu", lambda self: CPU[self.smtp])
    servers = [Server(0, port) for port in (1, 2, 3)]
    figures = copies.one_round(copies.Subjects(*servers), Load(1, 100))
    assert figures["rate"] == pytest.approx(0.8)
    assert figures["alone us"] == pytest.approx(100)
    assert figures["taken in"] == pytest.approx(2)
    assert figures["copied"] == pytest.approx(0.5)


def test_medians_and_half_of_the_spread() -> None:
    names = ("cluster rate", "alone rate", "alone us", "taking us", "other us", *copies.RATIOS)
    rounds = [dict.fromkeys(names, value) for value in (1.0, 2.0, 6.0)]
    row = copies.summary(rounds)
    assert (row["rate"], row["rate spread"]) == (2.0, 2.5)
    assert "2/s of       2/s = 2.00 ±2.50" in copies.line(1, row)


def replies(port: int, *lines: bytes) -> list[bytes]:
    """Codes: of the greeting, and of what is sent one after the other."""
    with socket.create_connection(("127.0.0.1", port), 10) as sock, sock.makefile("rwb") as wire:
        found = [wire.readline()[:3]]
        for line in lines:
            wire.write(line)
            wire.flush()
            found.append(wire.readline()[:3])
    return found


def test_the_bound_has_each_message_in_two_files_before_its_250(tmp_path: Path) -> None:
    with copies.constants(tmp_path) as found:
        for number in range(3):
            text = b"number %d\r\n" % number
            codes = replies(
                found.taking.smtp, b"MAIL\r\n", b"RCPT\r\n", b"DATA\r\n", text + b".\r\n"
            )
            assert codes == [b"220", b"250", b"250", b"354", b"250"]
            for which in ("taking", "other"):
                (file,) = (tmp_path / which).iterdir()
                assert text.strip() in file.read_bytes()
        (file,) = (tmp_path / "alone").iterdir()
        assert b"number" not in file.read_bytes()
