"""Expiring certificates are reported when a hub is ready, and then once a day."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metad.master.certificate_watch import DAY_SECONDS, CertificateWatch


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> tuple[CertificateWatch, list[str]]:
    """The watch of a hub with one expired certificate."""
    store = "metad.master.certificate_watch.tls_store"
    monkeypatch.setattr(f"{store}.wanted", lambda config: config.has_tls)
    monkeypatch.setattr(f"{store}.expiry_warnings", lambda config, now: [f"expired {now:%Z}"])
    lines: list[str] = []
    hub: Any = SimpleNamespace(config=SimpleNamespace(has_tls=True, data=Path("/nowhere")))
    return CertificateWatch(hub, lines.append), lines


def test_they_are_reported_at_once_and_then_once_a_day(
    watch: tuple[CertificateWatch, list[str]],
) -> None:
    looking, lines = watch
    start = 5_000.0
    for second in range(0, int(2.5 * DAY_SECONDS), 600):
        looking.look(start + second)
    assert lines == ["warning: expired UTC"] * 3


def test_a_hub_without_tls_is_not_bothered(watch: tuple[CertificateWatch, list[str]]) -> None:
    looking, lines = watch
    looking._hub.config.has_tls = False  # type: ignore[attr-defined]
    looking.look(0.0)
    assert lines == []
