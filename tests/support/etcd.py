"""Real etcd servers on the loopback: one, or three that elect a leader.

Rules of this file:

* Each has its own directory; a server that is stopped keeps its data and its ports.
* A server is ready when it answers a linearizable request: then there is a leader.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pytest

from metad.cluster.certificates import Pair, make_ca, make_member
from tests.support.clients import in_time
from tests.support.hub import free_ports

HOST = "127.0.0.1"
# Milliseconds: an election takes one to two of the second.
_HEARTBEAT, _ELECTION = 50, 500


def need_etcd() -> None:
    """Skip the test where etcd is not installed (tools/packages)."""
    if shutil.which("etcd") is None or shutil.which("etcdctl") is None:
        pytest.skip("no etcd here", allow_module_level=True)


class EtcdServer:
    """One member.  `options`: more of its command line."""

    def __init__(self, cluster: EtcdCluster, name: str, options: tuple[str, ...] = ()) -> None:
        self._cluster = cluster
        self.options: Sequence[str] = options
        self.name = name
        self.home = cluster.home / name
        self.log = cluster.home / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.port, self._peer_port = free_ports(2)

    @property
    def url(self) -> str:
        return f"{self._cluster.scheme}://{self._cluster.host}:{self.port}"

    @property
    def peer(self) -> str:
        return f"http://{self._cluster.host}:{self._peer_port}"

    def start(self) -> None:
        """Start it; `EtcdCluster.wait` waits until it is ready."""
        command = [
            "etcd", "--name", self.name, "--data-dir", str(self.home),
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer,
            "--initial-cluster", self._cluster.initial, "--initial-cluster-state", "new",
            "--heartbeat-interval", str(_HEARTBEAT), "--election-timeout", str(_ELECTION),
            "--logger", "zap", *self.options,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def end(self, number: int = signal.SIGTERM) -> None:
        """Stop it, or kill it."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(30)

    def pause(self) -> None:
        """It answers nothing, and its connections stay open, until `go_on`."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Lose its data; it must be stopped."""
        shutil.rmtree(self.home, ignore_errors=True)

    def move(self) -> None:
        """Listen elsewhere from its next start on."""
        (self.port,) = free_ports(1)

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request.  Raises OSError."""
        data = json.dumps(body).encode()
        url, context = f"{self.url}/v3/{path}", self._cluster.context
        with urllib.request.urlopen(url, data, timeout=5, context=context) as answer:
            return json.load(answer)

    def is_ready(self) -> bool:
        try:
            self.ask("kv/range", {"key": "eA=="})
        except (OSError, ValueError):
            return False
        return True

    @property
    def leads(self) -> bool:
        status = self.ask("maintenance/status", {})
        return status["leader"] == status["header"]["member_id"]


class EtcdCluster:
    """So many servers, all running within the context."""

    scheme = "http"
    context: ssl.SSLContext | None = None

    def __init__(self, count: int = 1, options: tuple[str, ...] = (), host: str = HOST) -> None:
        need_etcd()
        self.host = host
        self.home = Path(tempfile.mkdtemp(prefix="etcd-"))
        self.servers = [EtcdServer(self, f"e{number}", options) for number in range(1, count + 1)]
        self.initial = ",".join(f"{one.name}={one.peer}" for one in self.servers)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(one.url for one in self.servers)

    @property
    def leader(self) -> EtcdServer:
        (found,) = (one for one in self.servers if one.process is not None and one.leads)
        return found

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)

    def start(self) -> None:
        for one in self.servers:
            if one.process is None:
                one.start()
        self.wait()

    def wait(self) -> None:
        """Until all that run are ready."""
        for one in self.servers:
            if one.process is not None and not in_time(one.is_ready):
                raise AssertionError(f"etcd does not answer:\n{one.log.read_text()[-3000:]}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        for one in self.servers:
            one.end(number)

    def wipe(self) -> None:
        """All data is gone; it runs again."""
        self.stop()
        for one in self.servers:
            one.forget()
        self.start()

    def control(self, *arguments: str) -> None:
        """etcdctl.  Raises CalledProcessError."""
        command = ["etcdctl", "--endpoints", self.servers[0].url, *arguments]
        subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, "ETCDCTL_API": "3"}
        )

    def snapshot(self) -> Path:
        path = self.home / "snapshot"
        with suppress(FileNotFoundError):
            path.unlink()
        self.control("snapshot", "save", str(path))
        return path

    def restore(self, snapshot: Path) -> None:
        """As it was at the snapshot; it runs again."""
        self.stop()
        for one in self.servers:
            one.forget()
            self.control(
                "snapshot", "restore", str(snapshot), "--name", one.name,
                "--data-dir", str(one.home), "--initial-cluster", self.initial,
                "--initial-advertise-peer-urls", one.peer,
            )  # fmt: skip
        self.start()

    def compact(self) -> int:
        """Forget the history up to now; the revision."""
        first = self.servers[0]
        revision = int(first.ask("kv/range", {"key": "eA=="})["header"]["revision"])
        first.ask("kv/compaction", {"revision": str(revision), "physical": True})
        return revision


# --- TLS ------------------------------------------------------------------------------------------

_SERVER = """\
[req]
distinguished_name = name
prompt = no
[name]
CN = etcd
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = IP:127.0.0.1
"""


class TlsEtcd(EtcdCluster):
    """One server that asks its clients for certificates of its CA.

    `ca`, `certificate`, `key`: files for a client.
    """

    scheme = "https"

    def __init__(self) -> None:
        super().__init__()
        self.home.chmod(0o755)
        ca = make_ca("etcd")
        self.ca, self.certificate, self.key = (
            self._write(name, text)
            for name, text in zip(("ca.pem", "own.pem", "own.key"),
                                  (ca.certificate, *make_member(ca, 1)), strict=True)
        )  # fmt: skip
        (one,) = self.servers
        one.options = (
            *self._server_files(ca), "--trusted-ca-file", str(self.ca), "--client-cert-auth",
        )  # fmt: skip
        self.context = ssl.create_default_context(cafile=self.ca)
        self.context.load_cert_chain(self.certificate, self.key)

    def _write(self, name: str, text: str) -> Path:
        path = self.home / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def _server_files(self, ca: Pair) -> list[str]:
        self._write("ca.key", ca.key)
        config, key, certificate = (
            str(self._write(name, text))
            for name, text in (("config", _SERVER), ("server.key", ""), ("server.pem", ""))
        )
        subprocess.run(
            ["openssl", "req", "-x509", "-config", config, "-extensions", "server", "-nodes",
             "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2",
             "-CA", str(self.ca), "-CAkey", str(self.home / "ca.key"),
             "-keyout", key, "-out", certificate],
            check=True, capture_output=True,
        )  # fmt: skip
        return ["--cert-file", certificate, "--key-file", key]
