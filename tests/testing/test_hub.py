"""metad.testing: a hub for the tests of other programs."""

from __future__ import annotations

import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.testing import Hub, HubError


def send(hub: Hub, to: str, subject: str = "hello", body: str = "text\r\n") -> None:
    with smtplib.SMTP(*hub.smtp, timeout=30) as client:
        client.sendmail("app@sender.test", [to], f"Subject: {subject}\r\n\r\n{body}")


@pytest.fixture(scope="module")
def hub():
    with Hub() as made:
        yield made


def test_mail_for_any_address_arrives_as_a_message(hub: Hub) -> None:
    send(hub, "ann@example.test")
    (message,) = hub.wait_for("ann@example.test")
    assert message["Subject"] == "hello"
    assert message.get_content() == "text\n"
    assert message["Delivered-To"] == "ann@example.test"


def test_the_fixture_is_such_a_hub(metad_hub: Hub) -> None:
    send(metad_hub, "fixture@example.test")
    assert metad_hub.wait_for("fixture@example.test")[0]["Subject"] == "hello"


def test_pytest_finds_the_fixture_by_itself(tmp_path: Path, monkeypatch) -> None:
    """As in the project of a user; here the plugins are named (tools/test)."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures", "-p", "no:cacheprovider"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "metad_hub [session scope]" in done.stdout, done.stdout + done.stderr


def test_messages_come_in_order_and_can_be_cleared(hub: Hub) -> None:
    for number in range(3):
        send(hub, "bob@example.test", str(number))
    messages = hub.wait_for("bob@example.test", 3)
    assert [one["Subject"] for one in messages] == ["0", "1", "2"]
    assert hub.clear("bob@example.test") == 3
    assert hub.messages("bob@example.test") == []


def test_the_data_of_another_hub_is_left_alone(tmp_path: Path, monkeypatch) -> None:
    """METAD_DATA overrides the configuration of every other command."""
    other = tmp_path / "data"
    monkeypatch.setenv("METAD_DATA", str(other))
    with Hub(accept=(), any_password=False) as hub:
        hub.add_user("ann@example.test", "secret")
        send(hub, "ann@example.test")
        assert len(hub.wait_for("ann@example.test")) == 1
    assert not other.exists()


def test_waiting_in_vain_shows_the_log(hub: Hub) -> None:
    with pytest.raises(HubError, match=r"eve@example.test: 0 messages(?s:.*)metad/"):
        hub.wait_for("eve@example.test", timeout=0.1)


def test_only_the_accepted_addresses_and_the_right_password() -> None:
    with Hub(accept=["*@mine.test"], any_password=False) as hub:
        hub.add_user("ann@other.test", "secret")
        for to in ("x@mine.test", "ann@other.test"):
            send(hub, to)
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            send(hub, "bob@other.test")
        assert len(hub.wait_for("ann@other.test")) == 1
        with pytest.raises(HubError, match="AUTH"):
            hub.messages("x@mine.test")
        with pytest.raises(HubError, match=r"ann@other\.test"):
            hub.add_user("ann@other.test", "again")


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where the hub's user may write, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="metad-dev-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def test_given_ports_and_data_are_used(directory: Path) -> None:
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as sock:
            ports.append(sock.getsockname()[1])
    for _ in range(2):
        with Hub(ports=(ports[0], ports[1]), data=directory / "data") as hub:
            assert (hub.smtp.port, hub.pop3.port) == tuple(ports)
            send(hub, "ann@example.test")
            count = len(hub.wait_for("ann@example.test"))
    assert count == 2


def test_a_hub_that_cannot_start_says_why_and_leaves_nothing() -> None:
    hub = Hub(settings="nonsense = 1")
    with pytest.raises(HubError, match="nonsense: unknown key"):
        hub.start()
    with pytest.raises(HubError, match="not running"):
        _ = hub.log


def test_a_signal_while_it_stops_waits_until_nothing_is_left(monkeypatch) -> None:
    hub = Hub()
    hub.start()
    process, home = hub._process, hub.config.parent
    assert process is not None
    wait = process.wait

    def interrupted(seconds: float) -> int:
        signal.raise_signal(signal.SIGINT)
        return wait(seconds)

    monkeypatch.setattr(process, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        hub.stop()
    assert process.returncode == 0
    assert not home.exists()
