"""Certificates in DATA/tls: a bad one affects only itself, the last one stays, expiry is
reported."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from metad.cli.tls import _domain, make_self_signed
from metad.config.model import Config
from metad.config.parse import parse
from metad.errors import ConfigError, DataError
from metad.tls import store

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
LISTEN = '[[listen]]\nprotocol = "smtp"\naddress = "127.0.0.1:2525"\ntls = "starttls"\n'


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return parse(f'hostname = "mx.example.org"\n{LISTEN}', None, tmp_path, {})


def install(config: Config, name: str, days: int = 90) -> None:
    store.install(config.data, *make_self_signed([name], days))


def test_a_bad_file_costs_its_own_names_only(config: Config) -> None:
    install(config, "mx.example.org")
    (config.data / "tls" / "aaa.pem").write_text("no certificate\n")
    contexts = store.required(config)
    assert [one.name for one in contexts.certificates] == ["mx.example.org"]
    assert len(contexts.bad) == 1
    assert "aaa.pem" in contexts.bad[0]


def test_without_any_usable_certificate_the_reason_is_shown(config: Config) -> None:
    with pytest.raises(ConfigError) as raised:
        store.check(config)
    assert "metad tls install" in raised.value.line
    (config.data / "tls").mkdir()
    (config.data / "tls" / "aaa.pem").write_text("no certificate\n")
    with pytest.raises(ConfigError, match=r"aaa\.pem"):
        store.check(config)


def test_the_last_one_that_a_listener_needs_is_not_removed(config: Config, tmp_path: Path) -> None:
    install(config, "mx.example.org")
    (config.data / "tls" / "bad.pem").write_text("no certificate\n")
    with pytest.raises(DataError, match="a listener needs it"):
        store.remove(config, "mx.example.org")
    install(config, "other.example.org")
    store.remove(config, "mx.example.org")
    store.remove(config, "bad")
    with pytest.raises(DataError, match="no such certificate"):
        store.remove(config, "bad")
    store.remove(parse("", None, tmp_path, {}), "other.example.org")  # no listener needs it


def test_what_expires_soon_or_has_expired_is_reported(config: Config) -> None:
    install(config, "mx.example.org", days=30)
    now = datetime.now(UTC)
    assert store.expiry_warnings(config, now) == []
    (soon,) = store.expiry_warnings(config, now + timedelta(days=20))
    assert "mx.example.org expires on" in soon
    assert "in 9 days" in soon
    (late,) = store.expiry_warnings(config, now + timedelta(days=31))
    assert "mx.example.org expired on" in late
    (config.data / "tls" / "bad.pem").write_text("no certificate\n")
    assert len(store.expiry_warnings(config, now)) == 1


def test_nothing_to_warn_of_without_certificates(config: Config) -> None:
    assert store.expiry_warnings(config, datetime.now(UTC)) == []


def test_a_certificate_for_a_name_of_other_letters_has_its_a_label() -> None:
    assert _domain("*.bücher.example") == "*.xn--bcher-kva.example"
