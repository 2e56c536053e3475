"""The doctor's tests work where the hubs of other tests do: data on a tmpfs is a fault to it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="metad-test-") as name:
        yield Path(name)
