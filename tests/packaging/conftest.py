"""Fixtures of the packaging tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import Debian, need_tree
from tests.support.packages import Built, built


@pytest.fixture(scope="session")
def packages() -> Built:
    return built()


@pytest.fixture
def debian() -> Iterator[Debian]:
    """A bare Debian, to be changed at will."""
    need_tree()
    with tempfile.TemporaryDirectory(prefix="metad debian ") as directory:
        yield Debian(Path(directory))
