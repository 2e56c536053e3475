"""The monitor of a real hub: metrics, health, the status page; and `metad status --check`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import poplib
import shutil
import signal
import smtplib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.clients import deliver, fetch, message
from tests.support.hub import DEADLINE, Hub, address, free_ports
from tests.support.live import LiveHub
from tests.support.wide_hub import Pop3, WideHub, connect


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=DEADLINE)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


@pytest.fixture(scope="module")
def port():
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def live(port):
    with LiveHub(settings=f'[metrics]\naddress = "127.0.0.1:{port}"') as hub:
        yield hub


@pytest.fixture(scope="module")
def safe() -> Iterator[tuple[WideHub, int]]:
    """A hub with TLS, and the port of its metrics."""
    (port,) = free_ports(1)
    with WideHub(["pop3s"], settings=f'[metrics]\naddress = "127.0.0.1:{port}"') as hub:
        yield hub, port


def get(port: int, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def metrics(port: int) -> dict[str, float]:
    _, text = get(port, "/metrics")
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_mail_is_counted_in_and_out(live, port):
    before = metrics(port)
    deliver(live, message(), "alice")
    deliver(live, message(), "alice")
    fetch(live, "alice")
    after = metrics(port)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown["metad_messages_total"] == 2
    assert grown["metad_retrieved_total"] == 2
    assert grown["metad_logins_total"] == 1
    assert after["metad_workers"] == 2
    assert after["metad_ready"] == after["metad_healthy"] == 1
    assert after["metad_disk_free_bytes"] > 0
    active = [name for name in after if name.startswith("metad_logs{") and 'e="active"' in name]
    assert sum(after[name] for name in active) >= 2
    assert grown["metad_retrieved_bytes_total"] > grown["metad_message_bytes_total"] > 0
    assert grown["metad_log_written_bytes_total"] > grown["metad_message_bytes_total"]
    assert grown['metad_login_attempts_total{result="ok"}'] == 1
    for name in ("commit_seconds", "sync_seconds", "group_records"):
        assert grown[f"metad_{name}_count"] == grown["metad_group_records_count"] > 0
        assert grown[f'metad_{name}_bucket{{le="+Inf"}}'] == grown[f"metad_{name}_count"]
    assert grown["metad_group_records_sum"] == 2
    assert grown["metad_commit_seconds_sum"] >= grown["metad_sync_seconds_sum"] > 0


def test_refusals_and_logins_are_counted_by_their_reason(live, port):
    before = metrics(port)
    with smtplib.SMTP("127.0.0.1", live.smtp_port, timeout=DEADLINE) as client:
        client.ehlo()
        client.mail("a@b.example")
        client.rcpt("nobody@example.test")
        client.rcpt("someone@elsewhere.example")
        client.mail("<<")
    for user, password in (("nobody", "x"), ("alice", "wrong")):
        box = poplib.POP3("127.0.0.1", live.pop3_port, timeout=DEADLINE)
        box.user(address(user))
        with pytest.raises(poplib.error_proto):
            box.pass_(password)
        box.close()
    after = metrics(port)
    grown = {name: value for name in after if (value := after[name] - before.get(name, 0))}
    assert grown['metad_refusals_total{reason="unknown_user"}'] == 1
    assert grown['metad_refusals_total{reason="relay"}'] == 1
    reasons = [value for name, value in grown.items() if name.startswith("metad_refusals_total")]
    assert sum(reasons) == grown["metad_refused_total"]
    assert grown['metad_login_attempts_total{result="unknown_user"}'] == 1
    assert grown['metad_login_attempts_total{result="wrong_password"}'] == 1


@pytest.mark.parametrize(
    ("version", "label"),
    [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3"), (None, "failed")],
)
def test_handshakes_are_counted_by_version_and_the_certificate_by_its_end(
    safe, version: ssl.TLSVersion | None, label: str
) -> None:
    hub, port = safe
    before = metrics(port)
    with Pop3(connect(hub.places["pop3s"])) as client:
        if version is None:
            client.send(b"no handshake\r\n")
            client.socket.shutdown(socket.SHUT_WR)
            assert b"+OK" not in client.rest()
        else:
            context = hub.trust
            context.minimum_version = context.maximum_version = version
            client.secure(context)
            client.line()
    wanted = f'metad_tls_handshakes_total{{result="{label}"}}'
    after = metrics(port)
    deadline = time.monotonic() + DEADLINE
    while after[wanted] == before[wanted]:  # a failed handshake is counted when the hub has read it
        assert time.monotonic() < deadline
        after = metrics(port)
    counted = [name for name in after if name.startswith("metad_tls_handshakes_total{")]
    assert {
        name: after[name] - before[name] for name in counted if name != wanted
    } == dict.fromkeys(set(counted) - {wanted}, 0)
    assert after[wanted] == before[wanted] + 1
    (expiry,) = (value for name, value in after.items() if "certificate_expiry" in name)
    assert expiry > time.time()


def test_the_page_and_its_figures_name_no_user_and_no_address(live, port):
    assert get(port, "/")[0] == 200
    status, text = get(port, "/status.json")
    facts = json.loads(text)
    assert (status, facts["state"]) == (200, "serving")
    assert {one["state"] for one in facts["logs"]} >= {"active"}
    assert "alice" not in text
    assert "127.0.0.1" not in text
    assert get(port, "/status.json", Host="evil.example")[0] == 403


def test_clients_that_do_not_finish_hold_up_no_scrape(live, port):
    """Regression: the server waited for each, ten seconds per byte, without a heartbeat."""
    with contextlib.ExitStack() as stack:
        for number in range(100):
            client = socket.create_connection(("127.0.0.1", port), DEADLINE)
            stack.enter_context(client)
            client.sendall((b"G", b"GET / HTTP/1.1\r\nX", b"GET /" + b"a" * 9_000)[number % 3])
        began = time.monotonic()
        assert get(port, "/healthz") == (200, "serving\n")
        assert time.monotonic() - began < 5


def test_the_monitor_comes_back_when_it_dies(live, port):
    (pid,) = [one["pid"] for one in live.facts()["processes"] if one["role"] == "monitor"]
    os.kill(pid, signal.SIGKILL)

    def other(facts: dict) -> bool:
        return any(p["role"] == "monitor" and p["pid"] != pid for p in facts["processes"])

    live.until(other, "another monitor")
    assert metrics(port)['metad_process_deaths_total{process="monitor"}'] == 1
    assert get(port, "/readyz") == (200, "serving\n")
    live.reload()
    assert get(port, "/healthz") == (200, "serving\n")


def test_a_unix_socket_serves_too_and_status_check_is_a_nagios_plugin():
    # In a directory of the hub's user: a hub started by root binds as that user.
    hub = Hub(["ann"])
    path = hub.data / "monitor"
    hub.configure(f'[metrics]\naddress = "unix:{path}"')
    with hub:
        connection = UnixConnection(str(path))
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
        done = hub.run("status", "--check")
        assert done.stdout.startswith("METAD OK - serving | messages=0c")
        hub.stop()
        done = hub.run("status", "--check", check=False)
        assert (done.returncode, done.stdout[:16]) == (2, "METAD CRITICAL -")
        hub.start()


def test_an_expired_certificate_degrades_with_a_remedy(live):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    text = live.config.read_text()
    live.run("tls", "self-signed")
    live.config.write_text(text.replace('protocol = "pop3"', 'protocol = "pop3"\ntls = "starttls"'))
    chain = next((live.data / "tls").iterdir())
    assert chain.exists()
    subprocess.run(
        ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt",
         "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", "/CN=x", "-addext",
         "subjectAltName=DNS:x.example.org", "-keyout", live.home / "key", "-out",
         live.home / "cert"],
        check=True, capture_output=True,
    )  # fmt: skip
    done = live.run("tls", "install", "--cert", str(live.home / "cert"), "--key",
                    str(live.home / "key"))  # fmt: skip
    assert "expires on" in done.stderr
    live.run("reload")
    facts = live.until(lambda facts: facts["state"] == "degraded", "degraded")
    assert any("x.example.org expires on" in one["problem"] for one in facts["problems"])
    done = live.run("status", "--check", check=False)
    assert (done.returncode, done.stdout[:13]) == (1, "METAD WARNING")
    assert "to do: renew it" in live.run("status").stdout
