"""Which addresses a listener serves, and what a start reports about them."""

from __future__ import annotations

import re

from tests.support.clients import deliver, fetch, message
from tests.support.hub import Hub, free_ports
from tests.support.wide_hub import Smtp, WideHub, connect, log_lines


class AnyHub(WideHub):
    """Listeners on the given addresses, all for SMTP on one port."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts
        self.port = free_ports(1)[0]
        super().__init__([])

    def configure(self, settings: str = "", **store: object) -> None:
        super().configure("", workers=1)
        text = self.config.read_text()
        for host in self.hosts:
            shown = f"[{host}]" if ":" in host else host
            text += f'[[listen]]\nprotocol = "smtp"\naddress = "{shown}:{self.port}"\n'
        self.config.write_text(text)

    def announced(self) -> list[str]:
        shown = [f"[{host}]" if ":" in host else host for host in self.hosts]
        return [f"listening smtp {host}:{self.port}" for host in shown]

    def answers(self, host: str) -> bool:
        try:
            with Smtp(connect((host, self.port))) as client:
                return client.line().startswith(b"220")
        except ConnectionRefusedError:
            return False


def test_all_addresses_of_ipv6_are_not_those_of_ipv4_and_the_start_says_so() -> None:
    with AnyHub("::") as hub:
        assert hub.answers("::1")
        assert not hub.answers("127.0.0.1")
        (line,) = log_lines(hub, "serves IPv6 only")
        assert f'add a [[listen]] with address = "0.0.0.0:{hub.port}"' in line


def test_both_families_are_served_by_two_listeners_on_one_port() -> None:
    with AnyHub("0.0.0.0", "::") as hub:
        assert hub.answers("::1")
        assert hub.answers("127.0.0.1")
        assert not log_lines(hub, "serves IPv6 only")


def test_port_0_takes_free_ports_and_the_start_prints_them() -> None:
    hub = Hub(["alice"])
    text = hub.config.read_text()
    hub.config.write_text(re.sub(r'(address = "127\.0\.0\.1):\d+"', r'\1:0"', text))
    hub.announced = lambda: announced(hub)  # type: ignore[method-assign]
    with hub:
        sent = message()
        deliver(hub, sent, "alice")
        (found,) = fetch(hub, "alice")
        assert found.endswith(sent)


def announced(hub: Hub) -> list[str]:
    """The ports that it reports are those of the listening sockets."""
    status = hub.status()
    ports = {one["protocol"]: int(one["address"].rpartition(":")[2]) for one in status["listen"]}
    hub.smtp_port, hub.pop3_port = ports["smtp"], ports["pop3"]
    assert 0 not in ports.values()
    assert hub.smtp_port != hub.pop3_port
    return [f"listening {kind} 127.0.0.1:{port}" for kind, port in ports.items()]
