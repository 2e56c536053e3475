"""The pytest plugin: the fixture `metad_hub`, one hub for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from metad.testing.hub import Hub


@pytest.fixture(scope="session")
def metad_hub() -> Iterator[Hub]:
    """A hub that takes mail for every address.  Use addresses of your own in each test."""
    with Hub() as hub:
        yield hub
