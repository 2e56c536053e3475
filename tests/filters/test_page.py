"""Follows docs/filters.md: its filter is assembled from its blocks, installed, tested and run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.clients import SENDER, SmtpLine, fetch, message
from tests.support.filter_packages import HubWithPackages, pip_install
from tests.support.pages import blocks

pytestmark = pytest.mark.slow

PAGE = "filters.md"
FILES = ("house_rules.py", "pyproject.toml", "test_house_rules.py")


def file_of_page(name: str) -> str:
    (text,) = [one.text for one in blocks(PAGE) if one.text.startswith(f"# {name}\n")]
    return text


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("page")
    for name in FILES:
        (directory / name).write_text(file_of_page(name))
    return directory


@pytest.fixture(scope="module")
def installed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("packages")
    pip_install(package, target)
    return target


def test_the_filter_of_the_page_conforms(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)  # as its author runs it
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", FILES[2]],
        cwd=package, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 9


def test_it_is_typed(package: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", str(package / FILES[0])],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_a_hub_runs_it(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (settings,) = [one.text for one in blocks(PAGE) if one.text.endswith('use = ["house"]\n')]
    with HubWithPackages(monkeypatch, installed, settings) as hub, SmtpLine(hub) as client:
        refusal = b"550 5.7.1 This hub takes no mail from there"
        client.say("MAIL FROM:<stranger@example.com>", refusal)
        client.deliver(message(b"free watches\r\n"), "alice", code=b"550 5.7.1 No watches")
        sent = message()
        client.deliver(sent, "alice")
        (got,) = fetch(hub, "alice")
    assert SENDER.encode() in got
    assert b"\r\nX-House: looked at\r\n" in got
    assert got.endswith(sent)


def test_its_other_table_is_a_configuration() -> None:
    """Of the example, whose own tests run it."""
    from metad.config.parse import parse

    (text,) = [one.text for one in blocks(PAGE) if "[filter.webhook]" in one.text]
    config = parse(text, None, None, {})
    assert config.filter.use == ("allowlist", "webhook")
