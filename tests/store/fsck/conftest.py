"""For the tests of fsck: a store that is not started yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.osio_kit import FakeClock, KitOsio
from tests.support.store_kit import StoreKit


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[StoreKit]:
    with StoreKit(tmp_path / "data", KitOsio(clock=FakeClock())) as made:
        yield made
