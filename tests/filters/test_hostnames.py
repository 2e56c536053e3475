"""A client's name, from its address: it must resolve back, it is cached, and the wait is short."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from metad.filters import hostnames
from metad.filters.hostnames import SECONDS, Hostnames


class Resolver:
    """The resolver part of a loop; `names` and `addresses` are its DNS."""

    def __init__(self, names: dict[str, str], addresses: dict[str, list[str]]) -> None:
        self.names = names
        self.addresses = addresses
        self.asked: list[str] = []
        self.now = 0.0
        self.hangs = False

    def time(self) -> float:
        return self.now

    async def getnameinfo(self, address: tuple[str, int], flags: int) -> tuple[str, str]:
        assert flags == socket.NI_NAMEREQD
        self.asked.append(address[0])
        if self.hangs:
            await asyncio.Event().wait()
        if address[0] not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "no name")
        return self.names[address[0]], "0"

    async def getaddrinfo(self, name: str, _: object, **__: object) -> list[Any]:
        return [(0, 0, 0, "", (one, 0)) for one in self.addresses.get(name, [])]


def looked_up(resolver: Any, *addresses: str) -> list[str]:
    async def ask() -> list[str]:
        known = Hostnames(resolver)
        return [await known.name_of(one) for one in addresses]

    return asyncio.run(ask())


def test_a_name_must_lead_back_to_the_address() -> None:
    resolver = Resolver(
        {"192.0.2.1": "good.example", "192.0.2.2": "forged.example", "2001:db8::1": "six.example"},
        {"good.example": ["192.0.2.9", "192.0.2.1"], "forged.example": ["192.0.2.3"],
         "six.example": ["2001:db8::1"]},
    )  # fmt: skip
    found = looked_up(resolver, "192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1")
    assert found == ["good.example", "", "", "six.example"]


def test_names_and_their_absence_are_remembered_for_a_while() -> None:
    resolver = Resolver({"192.0.2.1": "a.example"}, {"a.example": ["192.0.2.1"]})

    async def ask() -> None:
        known: Hostnames = Hostnames(resolver)  # type: ignore[arg-type]
        for _ in range(3):
            assert await known.name_of("192.0.2.1") == "a.example"
            assert await known.name_of("192.0.2.2") == ""
        assert resolver.asked == ["192.0.2.1", "192.0.2.2"]
        resolver.now = SECONDS
        await known.name_of("192.0.2.1")
        assert len(resolver.asked) == 3

    asyncio.run(ask())


def test_no_more_names_are_remembered_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostnames, "REMEMBERED", 3)
    resolver = Resolver({}, {})
    looked_up(resolver, *(f"192.0.2.{n}" for n in range(4)), "192.0.2.3", "192.0.2.0")
    assert resolver.asked == [*(f"192.0.2.{n}" for n in range(4)), "192.0.2.0"]


def test_a_resolver_that_hangs_costs_the_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostnames, "DEADLINE", 0.01)
    resolver = Resolver({}, {})
    resolver.hangs = True
    assert looked_up(resolver, "192.0.2.1", "192.0.2.1") == ["", ""]
    assert len(resolver.asked) == 1
