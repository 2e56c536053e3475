"""The worked example of docs/filters.md: its filters, and a package that a hub finds."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from metad import filters
from metad.config.effective import effective
from metad.config.parse import parse
from metad.errors import ConfigError
from metad.filters.testing import Conformance
from tests.support.clients import SENDER, SmtpLine, fetch, message
from tests.support.filter_packages import HubWithPackages, pip_install
from tests.support.hub import address

EXAMPLE = Path(__file__).parents[2] / "examples" / "filter"


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location(
        "metad_house_rules", EXAMPLE / "metad_house_rules.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["metad_house_rules"] = module
    spec.loader.exec_module(module)
    return module


RULES = load_example()


class Service(BaseHTTPRequestHandler):
    """The web service: keeps what it was told, and refuses what says "unwanted"."""

    protocol_version = "HTTP/1.1"
    told: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.told.append(told)
        self.send_response(403 if "unwanted" in told["start"] else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Its queue takes all that come at once.  The usual one of five lets the others try again,
    after a second."""

    request_queue_size = 64


@contextmanager
def serving() -> Iterator[int]:
    """The service's port."""
    with Server(("127.0.0.1", 0), Service) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class TestAllowlist(Conformance):
    filter = RULES.Allowlist
    options: ClassVar = {"senders": ["example.net"]}


class TestWebhook(Conformance):
    filter = RULES.Webhook

    @pytest.fixture(autouse=True)
    def service(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with serving() as port:
            monkeypatch.setattr(type(self), "options", {"port": port})
            yield


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("packages")
    pip_install(EXAMPLE, target)
    return target


@pytest.fixture
def installed(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(packages, tmp_path, dirs_exist_ok=True)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    filters.find.cache_clear()
    yield tmp_path
    filters.find.cache_clear()
    sys.modules.pop("metad_house_rules", None)


def check(text: str) -> dict[str, dict[str, Any]]:
    return filters.check(parse(text, None, Path("/nowhere"), {}))


@pytest.mark.slow
def test_an_installed_filter_is_found_by_its_entry_point(installed: Path) -> None:
    found = check('[filter]\nuse = ["allowlist"]\n[filter.allowlist]\nsenders = ["@Example.NET"]')
    assert found == {"allowlist": {"senders": frozenset({"example.net"})}}
    assert "webhook" in filters.names()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('use = ["allowlst"]', "there is no filter allowlst; here are allowlist, rspamd, webhook"),
        ('use = ["rspamd"]', "filter.use: rspamd is turned on by filter.rspamd"),
        ('use = ["allowlist"]', "filter.allowlist: senders: must be a list"),
        ('use = ["webhook"]\n[filter.webhook]\nprt = 1', "webhook knows no setting prt"),
        ("[filter.webhook]\nport = 1", "filter.webhook: filter.use does not name such a filter"),
    ],
)
def test_what_is_wrong_is_one_line(installed: Path, text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        check(f"[filter]\n{text}")
    assert "\n" not in str(caught.value)


def test_config_show_has_scores_as_they_were_given() -> None:
    text = '[[domain]]\nname = "a.example"\nspam_mark = 5.25\nspam_refuse = 12\n'
    config = parse(text, None, Path("/nowhere"), {})
    shown = "\n".join(effective(config))
    assert 'name = "a.example"\nspam_mark = 5.25\nspam_refuse = 12' in shown
    assert parse(shown, None, None, {}).domain == config.domain


def test_config_show_has_the_tables_of_filters() -> None:
    text = '[filter]\nuse = ["allowlist"]\n[filter.allowlist]\nsenders = ["a.example"]\n'
    shown = "\n".join(effective(parse(text, None, Path("/nowhere"), {})))
    assert '\n[filter.allowlist]\nsenders = ["a.example"]' in shown
    again = parse(shown, None, None, {})
    assert again.filter == parse(text, None, Path("/nowhere"), {}).filter


@pytest.mark.slow
@pytest.mark.parametrize("value", ["metad_house_rules:Nothing", "no_such:X", "json:dumps", "bad:X"])
def test_a_filter_that_cannot_be_loaded_is_one_line(installed: Path, value: str) -> None:
    (installed / "bad.py").write_text("1 / 0\n")
    (points,) = installed.glob("metad_house_rules-1.0.dist-info/entry_points.txt")
    points.write_text(f"[metad.filters]\nbroken = {value}\n")
    with pytest.raises(ConfigError, match="broken") as caught:
        check('[filter]\nuse = ["broken"]')
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_hub_asks_both(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Service.told.clear()
    with serving() as port:
        settings = (
            '[filter]\nuse = ["allowlist", "webhook"]\n'
            f'[filter.allowlist]\nsenders = ["{SENDER.rpartition("@")[2]}"]\n'
            f"[filter.webhook]\nport = {port}"
        )
        with HubWithPackages(monkeypatch, packages, settings) as hub, SmtpLine(hub) as client:
            client.say("MAIL FROM:<stranger@example.com>", b"550 5.7.1 This hub takes no mail")
            sent = message()
            client.deliver(sent, "alice")
            client.deliver(message(b"unwanted\r\n"), "alice", code=b"550 5.7.1 The recipient")
            (got,) = fetch(hub, "alice")
    assert b"X-Webhook: seen\r\n" in got
    assert got.endswith(sent)
    assert [one["recipients"] for one in Service.told] == [[address("alice")]] * 2
    assert Service.told[0]["sender"] == SENDER


@pytest.mark.slow
def test_the_example_is_typed_and_uses_nothing_private() -> None:
    source = EXAMPLE / "metad_house_rules.py"
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(source)],
        capture_output=True, text=True, check=False, cwd=EXAMPLE.parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "._" not in source.read_text().replace("self._", "")
